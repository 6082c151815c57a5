"""Search by ScaNN (arXiv 1908.10396) in the host process, with a guard before each of its traps.

Below 20,000 rows ScaNN compares all of them; from there it searches the nearest of about sqrt(N) leaves,
scores by quantised products and computes the best again in bfloat16, so its scores there are within 0.004
of the cosine. How many leaves are searched is tuned on real queries against exact search.
"""

import logging
import math
import os
import pathlib
import time

import numpy as np
from scann.scann_ops.py import scann_builder, scann_ops_pybind

from policylong.errors import Damaged, UserError
from policylong.retrieval.exact import ExactIndex
from policylong.retrieval.index import checked_queries, checked_rows, nothing
from policylong.storage import manifest
from policylong.storage.workdir import read_json, write_json

# Below, comparing all rows is as fast as a tree.
BRUTE_FORCE_BELOW = 20_000
# Recall is measured on the ten best, with at most so many queries.
TUNED_AT = 10
TUNING_QUERIES = 1000
# Candidates of the quantised scores that are computed again, at least.
_REORDERED = 150
# The quantiser has 16 centres for each pair of dimensions and needs a row for each.
LEAST_ROWS = 16
# Queries are filled up to a multiple of it. ScaNN compares a handful of queries by another kernel, whose scores
# differ in the last bit (measured: up to 6 of 16 dimensions, up to 34 of 1024, also as what is left over when it
# cuts a batch into 256s); filled up, a query's scores depend on it alone.
_QUERIES = 64
# Enough: leaves beyond it cost time and find nothing.
_RECALL_ENOUGH = 0.999
_CURVE = "curve.json"
_REMEDY = "delete the folder and build the index again"


class ScannIndex:
  """A ScaNN searcher over rows 0 .. N - 1; built by `build`, or loaded from what `save` wrote.

  Attributes:
    num_rows: N.
    dim: D.
    leaves: number of leaves; 0 for brute force.
    leaves_to_search: how many of them a query visits; 0 for brute force.
    curve: [{"leaves", "recall", "queries_per_second"}] of the tuning; empty for brute force.
  """

  def __init__(self, searcher, num_rows: int, dim: int, leaves: int, leaves_to_search: int, curve: list[dict]):
    """Use `build` or `load`."""
    self._searcher = searcher
    self.num_rows, self.dim = num_rows, dim
    self.leaves, self.leaves_to_search, self.curve = leaves, leaves_to_search, curve

  @classmethod
  def build(cls, rows: np.ndarray, *, leaves: int | None, target_recall: float, queries: np.ndarray
            ) -> "ScannIndex":
    """An index over rows [N, D], float16 or float32.

    Args:
      rows: vectors of length 1.
      leaves: None for brute force below 20,000 rows and a tree of about sqrt(N) leaves from there; a number
        for a tree of so many.
      target_recall: recall@10 against exact search that the tree must reach. If no number of leaves
        reaches it, the best is taken and a warning says so.
      queries: float32[n, D], such as will be searched for; at most 1000 are used. Brute force needs none.

    Raises:
      UserError: no row, NaN or infinity, more leaves than rows, or too few rows for a tree.
    """
    rows = checked_rows(rows)
    leaves = number_of_leaves(len(rows), leaves)
    count, dim = rows.shape
    if leaves:
      if not len(queries):
        raise ValueError("a tree is tuned on queries, and there are none")
      queries = checked_queries(queries[:TUNING_QUERIES], dim, TUNED_AT)
      truth, _ = ExactIndex(rows).search(queries, TUNED_AT)  # before the tree, which needs the memory
    builder = scann_ops_pybind.builder(rows.astype(np.float32, copy=False), TUNED_AT, "dot_product")
    del rows
    if not leaves:
      return cls(builder.score_brute_force().build(), count, dim, 0, 0, [])
    # ScaNN's default, random centres, gives another tree at each build; k-means++ gives the same bytes.
    searcher = (builder.tree(leaves, leaves, random_init=False)
                .score_ah(2, anisotropic_quantization_threshold=0.2)
                .reorder(_REORDERED, quantize=scann_builder.ReorderType.BFLOAT16).build())
    index = cls(searcher, count, dim, leaves, leaves, [])
    index._tune(queries, truth, target_recall)
    return index

  def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """See `VectorIndex.search`."""
    queries = checked_queries(queries, self.dim, k)
    rows, scores = nothing(len(queries), k)
    if not len(queries):
      return rows, scores
    most = min(k, self.num_rows)
    count = len(queries)
    queries = np.concatenate([queries, np.zeros((-count % _QUERIES, self.dim), np.float32)])
    if self.leaves:
      found, values = self._searcher.search_batched_parallel(
          queries, final_num_neighbors=most, pre_reorder_num_neighbors=max(_REORDERED, 4 * most),
          leaves_to_search=self.leaves_to_search)
    else:
      found, values = self._searcher.search_batched_parallel(queries, final_num_neighbors=most)
    found, values = found[:count], values[:count]
    # A hit that is missing comes back as row 0 with the score NaN.
    missing = np.isnan(values)
    scores[:, :most] = np.where(missing, -np.inf, values)
    rows[:, :most] = np.where(missing, -1, found.astype(np.int64))
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

  def save(self, directory: str | os.PathLike, of: str) -> None:
    """Writes the index into a folder that is made; its manifest with the hash of each file comes last.

    Args:
      directory: the folder.
      of: what it is the index of.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True)
    self._searcher.serialize(str(directory), relative_path=True)  # by default the paths would be absolute
    write_json(directory / _CURVE, {"recall_at": TUNED_AT, "leaves": self.leaves,
                                    "leaves_to_search": self.leaves_to_search, "curve": self.curve})
    manifest.write(directory, kind="scann", of=of, rows=self.num_rows, dim=self.dim, leaves=self.leaves,
                   leaves_to_search=self.leaves_to_search)

  @classmethod
  def load(cls, directory: str | os.PathLike, of: str) -> "ScannIndex":
    """Reads what `save` wrote.

    Raises:
      Damaged: it is the index of something else, or the files are not exactly those that its manifest lists. ScaNN
        would unpickle a file of document ids that it finds beside an index, so nothing else may lie there.
    """
    directory = pathlib.Path(directory)
    try:
      told = manifest.check(directory, alone=True)
      if told.get("of") != of:
        raise Damaged(directory, f"it is the index of {told.get('of')}, wanted {of}")
      if pickled := [name for name in told["files"] if name.endswith(".pkl")]:
        raise Damaged(directory / pickled[0], "no index has it")
      curve = read_json(directory / _CURVE)["curve"]
    except Damaged as error:
      raise Damaged(error.path, error.reason, _REMEDY) from error
    return cls(scann_ops_pybind.load_searcher(str(directory), assets_backcompat_shim=False), told["rows"], told["dim"],
               told["leaves"], told["leaves_to_search"], curve)

  def _tune(self, queries: np.ndarray, truth: np.ndarray, target: float) -> None:
    """Takes the fewest leaves whose recall@10 reaches `target`, measured against exact search."""
    for leaves in _steps(self.leaves):
      self.leaves_to_search = leaves
      start = time.perf_counter()
      found, _ = self.search(queries, TUNED_AT)
      seconds = time.perf_counter() - start
      recall = recall_of(found, truth)
      self.curve.append({"leaves": leaves, "recall": recall,
                         "queries_per_second": round(len(queries) / seconds, 1)})
      if recall >= _RECALL_ENOUGH:
        break
    reached = [point for point in self.curve if point["recall"] >= target]
    chosen = reached[0] if reached else max(self.curve, key=lambda point: point["recall"])
    if not reached:
      logging.warning("no number of leaves reaches recall@%d %.3f on %d queries; taken is %d of %d leaves with "
                      "recall %.3f", TUNED_AT, target, len(queries), chosen["leaves"], self.leaves, chosen["recall"])
    self.leaves_to_search = chosen["leaves"]


def number_of_leaves(rows: int, leaves: int | None) -> int:
  """How many leaves an index of so many rows has; 0 for brute force.

  Raises:
    UserError: more leaves than rows were asked for, or a tree over too few rows.
  """
  if leaves is None:
    return 0 if rows < BRUTE_FORCE_BELOW else round(math.sqrt(rows))
  if leaves > rows:
    raise UserError(f"retrieval.leaves is {leaves}, more than the {rows} chunks of the corpus: make it smaller, "
                    "or None")
  if rows < LEAST_ROWS:
    raise UserError(f"retrieval.leaves is {leaves}, but a tree needs at least {LEAST_ROWS} chunks and the corpus "
                    f"has {rows}: set it to None")
  return leaves


def recall_of(found: np.ndarray, truth: np.ndarray) -> float:
  """The share of true rows [n, k] that were found [n, k]; places of `truth` without a row do not count."""
  hits = (found[:, :, None] == truth[:, None, :]) & (truth[:, None, :] >= 0)
  return float(hits.sum() / np.sum(truth >= 0))


def _steps(leaves: int) -> list[int]:
  """1, 2, 3, 4, 6, 8, 12, ... and all."""
  steps = {2 ** i for i in range(leaves.bit_length())} | {3 * 2 ** i for i in range(leaves.bit_length())}
  return sorted(step for step in steps | {leaves} if step <= leaves)
