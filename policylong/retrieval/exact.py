"""Exact search on the device: every row is compared with every query. The oracle of all recall numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from policylong.retrieval.index import checked_queries, checked_rows, nothing

# One compiled program has this many queries; fewer are padded, so a query's scores depend on it alone.
_QUERIES = 64
# Rows compared at a time: 64 queries x 4096 rows of scores are 1 MB.
_BLOCK = 4096


class ExactIndex:
  """All rows on the default device, in blocks; the highest dot products by brute force, in float32.

  Attributes:
    num_rows: N.
    dim: D.
  """

  def __init__(self, rows: np.ndarray, of_rows: int = 0):
    """Keeps rows [N, D].

    Args:
      rows: vectors of length 1, float16 or float32: so they are kept.
      of_rows: how many rows the index has that these are a part of, if they are: blocks of the same size give
        scores of the same bits.

    Raises:
      UserError: there is no row, or one holds NaN or infinity.
    """
    rows = checked_rows(rows)
    self.num_rows, self.dim = rows.shape
    size = min(_BLOCK, max(self.num_rows, of_rows))
    count = -(-self.num_rows // size)
    if count * size > self.num_rows:
      rows = np.concatenate([rows, np.zeros((count * size - self.num_rows, self.dim), rows.dtype)])
    self._blocks = jnp.array(rows.reshape(count, size, self.dim))

  def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """See `VectorIndex.search`; equal scores come with the lower row first."""
    queries = checked_queries(queries, self.dim, k)
    rows, scores = nothing(len(queries), k)
    most = min(k, self.num_rows)
    for start in range(0, len(queries), _QUERIES):
      part = queries[start:start + _QUERIES]
      padded = np.zeros((_QUERIES, self.dim), np.float32)
      padded[:len(part)] = part
      found, values = _search(self._blocks, padded, self.num_rows, k=most)
      rows[start:start + len(part), :most] = np.asarray(found)[:len(part)]
      scores[start:start + len(part), :most] = np.asarray(values)[:len(part)]
    return rows, scores


@functools.partial(jax.jit, static_argnames="k")
def _search(blocks: jax.Array, queries: jax.Array, num_rows: int, *, k: int) -> tuple[jax.Array, jax.Array]:
  """Top k of blocks [count, size, D], of which the first `num_rows` rows are real."""
  count, size, _ = blocks.shape

  def step(best, numbered):
    number, block = numbered
    scores = jnp.matmul(queries, block.T.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    row = number * size + jnp.arange(size, dtype=jnp.int32)
    scores = jnp.where(row < num_rows, scores, -jnp.inf)
    values, places = lax.top_k(scores, min(k, size))
    # Of equal values top_k takes the first, and what was found before has the lower rows.
    values = jnp.concatenate([best[0], values], axis=1)
    rows = jnp.concatenate([best[1], row[places]], axis=1)
    values, places = lax.top_k(values, k)
    return (values, jnp.take_along_axis(rows, places, axis=1)), None

  empty = (jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), num_rows, jnp.int32))
  (values, rows), _ = lax.scan(step, empty, (jnp.arange(count, dtype=jnp.int32), blocks))
  return rows, values
