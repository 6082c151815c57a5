"""One index over the rows of all processes: each searches its own for everybody's queries."""

import numpy as np

from policylong.devices import hosts
from policylong.retrieval.index import VectorIndex, checked_queries, merge, nothing

# Queries that are answered at a time: 1024 with 144 hits each are 1.2 MB from every process.
_QUERIES = 1024


class ShardedIndex:
  """The rows of every process behind one `search`, which all processes call together with the same k.

  Equal to one index over the same rows, or over the same pieces, in one process: a row's score does not depend on the
  part it is in.

  Attributes:
    num_rows: N, of all processes.
    dim: D.
  """

  def __init__(self, part: VectorIndex | None, first_row: int, num_rows: int, dim: int):
    """Takes this process's part, which begins at row `first_row` of all; None where it has no row."""
    self._part, self._first_row = part, first_row
    self.num_rows, self.dim = num_rows, dim

  def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """See `VectorIndex.search`; collective, and the processes may have different numbers of queries."""
    queries = checked_queries(queries, self.dim, k)
    gathered = hosts.all_gather(queries)
    start = sum(map(len, gathered[:hosts.index()]))
    everyones = np.concatenate(gathered)
    rows, scores = nothing(len(queries), k)
    for first in range(0, len(everyones), _QUERIES):
      found = self._search_part(everyones[first:first + _QUERIES], k)
      # [n, P k]: the parts lie behind each other as their rows do.
      of_all = [np.concatenate(hosts.all_gather(x.T)).T for x in found]
      mine = slice(max(first, start), min(first + _QUERIES, start + len(queries)))
      if mine.start < mine.stop:
        all_rows, all_scores = (x[mine.start - first:mine.stop - first] for x in of_all)
        merged = merge(all_rows, all_scores, k)
        for out, part in zip((rows, scores), merged):
          out[mine.start - start:mine.stop - start] = part
    return rows, scores

  def _search_part(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if self._part is None:
      return nothing(len(queries), k)
    rows, scores = self._part.search(queries, k)
    return np.where(rows < 0, rows, rows + np.int32(self._first_row)), scores
