"""Attention written as the formula, in float32, with the whole score matrix in memory.

Letters: B batch, Q queries, T keys, N query heads, K key/value heads, G = N / K, H head size.
"""

import jax
import jax.numpy as jnp

from policylong.attention.masks import Order, Tokens, visible

# Less than any score, and finite: a query that sees none of these keys gets an lse that counts for nothing.
_LOWEST = -1e30


def forward(q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, order: Order | None, dtype: jnp.dtype
            ) -> tuple[jax.Array, jax.Array]:
  """(out [B, Q, N, H] as dtype, lse float32 [B, Q, N]); see `api.IMPLEMENTATIONS`."""
  B, Q, N, _ = q.shape
  z = _scores(q, k, tokens, order)
  lse = jax.nn.logsumexp(z, axis=-1)
  out = _einsum("bkgqt,btkh->bqkgh", jnp.exp(z - lse[..., None]), v)
  return out.reshape(q.shape).astype(dtype), lse.transpose(0, 3, 1, 2).reshape(B, Q, N)


def backward(q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, order: Order | None, out: jax.Array,
             lse: jax.Array, d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """float32 (dq, dk, dv); out and lse may be of more keys than these; see `api.IMPLEMENTATIONS`."""
  B, Q, N, H = q.shape
  K = k.shape[2]
  def grouped(x):
    return x.astype(jnp.float32).reshape(B, Q, K, N // K, *x.shape[3:])
  p = jnp.exp(_scores(q, k, tokens, order) - grouped(lse).transpose(0, 2, 3, 1)[..., None])
  delta = jnp.sum(grouped(out) * grouped(d_out), axis=-1).transpose(0, 2, 3, 1)
  d_z = p * (_einsum("bqkgh,btkh->bkgqt", grouped(d_out), v) - delta[..., None]) * H ** -0.5
  return (_einsum("bkgqt,btkh->bqkgh", d_z, k).reshape(q.shape), _einsum("bkgqt,bqkgh->btkh", d_z, grouped(q)),
          _einsum("bkgqt,bqkgh->btkh", p, grouped(d_out)))


def _scores(q, k, tokens, order):
  """float32 [B, K, G, Q, T], scaled; what is not visible is `_LOWEST`."""
  B, Q, N, H = q.shape
  K = k.shape[2]
  z = _einsum("bqkgh,btkh->bkgqt", q.reshape(B, Q, K, N // K, H), k) * H ** -0.5
  return jnp.where(visible(tokens, order, Q, k.shape[1])[:, None, None], z, _LOWEST)


def _einsum(letters, x, y):
  # Full-precision products: on an accelerator the default for float32 is a lower one.
  return jnp.einsum(letters, x.astype(jnp.float32), y.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
