"""The attention op: one signature, several implementations, on one device or with a sequence over many.

Letters: B batch, S sequence, N query heads, K key/value heads, H head size.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from policylong.attention import blockwise, cudnn, reference, splash, zigzag
from policylong.attention import context as contexts
from policylong.attention.masks import Order, Tokens
from policylong.devices import mesh as meshes
from policylong.errors import UserError

# What an implementation is: two functions of arrays of one device, of any number of queries and keys.
#   forward(q, k, v, tokens, order, dtype) -> (out, lse): the attended values over these keys, as `dtype`, and in
#     float32 the logarithm of the sum of e^score, by which results over different keys are merged. A query that
#     sees none of them gets an lse below -1e28 (and any finite out).
#   backward(q, k, v, tokens, order, out, lse, d_out) -> (dq, dk, dv), float32: with (out, lse) over *all* keys,
#     the part of the gradients that comes from these.
IMPLEMENTATIONS: dict[str, contexts.Local] = {
    "blockwise": contexts.Local(blockwise.forward, blockwise.backward),
    "reference": contexts.Local(reference.forward, reference.backward),
    "splash": contexts.Local(splash.forward, splash.backward),
}
# Needs no lse of ours: see cudnn.py.
_ALL = (*IMPLEMENTATIONS, "cudnn")

# The name under which the attended values and their lse can be kept by a remat policy: computing them again
# costs more than anything else in a layer of a long sequence.
CHECKPOINT_NAME = "attention"


@dataclasses.dataclass(frozen=True)
class _How:
  """What is fixed while a program is traced."""
  implementation: str
  context: str | None
  mesh: bool


class _Segments(NamedTuple):
  """Arrays that belong to tokens, [B, S] each or None."""
  positions: jax.Array | None
  segment_ids: jax.Array | None


def attention(
    q: Float[Array, "B S N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], *,
    positions: Int[Array, "B S"] | None = None, segment_ids: Int[Array, "B S"] | None = None,
    context: str | None = None, implementation: str | None = None) -> Float[Array, "B S N H"]:
  """Causal grouped-query self-attention with scale 1/sqrt(H).

  A query sees a key iff the key does not stand behind it and both are in the same segment; segment 0 (padding)
  is a segment like any other. Under a mesh (`jax.set_mesh`) the batch lies over data and fsdp and the heads over
  tensor.

  Args:
    q: queries; query head n uses key/value head n // (N // K).
    k: keys, already rotated.
    v: values.
    positions: where tokens stand, in any order and more than once. None, which all implementations understand: in
      their order (in the zig-zag one with `context`).
    segment_ids: which document of a packed row a token belongs to; None means one document a row.
    context: None: each device holds whole sequences. "gather" or "ring": the sequence lies over the mesh's context
      axis, in the layout of `zigzag.zigzag`, and keys are gathered or travel round (see `context.py`).
    implementation: "blockwise", "reference", "splash" or "cudnn"; None chooses one and logs the choice once.

  Returns:
    The attended values in q's dtype. `remat_policy` keeps them and their lse under the name `CHECKPOINT_NAME`.

  Raises:
    UserError: the implementation or context does not exist or cannot be used here, and why.
    ValueError: shapes that do not fit together.
  """
  _check_shapes(q, k, v, positions, segment_ids)
  mesh = meshes.current()
  context = _checked_context(context, q.shape[1], mesh.shape["context"] if mesh else 1, positions)
  implementation = _choose(implementation, q, positions, segment_ids, context)
  if implementation == "cudnn":
    run = _on_mesh(cudnn.attention, "qkk", "q") if mesh else cudnn.attention
    return run(q, k, v)
  return _attention(q, k, v, _Segments(positions, segment_ids), _How(implementation, context, mesh is not None))


def remat_policy(names: Sequence[str]) -> Callable[..., bool]:
  """For `jax.checkpoint`: keeps what has one of these names; by `CHECKPOINT_NAME` whatever the implementation."""
  named = jax.checkpoint_policies.save_only_these_names(*names)
  if CHECKPOINT_NAME not in names:
    return named
  return jax.checkpoint_policies.save_from_both_policies(named, cudnn.is_forward)


# The derivative stands outside of shard_map: so the two named values are the whole arrays, which a remat policy
# sees, and nothing has to be known about how shard_map is differentiated.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, segments, how):
  return _forward(q, k, v, segments, how)[0]


def _forward(q, k, v, segments, how):
  out, lse = _apply(how, "forward", "qkks", "ql")(q, k, v, segments)
  out, lse = (checkpoint_name(x, CHECKPOINT_NAME) for x in (out, lse))
  return out, (q, k, v, segments, out, lse)


def _backward(how, residuals, d_out):
  gradients = _apply(how, "backward", "qkksqlq", "qkk")(*residuals, d_out)
  return *(gradient.astype(x.dtype) for gradient, x in zip(gradients, residuals[:3])), None


_attention.defvjp(_forward, _backward)


def _apply(how: _How, direction: str, arguments: str, results: str) -> Callable:
  """The forward or backward function of what was chosen, over the devices."""
  local = IMPLEMENTATIONS[how.implementation]

  def whole(q, k, v, segments, *rest):
    positions, ids = segments
    tokens = Tokens(positions, positions, ids, ids)
    order = Order((0,)) if positions is None else None
    if direction == "forward":
      return local.forward(q, k, v, tokens, order, q.dtype)
    return local.backward(q, k, v, tokens, order, *rest)

  def spread(q, k, v, segments, *rest):
    function = getattr(contexts, f"{how.context}_{direction}")
    return function(local, "context", q, k, v, segments.segment_ids, *rest)

  function = whole if how.context is None else spread
  return _on_mesh(function, arguments, results, how.context) if how.mesh else function


def _on_mesh(function: Callable, arguments: str, results: str, context: str | None = None) -> Callable:
  """`function` of each device's share; one letter an argument: q(ueries), k(eys), l(se), s(egments)."""
  sequence = "sequence" if context else None
  axes = {"q": ("batch", sequence, "heads", None), "k": ("batch", sequence, "kv_heads", None),
          "l": ("batch", sequence, "heads"), "s": ("batch", sequence)}
  def specs(letters: str) -> tuple[PartitionSpec, ...]:
    return tuple(meshes.partition_spec(axes[letter]) for letter in letters)
  found: Any = specs(results)
  # No replication is tracked inside: the derivatives are ours, and Pallas has no rules for it.
  return jax.shard_map(function, in_specs=specs(arguments), out_specs=found if len(found) > 1 else found[0],
                       check_vma=False)


def _choose(implementation: str | None, q: jax.Array, positions, segment_ids, context: str | None) -> str:
  """The implementation to use: the one asked for, or the best for the platform."""
  platform = meshes.platform()
  if implementation is not None and implementation not in _ALL:
    raise UserError(f"attention implementation {implementation!r} does not exist: use one of {', '.join(_ALL)}")
  reasons = {
      "cudnn": cudnn.unsuitable(q, platform, packed=segment_ids is not None, positions=positions is not None,
                                context=context is not None),
      "splash": splash.unsuitable(platform, positions=positions is not None),
  }
  if implementation is None:
    wanted = {"tpu": ["splash"], "gpu": ["cudnn"], "cuda": ["cudnn"]}.get(platform, [])
    implementation = next((name for name in wanted if reasons[name] is None), "blockwise")
    _log_choice(implementation, "; ".join(f"not {name}: {reasons[name]}" for name in wanted if reasons[name]))
  elif reason := reasons.get(implementation):
    raise UserError(f"attention implementation {implementation!r} cannot be used here: {reason}; leave it open, or "
                    "use 'blockwise'")
  return implementation


def _checked_context(context: str | None, length: int, devices: int, positions) -> str | None:
  """What `context` comes to on an axis of so many devices."""
  if context not in (None, "gather", "ring"):
    raise UserError(f"attention context {context!r} does not exist: use None, 'gather' or 'ring'")
  if context == "ring" and devices == 1:
    raise UserError("ring attention needs a context axis of at least 2 devices, the mesh has 1: use 'gather', or a "
                    "mesh with context 2 or more")
  if context is None or devices == 1:
    return None
  if positions is not None:
    raise UserError(f"attention over a context axis of {devices} devices knows tokens by their place in the zig-zag "
                    "layout: leave positions out")
  zigzag.check_length(length, devices)
  return context


@functools.cache
def _log_choice(name: str, why: str) -> None:
  """Cached, so that a choice is logged once a process and not once a trace."""
  logging.getLogger(__name__).info("attention: using %s%s", name, f" ({why})" if why else "")


def _check_shapes(q, k, v, positions, segment_ids) -> None:
  B, S, N, H = q.shape
  K = k.shape[2]
  if k.shape != (B, S, K, H) or v.shape != k.shape:
    raise ValueError(f"q {q.shape}, k {k.shape}, v {v.shape} do not agree in batch, length or head size")
  if N % K:
    raise ValueError(f"{N} query heads cannot share {K} key/value heads: {N} is not a multiple of {K}")
  for name, array in (("positions", positions), ("segment_ids", segment_ids)):
    if array is not None and array.shape != (B, S):
      raise ValueError(f"{name} has shape {array.shape}, wanted {(B, S)}")
