"""The zig-zag layout: which tokens of a sequence a device of the context axis holds.

Causal attention costs a late token more than an early one. A sequence over C devices is cut into 2 C equal
chunks, and device i holds chunks i and 2 C - 1 - i: every device then has the same work. The layout is applied
once, on the host, to tokens, labels and whatever else belongs to a token; the model never reorders anything.
"""

import jax
import numpy as np

from policylong.errors import UserError


def chunk_order(context: int) -> list[int]:
  """The chunk that stands at each of the 2 C places of a zig-zag sequence: 0, 2C-1, 1, 2C-2, ..."""
  return [chunk for device in range(context) for chunk in (device, 2 * context - 1 - device)]


def zigzag[Array: (np.ndarray, jax.Array)](x: Array, context: int, axis: int) -> Array:
  """Brings the tokens along `axis` from their own order into the layout; C = 1 changes nothing.

  Raises:
    UserError: 2 C does not divide the number of tokens.
  """
  return _reorder(x, context, axis, chunk_order(context))


def unzigzag[Array: (np.ndarray, jax.Array)](x: Array, context: int, axis: int) -> Array:
  """The inverse of `zigzag`; raises as it does."""
  order = chunk_order(context)
  return _reorder(x, context, axis, [order.index(chunk) for chunk in range(2 * context)])


def check_length(length: int, context: int) -> None:
  """Raises UserError where 2 C does not divide the number of tokens (C = 1 divides any)."""
  if context > 1 and length % (2 * context):
    raise UserError(f"a sequence of {length} tokens cannot be spread over a context axis of {context} devices: each "
                    f"takes two chunks, so {2 * context} must divide it (the nearest are "
                    f"{length // (2 * context) * 2 * context} and {-(-length // (2 * context)) * 2 * context})")


def _reorder(x, context, axis, order):
  if context == 1:
    return x
  check_length(x.shape[axis], context)
  axis %= x.ndim
  chunks = x.reshape(*x.shape[:axis], 2 * context, -1, *x.shape[axis + 1:])
  index = (slice(None),) * axis + (np.asarray(order),)
  return chunks[index].reshape(x.shape)
