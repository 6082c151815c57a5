"""An index in pieces: each is built as if it were alone, in memory that the host has, and all are searched as one.

Where the pieces lie depends on the corpus and the config alone, not on how many processes there are, who builds which,
or what memory was free: so the same trees are made and the same chunks found.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from policylong import config as config_lib
from policylong.retrieval import memory, rows
from policylong.retrieval.index import VectorIndex, checked_queries, merge, nothing
from policylong.retrieval.scann_index import LEAST_ROWS, number_of_leaves


class PiecedIndex:
  """Indexes over parts of the rows that follow each other, as one.

  Of equal scores the lower row comes first, across pieces too: exact pieces answer as one exact index does.

  Attributes:
    pieces: they.
    num_rows: N, of all pieces.
    dim: D.
  """

  def __init__(self, pieces: Sequence[VectorIndex]):
    """Takes the pieces in the order of their rows; at least one."""
    self.pieces = tuple(pieces)
    self.num_rows, self.dim = sum(piece.num_rows for piece in pieces), pieces[0].dim

  def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """See `VectorIndex.search`."""
    queries = checked_queries(queries, self.dim, k)
    best_rows, best_scores = nothing(len(queries), k)
    first = 0
    for piece in self.pieces:
      found, scores = piece.search(queries, k)
      found = np.where(found < 0, found, found + np.int32(first))
      best_rows, best_scores = merge(np.concatenate([best_rows, found], axis=1),
                                     np.concatenate([best_scores, scores], axis=1), k)
      first += piece.num_rows
    return best_rows, best_scores


@dataclasses.dataclass(frozen=True)
class IndexMemory:
  """Bytes of an index over a corpus, estimated from measured bytes a row.

  build: of the memory of the process that takes most, while it is built; the embedder's not included.
  search: of the same process, while it is searched; an exact index's is the device's.
  disk: of `corpus.cache_dir`, vectors and index.
  """
  build: int
  search: int
  disk: int


def index_memory(config: config_lib.Retrieval, chunks: int, dim: int, processes: int = 1) -> IndexMemory:
  """What the index of so many chunks will take.

  Args:
    config: of the index.
    chunks: of the corpus.
    dim: numbers of a vector, as `embedders.embedder_dim` says.
    processes: that share it.
  """
  stored = rows.BYTES * dim * chunks
  if config.index == "exact":
    files = math.ceil(math.ceil(chunks / rows.SHARD_ROWS) / processes)
    part = rows.BYTES * dim * min(chunks, files * rows.SHARD_ROWS)
    return IndexMemory(2 * part, part, stored)
  built, searched = [], []
  for piece in piece_ranges(chunks, dim, config.piece_gib):
    leaves = number_of_leaves(len(piece), piece_leaves(len(piece), chunks, config.leaves))
    built.append(memory.build_bytes(len(piece), dim, leaves))
    searched.append(memory.search_bytes(len(piece), dim, leaves))
  shares = [range(len(built) * i // processes, len(built) * (i + 1) // processes) for i in range(processes)]
  return IndexMemory(max(built), max(sum(searched[i] for i in share) for share in shares), stored + sum(searched))


def piece_ranges(num_rows: int, dim: int, gib: float) -> list[range]:
  """The rows of each piece: whole files, as many in each as in the others (or one more), built in `gib` GiB or less."""
  most = max(1, memory.rows_of_build(gib * 2**30, dim) // rows.SHARD_ROWS)
  files = math.ceil(num_rows / rows.SHARD_ROWS)
  count = math.ceil(files / most)
  bounds = [min(num_rows, files * i // count * rows.SHARD_ROWS) for i in range(count + 1)]
  return [range(first, last) for first, last in itertools.pairwise(bounds)]


def piece_leaves(piece_rows: int, num_rows: int, leaves: int | None) -> int | None:
  """`retrieval.leaves` for a piece of the corpus: leaves as large as those of one tree over all rows.

  None is as in the config; a piece of too few rows for a tree has none either.
  """
  if leaves is None or piece_rows == num_rows:
    return leaves
  return max(1, round(leaves * piece_rows / num_rows)) if piece_rows >= LEAST_ROWS else None
