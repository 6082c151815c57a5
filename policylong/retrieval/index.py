"""What a vector index is, the checks that stand before every one of them, and how several lists of hits become one."""

from typing import Protocol

import numpy as np

from policylong.errors import UserError


class VectorIndex(Protocol):
  """Finds the rows with the highest dot product; rows and queries of length 1 make it their cosine."""
  num_rows: int
  dim: int

  def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best rows of each query, best first, of equal scores the lower row first.

    Args:
      queries: float32[n, D]; n may be 0.
      k: at least 1; it may be more than there are rows.

    Returns:
      rows int32[n, k] and scores float32[n, k]; where there is no hit, row -1 and score -inf.

    Raises:
      UserError: a query holds NaN or infinity.
    """


def checked_rows(rows: np.ndarray) -> np.ndarray:
  """Rows as contiguous [N, D], N at least 1: float16 as they are, others as float32.

  Raises:
    UserError: there is none, or one holds NaN or infinity (native code would abort the process).
  """
  rows = np.ascontiguousarray(rows, None if rows.dtype == np.float16 else np.float32)
  if rows.ndim != 2:
    raise ValueError(f"rows have shape {rows.shape}, wanted [N, D]")
  if not len(rows):
    raise UserError("there are 0 rows to index, wanted at least 1: the corpus has no chunk")
  _check_finite(rows, "row")
  return rows


def checked_queries(queries: np.ndarray, dim: int, k: int) -> np.ndarray:
  """Queries as contiguous float32[n, dim].

  Raises:
    UserError: one holds NaN or infinity (native code would answer with row 0), or has another dimension.
  """
  if k < 1:
    raise ValueError(f"k is {k}, wanted at least 1")
  queries = np.ascontiguousarray(queries, np.float32)
  if not len(queries):
    return np.zeros((0, dim), np.float32)
  if queries.ndim != 2 or queries.shape[1] != dim:
    raise UserError(f"the queries have shape {list(queries.shape)}, wanted [n, {dim}] as the index has: use the "
                    "embedder that the index was built with")
  _check_finite(queries, "query")
  return queries


def nothing(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
  """The answer without a hit: rows -1, scores -inf, both [n, k]."""
  return np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)


def merge(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """The k best of each line of hits, rows int32[n, m] and scores float32[n, m]: of equal scores the lower row first."""
  order = np.lexsort((rows, -scores), axis=1)[:, :k]
  return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _check_finite(vectors: np.ndarray, what: str, block: int = 65536) -> None:
  for start in range(0, len(vectors), block):
    finite = np.isfinite(vectors[start:start + block]).all(axis=1)
    if not finite.all():
      raise UserError(f"{what} {start + int(np.argmin(finite))} of {len(vectors)} holds NaN or infinity, wanted "
                      "finite numbers: the embedder's weights may be damaged")
