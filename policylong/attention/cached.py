"""Causal attention to a cache of keys and values: of a chunk of a prompt, and of one new token a row.

The cache of a layer is [B, K, T, H], so that the keys of a head lie together; keys are never repeated for the query
heads that share them.

Letters: B batch, Q queries, T places of the cache, N query heads, K key/value heads, G = N / K, H head size.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from policylong.attention.api import IMPLEMENTATIONS
from policylong.attention.blockwise import weigh
from policylong.attention.masks import Order, Tokens
from policylong.devices import mesh as meshes
from policylong.devices.elementwise import cast, exp

# Less than any score, and finite.
_LOWEST = -1e30


def chunk_attention(q: Float[Array, "B Q N H"], k: Float[Array, "B K T H"], v: Float[Array, "B K T H"],
                    start: Int[Array, ""], implementation: str | None = None) -> Float[Array, "B Q N H"]:
  """Queries that stand at places start .. start + Q - 1 of a cache that holds these already; memory linear in T.

  Args:
    q: queries; query head n uses key/value head n // (N // K).
    k: keys, already rotated. Places behind a query's own may hold anything finite.
    v: values.
    start: the same for all rows, known only on the device.
    implementation: "blockwise", "reference" or "splash"; None chooses by platform.

  Returns:
    The attended values in q's dtype.
  """
  if implementation is None:
    implementation = "splash" if meshes.platform() == "tpu" else "blockwise"
  k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
  return IMPLEMENTATIONS[implementation].forward(q, k, v, Tokens(), Order((start,)), q.dtype)[0]


def token_attention(q: Float[Array, "B N H"], k: Float[Array, "B K T H"], v: Float[Array, "B K T H"],
                    visible: Bool[Array, "B T"]) -> Float[Array, "B N H"]:
  """One query a row, which sees the places of its row that `visible` names, one at least.

  The scores are one float32 a query head and place; both products contract the last axis of their left operand,
  the form that XLA multiplies fast on CPU too.
  """
  B, N, H = q.shape
  K = k.shape[1]
  precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
  z = jnp.einsum("bkgh,bkth->bkgt", q.reshape(B, K, N // K, H), k, preferred_element_type=jnp.float32,
                 precision=precision)
  z = jnp.where(visible[:, None, None], z * H ** -0.5, _LOWEST)
  # Rounded before it is summed, so that the weights that multiply v add up to s exactly.
  p = cast(exp(z - jnp.max(z, axis=-1, keepdims=True)), v.dtype)
  s, o = weigh(p, v)
  return cast(o / s[..., None], q.dtype).reshape(B, N, H)
