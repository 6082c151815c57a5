"""The index of a corpus, built once and used again by later rounds and runs.

In `cache_dir`:

  rows-<version>/00000.npy ...   the chunks' vectors, float32[2048, D] a file, by embedder and corpus
  rows-<version>/MANIFEST.json   the sha256 of each, written when all are there
  index-<version>/               ScaNN's files, curve.json and MANIFEST.json, by rows and index settings

Of several processes each embeds and indexes a part of the rows, whole files of them: with a manifest and an
index of its own, whether they share the folder or not.

Every file of vectors is written to a temporary and renamed, and an index is a folder that is renamed when
whole: a process that is killed at any instant is gone on with by the next, which ends with the same bytes.
"""

import contextlib
import fcntl
import importlib.metadata
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from policylong import config as config_lib
from policylong import paths
from policylong.devices import hosts
from policylong.errors import UserError
from policylong.retrieval.embedders import Embedder
from policylong.retrieval.exact import ExactIndex
from policylong.retrieval.files import sha256_of, version_of
from policylong.retrieval.index import VectorIndex
from policylong.retrieval.scann_index import LEAST_ROWS, TUNING_QUERIES, ScannIndex, number_of_leaves
from policylong.retrieval.sharded import ShardedIndex
from policylong.storage.progress import Bar
from policylong.storage.workdir import read_json, write_json

SHARD_ROWS = 2048
_QUERY_WORDS = 30
_MANIFEST = "MANIFEST.json"


class Chunks(Protocol):
  """What is asked of a corpus."""
  version: str
  num_chunks: int

  def chunk_text(self, row: int) -> str:
    """The text of a chunk."""


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
    UserError: the corpus has no chunk or fewer than there should be leaves, what is stored is damaged, or
      there is too little memory.
  """
  if not corpus.num_chunks:
    raise UserError("the corpus has 0 chunks, wanted at least 1: nothing can be retrieved from it")
  number_of_leaves(corpus.num_chunks, config.leaves)  # refuses what fits no corpus of this size
  files = hosts.share(-(-corpus.num_chunks // SHARD_ROWS))
  part = range(files.start * SHARD_ROWS, min(files.stop * SHARD_ROWS, corpus.num_chunks))
  cache = paths.local(os.fspath(cache_dir))
  index = _open_part(corpus, part, embedder, config, cache, seed) if part else None
  if hosts.count() == 1:
    return index
  return ShardedIndex(index, part.start, corpus.num_chunks, embedder.dim)


def _open_part(corpus: Chunks, part: range, embedder: Embedder, config: config_lib.Retrieval, cache: pathlib.Path,
               seed: int) -> VectorIndex:
  """The index over the chunks of `part`, at least one; row r of it is the part's r-th."""
  rows_version = version_of(embedder=embedder.version, corpus=corpus.version, shard=SHARD_ROWS)
  directory = cache / f"rows-{rows_version}"
  if config.index == "exact":
    with _lock(directory, part):
      return ExactIndex(_rows(corpus, part, embedder, directory), of_rows=corpus.num_chunks)
  whole = len(part) == corpus.num_chunks
  wanted = config.leaves
  if wanted is not None and not whole:
    # Leaves as large as those of a tree over all rows; of too few rows for a tree, all are compared.
    wanted = max(1, round(wanted * len(part) / corpus.num_chunks)) if len(part) >= LEAST_ROWS else None
  leaves = number_of_leaves(len(part), wanted)
  # A tree depends on the queries it is tuned on, brute force on nothing but the rows.
  settings = {"target_recall": config.target_recall, "seed": seed} if leaves else {}
  if not whole:
    settings |= {"first": part.start, "last": part.stop}
  version = version_of(rows=rows_version, leaves=leaves, scann=importlib.metadata.version("scann"), **settings)
  with _lock(directory, part):
    target = cache / f"index-{version}"
    if not target.exists():
      rows = _rows(corpus, part, embedder, directory)
      queries = embedder.embed_queries(sample_queries(corpus, TUNING_QUERIES, seed)) if leaves else rows[:0]
      index = ScannIndex.build(rows, leaves=wanted, target_recall=config.target_recall, queries=queries)
      temporary = cache / f"index-{version}.building"
      shutil.rmtree(temporary, ignore_errors=True)  # of a build that was killed: ours, as the lock is
      index.save(temporary)
      os.rename(temporary, target)
    index = ScannIndex.load(target)
  if (index.num_rows, index.dim) != (len(part), embedder.dim):
    raise UserError(f"{target} has {index.num_rows} rows of {index.dim} dimensions, wanted {len(part)} of "
                    f"{embedder.dim}: delete the folder and start again")
  logging.info("index: %s rows, %s", f"{index.num_rows:,}",
               f"{index.leaves_to_search} of {index.leaves} leaves searched" if leaves else "brute force")
  return index


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


def _rows(corpus: Chunks, part: range, embedder: Embedder, directory: pathlib.Path) -> np.ndarray:
  """The vectors of the chunks of `part`, float32[len(part), D]; embeds what is not on disk yet."""
  directory.mkdir(parents=True, exist_ok=True)
  rows = np.empty((len(part), embedder.dim), np.float32)
  paths = [directory / f"{start // SHARD_ROWS:05d}.npy" for start in part[::SHARD_ROWS]]
  whole = len(part) == corpus.num_chunks
  manifest = directory / (_MANIFEST if whole else f"{paths[0].stem}-{paths[-1].stem}-{_MANIFEST}")
  hashes = read_json(manifest)["files"] if manifest.exists() else {}
  written = {}
  there = sum(path.exists() for path in paths) * SHARD_ROWS
  # `initial` is left out of the rate, so that it is this process's own.
  with Bar(total=len(part), initial=min(there, len(part)), desc="embedding the corpus", unit="chunk",
           disable=bool(hashes) or not hosts.is_first()) as bar:
    for start, path in zip(part[::SHARD_ROWS], paths):
      shard = rows[start - part.start:start - part.start + SHARD_ROWS]
      if path.exists():
        _read_shard(path, shard, hashes.get(path.name, ""))
      else:
        shard[:] = embedder.embed_documents([corpus.chunk_text(row) for row in range(start, start + len(shard))])
        _write_shard(path, shard)
        bar.update(len(shard))
      written[path.name] = hashes.get(path.name) or sha256_of(path)
  if not hashes:
    write_json(manifest, {"rows": len(rows), "dim": embedder.dim, "files": written})
  return rows


def _read_shard(path: pathlib.Path, shard: np.ndarray, sha256: str) -> None:
  try:
    found = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f"{path} cannot be read ({error}): delete it and start again") from error
  if found.shape != shard.shape or found.dtype != shard.dtype:
    raise UserError(f"{path} holds {found.dtype}{list(found.shape)}, wanted {shard.dtype}{list(shard.shape)}: "
                    "delete it and start again")
  if sha256 and (actual := sha256_of(path)) != sha256:
    raise UserError(f"{path} has sha256 {actual}, wanted {sha256}: delete the folder {path.parent} and start again")
  shard[:] = found


def _write_shard(path: pathlib.Path, shard: np.ndarray) -> None:
  temporary = path.with_name(f".{path.name}.tmp")
  with open(temporary, "wb") as file:
    np.save(file, shard, allow_pickle=False)
  os.rename(temporary, path)


@contextlib.contextmanager
def _lock(directory: pathlib.Path, part: range) -> Iterator[None]:
  """One process embeds and builds; others that want any of the same rows wait. Dropped when the process ends."""
  try:
    directory.parent.mkdir(parents=True, exist_ok=True)
    file = open(directory.with_suffix(".lock"), "w")  # noqa: SIM115 (closed below, after what the lock protects)
  except (FileExistsError, NotADirectoryError, PermissionError) as error:
    raise UserError(f"the index is kept in {directory.parent}, where nothing can be written ({error.strerror}); "
                    "name a folder that can be made") from error
  with file:
    fcntl.lockf(file, fcntl.LOCK_EX, len(part), part.start)  # of the file, which is empty, one byte a row
    yield
