"""The attention op: one signature, several implementations.

Letters: B batch, S sequence, N query heads, K key/value heads, H head size.
"""

import functools
import logging
from collections.abc import Callable

from jaxtyping import Array, Float, Int

from policylong.attention import blockwise, reference
from policylong.errors import UserError

IMPLEMENTATIONS: dict[str, Callable] = {"blockwise": blockwise.attention, "reference": reference.attention}


def attention(
    q: Float[Array, "B S N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], *,
    positions: Int[Array, "B S"] | None = None, segment_ids: Int[Array, "B S"] | None = None,
    implementation: str | None = None) -> Float[Array, "B S N H"]:
  """Causal grouped-query self-attention with scale 1/sqrt(H).

  A query sees a key iff the key's position is not greater than its own and both are in the same
  segment; segment 0 (padding) is a segment like any other.

  Args:
    q: queries; query head n uses key/value head n // (N // K).
    k: keys, already rotated.
    v: values.
    positions: tokens; None means 0 .. S-1 in every row.
    segment_ids: which document of a packed row a token belongs to; None means one document a row.
    implementation: a name in `IMPLEMENTATIONS`; None chooses one and logs the choice once.

  Returns:
    The attended values in q's dtype.

  Raises:
    UserError: the implementation does not exist.
    ValueError: shapes that do not fit together.
  """
  _check_shapes(q, k, v, positions, segment_ids)
  if implementation is None:
    implementation = "blockwise"
    _log_choice(implementation)
  if implementation not in IMPLEMENTATIONS:
    raise UserError(f"attention implementation {implementation!r} does not exist: "
                    f"use one of {', '.join(IMPLEMENTATIONS)}")
  return IMPLEMENTATIONS[implementation](q, k, v, positions, segment_ids)


@functools.cache
def _log_choice(name: str) -> None:
  """Cached, so that a choice is logged once a process and not once a trace."""
  logging.getLogger(__name__).info("attention: using %s", name)


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
