"""The index of a corpus, built once and used again by later rounds and runs.

In `cache_dir`:

  rows-<version>/     the chunks' vectors, by embedder and corpus: see rows.py
  index-<version>/    a piece of ScaNN's index: its files, curve.json and MANIFEST.json, by rows and index settings

Of several processes each embeds a part of the rows, whole files of them. An exact index is shared out likewise; of
ScaNN's each process builds and holds some of the pieces, which are the same for any number of processes. A process that
does not see what another embedded, as they share no folder, embeds what its pieces need.

A folder of a piece is renamed when whole: a process that is killed at any instant is gone on with by the next, which
ends with the same bytes and has lost one file of vectors, or one piece. What is damaged is made again.
"""

import functools
import importlib.metadata
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Callable

import numpy as np

from policylong import config as config_lib
from policylong import paths
from policylong.devices import hosts
from policylong.errors import Damaged, UserError
from policylong.retrieval import memory
from policylong.retrieval.embedders import Embedder
from policylong.retrieval.exact import ExactIndex
from policylong.retrieval.files import version_of
from policylong.retrieval.index import VectorIndex
from policylong.retrieval.pieces import PiecedIndex, index_memory, piece_leaves, piece_ranges
from policylong.retrieval.rows import Chunks, StoredRows
from policylong.retrieval.scann_index import TUNING_QUERIES, ScannIndex, number_of_leaves
from policylong.retrieval.sharded import ShardedIndex
from policylong.storage import lock

_QUERY_WORDS = 30

log = logging.getLogger(__name__)


def open_index(corpus: Chunks, embedder: Embedder, config: config_lib.Retrieval, cache_dir: str | os.PathLike,
               seed: int) -> VectorIndex:
  """The index over all chunks of a corpus; row r of it is the corpus's chunk r.

  Of several processes, all open it together, and each holds its part.

  Args:
    corpus: the chunks.
    embedder: the embedder of `config`, which also embeds the queries.
    config: which index, with what settings.
    cache_dir: where it is kept.
    seed: chooses the queries that a tree of ScaNN is tuned on.

  Raises:
    UserError: the corpus has no chunk or fewer than there should be leaves, or there is too little memory.
  """
  if not corpus.num_chunks:
    raise UserError("the corpus has 0 chunks, wanted at least 1: nothing can be retrieved from it")
  number_of_leaves(corpus.num_chunks, config.leaves)  # refuses what fits no corpus of this size
  cache = paths.local(os.fspath(cache_dir))
  stored = StoredRows(corpus, embedder, cache)
  mine: VectorIndex | None
  if config.index == "exact":
    check_memory(config, stored.num_rows, stored.dim, built=False)
    files = hosts.share(stored.num_files)
    stored.embed(files)
    part = stored.of_files(files)
    mine, first = ExactIndex(stored.read(part), of_rows=stored.num_rows) if part else None, part.start
  else:
    ranges = piece_ranges(stored.num_rows, stored.dim, config.piece_gib)
    pieces = [_Piece(stored, ranges[number], config, cache, seed) for number in hosts.share(len(ranges))]
    queries = functools.cache(lambda: embedder.embed_queries(sample_queries(corpus, TUNING_QUERIES, seed)))
    mine, first = _open_pieces(pieces, stored, config, queries), pieces[0].rows.start if pieces else 0
  if hosts.count() == 1:
    return mine
  return ShardedIndex(mine, first, corpus.num_chunks, embedder.dim)


def check_memory(config: config_lib.Retrieval, chunks: int, dim: int, built: bool) -> None:
  """Says what the index of so many chunks will take of this host's memory, and refuses what is not there.

  Args:
    config: of the index.
    chunks: of the corpus.
    dim: numbers of a vector.
    built: whether it is there and only to be searched.

  Raises:
    UserError: with both numbers.
  """
  needed, available = index_memory(config, chunks, dim, hosts.count()), memory.available_bytes()
  sentence = (f"the index over {chunks:,} chunks, {dim} numbers each, takes {needed.build / 1e9:.2f} GB of memory to "
              f"be built and {needed.search / 1e9:.2f} GB to be searched")
  log.info("%s; %.2f GB are free", sentence, available / 1e9)
  if max(0 if built else needed.build, needed.search) > available:
    raise UserError(f"{sentence}, and {available / 1e9:.2f} GB are free: if building takes more, lower "
                    f"retrieval.piece_gib = {config.piece_gib}; if searching, lower retrieval.dim or use more hosts")


def sample_queries(corpus: Chunks, count: int, seed: int) -> list[str]:
  """Windows of about 30 words at random places of random chunks: what an anchor's query looks like."""
  rng = np.random.default_rng([seed, count])
  rows = rng.choice(corpus.num_chunks, min(count, corpus.num_chunks), replace=False)
  queries = []
  for row in rows.tolist():
    words = corpus.chunk_text(row).split()
    start = int(rng.integers(max(1, len(words) - _QUERY_WORDS + 1)))
    queries.append(" ".join(words[start:start + _QUERY_WORDS]))
  return queries


class _Piece:
  """Some rows of ScaNN's index: where they are kept, and how they are built."""

  def __init__(self, stored: StoredRows, rows: range, config: config_lib.Retrieval, cache: pathlib.Path, seed: int):
    self.rows, self._stored, self._target = rows, stored, config.target_recall
    self._wanted = piece_leaves(len(rows), stored.num_rows, config.leaves)
    self._leaves = leaves = number_of_leaves(len(rows), self._wanted)
    # A tree depends on the queries it is tuned on, brute force on nothing but the rows.
    settings = {"target_recall": config.target_recall, "seed": seed} if leaves else {}
    settings |= {} if len(rows) == stored.num_rows else {"first": rows.start, "last": rows.stop}
    self.path = cache / ("index-" + version_of(rows=stored.version, leaves=leaves,
                                               scann=importlib.metadata.version("scann"), **settings))

  def build(self, queries: Callable[[], np.ndarray]) -> None:
    """Builds it, unless it is there; `queries` gives what a tree is tuned on."""
    with lock.held(self.path.with_suffix(".owner"), f"the index {self.path}", wait=True):
      if self.path.exists():
        return
      began = time.monotonic()
      index = ScannIndex.build(self._stored.read(self.rows), leaves=self._wanted, target_recall=self._target,
                               queries=queries() if self._leaves else np.zeros((0, self._stored.dim), np.float32))
      temporary = self.path.with_suffix(".building")
      shutil.rmtree(temporary, ignore_errors=True)  # of a build that was killed: ours, as the lock is
      index.save(temporary, self.path.name)
      os.rename(temporary, self.path)
      log.info("index: rows %d to %d built in %.0f s, %s", self.rows.start, self.rows.stop, time.monotonic() - began,
               f"{index.leaves_to_search} of {index.leaves} leaves searched" if index.leaves else "brute force")
    del index
    memory.give_back()

  def opened(self, queries: Callable[[], np.ndarray]) -> ScannIndex:
    """The index; what was built and is damaged is built again."""
    try:
      return self._load()
    except Damaged as error:
      log.warning("%s is damaged (%s): rows %d to %d of the index are built again", error.path, error.reason,
                  self.rows.start, self.rows.stop)
    self._remove()
    self.build(queries)
    return self._load()

  def _load(self) -> ScannIndex:
    index = ScannIndex.load(self.path, self.path.name)
    if (index.num_rows, index.dim) != (len(self.rows), self._stored.dim):
      raise Damaged(self.path, f"it has {index.num_rows} rows of {index.dim} numbers, wanted {len(self.rows)} of "
                               f"{self._stored.dim}")
    return index

  def _remove(self) -> None:
    """At one stroke: a kill leaves no half of it under its name."""
    gone = self.path.with_suffix(".damaged")
    with lock.held(self.path.with_suffix(".owner"), f"the index {self.path}", wait=True):
      shutil.rmtree(gone, ignore_errors=True)
      if self.path.exists():
        os.rename(self.path, gone)
        shutil.rmtree(gone)


def _open_pieces(pieces: list[_Piece], stored: StoredRows, config: config_lib.Retrieval,
                 queries: Callable[[], np.ndarray]) -> VectorIndex | None:
  """This process's pieces as one index, None where it has none. Collective: others may embed what they are built of."""
  built = not hosts.anyone(any(not piece.path.exists() for piece in pieces))
  check_memory(config, stored.num_rows, stored.dim, built)
  if not built:
    stored.embed(hosts.share(stored.num_files))
    hosts.barrier("the corpus is embedded")
    for piece in pieces:
      piece.build(queries)
  found = [piece.opened(queries) for piece in pieces]
  return PiecedIndex(found) if len(found) > 1 else found[0] if found else None
