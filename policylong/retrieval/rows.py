"""The chunks' vectors on disk, by embedder and corpus: half precision, in files that are checked when they are read.

  rows-<version>/00000.npz ...   `rows` float16[2048, D], and `of`, which file of which version it is

A number of a unit vector keeps eleven bits, so that a score is within about 1e-5 of what it was in float32 (measured on
several corpora: docs/retrieval.md), and equal vectors stay equal. The rounded vectors are the corpus's vectors from
then on, in the process that embeds them too: every index is made of them, whoever opens it and when.

A file is a zip, whose CRC-32 numpy does not look at before it believes a file's head: all bytes are checked first. One
that is damaged, or belongs elsewhere, is embedded again.
"""

import contextlib
import fcntl
import io
import logging
import os
import pathlib
import socket
import zipfile
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from policylong import oserrors
from policylong.devices import hosts
from policylong.errors import Damaged, UserError
from policylong.retrieval.embedders import Embedder
from policylong.retrieval.files import version_of
from policylong.retrieval.index import checked_rows
from policylong.storage.progress import Bar

SHARD_ROWS = 2048
# Bytes of a stored number.
BYTES = 2

log = logging.getLogger(__name__)


class Chunks(Protocol):
  """What is asked of a corpus."""
  version: str
  num_chunks: int

  def chunk_text(self, row: int) -> str:
    """The text of a chunk."""


class StoredRows:
  """The vectors of a corpus's chunks; row r is chunk r's.

  Attributes:
    version: of embedder, corpus and format.
    num_rows: N.
    dim: D.
    num_files: files of `SHARD_ROWS` rows each, the last with what is left.
  """

  def __init__(self, corpus: Chunks, embedder: Embedder, cache: pathlib.Path):
    """Keeps them in a folder below `cache`; nothing is embedded yet."""
    self._corpus, self._embedder = corpus, embedder
    self.num_rows, self.dim = corpus.num_chunks, embedder.dim
    self.num_files = -(-self.num_rows // SHARD_ROWS)
    self.version = version_of(embedder=embedder.version, corpus=corpus.version, shard=SHARD_ROWS, dtype="float16")
    self._directory = cache / f"rows-{self.version}"

  def of_files(self, files: range) -> range:
    """The rows that lie in some files."""
    return range(files.start * SHARD_ROWS, min(files.stop * SHARD_ROWS, self.num_rows))

  def embed(self, files: range) -> None:
    """Embeds what is missing of some files; another process of this machine that does the same is waited for."""
    if not files:
      return
    rows = self.of_files(files)
    with self.lock(rows):
      missing = [file for file in files if not self._path(file).exists()]
      there = len(rows) - sum(len(self._rows_of(file)) for file in missing)
      # `initial` is left out of the rate, so that it is this process's own.
      with Bar(total=len(rows), initial=there, desc="embedding the corpus", unit="chunk",
               disable=not missing or not hosts.is_first()) as bar:
        for file in missing:
          bar.update(len(self._embed(file)))

  def read(self, rows: range) -> np.ndarray:
    """The vectors of whole files, float16[len(rows), D]; embeds those that are missing or damaged.

    Args:
      rows: as `of_files` gives them.
    """
    out = np.empty((len(rows), self.dim), np.float16)
    for start in rows[::SHARD_ROWS]:
      file = start // SHARD_ROWS
      out[start - rows.start:][:SHARD_ROWS] = self._read(file)
    return out

  @contextlib.contextmanager
  def lock(self, rows: range) -> Iterator[None]:
    """One process embeds or indexes; others that want any of the same rows wait. Dropped when the process ends.

    On some network mounts it holds among the processes of one machine alone. It saves work, and nothing relies on it.
    """
    try:
      self._directory.mkdir(parents=True, exist_ok=True)
      file = open(self._directory.with_suffix(".lock"), "w")  # noqa: SIM115 (closed below, after what it protects)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
      raise UserError(f"the index is kept in {self._directory.parent}, where nothing can be written "
                      f"({error.strerror}); name a folder that can be made") from error
    with file:
      fcntl.lockf(file, fcntl.LOCK_EX, len(rows), rows.start)  # of the file, which is empty, one byte a row
      yield

  def _rows_of(self, file: int) -> range:
    return self.of_files(range(file, file + 1))

  def _path(self, file: int) -> pathlib.Path:
    return self._directory / f"{file:05d}.npz"

  def _read(self, file: int) -> np.ndarray:
    path, wanted = self._path(file), (len(self._rows_of(file)), self.dim)
    if path.exists():
      try:
        return _load(path, self._name(file), wanted)
      except Damaged as error:
        log.warning("%s is damaged (%s): its %d chunks are embedded again", path, error.reason, wanted[0])
    return self._embed(file)

  def _embed(self, file: int) -> np.ndarray:
    vectors = self._embedder.embed_documents([self._corpus.chunk_text(row) for row in self._rows_of(file)])
    rows, path = checked_rows(vectors).astype(np.float16), self._path(file)
    # Where a lock holds on one machine alone, two may write the same rows: each whole, and one after the other.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{hosts.index()}.tmp")
    with oserrors.about(path), open(temporary, "wb") as output:
      np.savez(output, rows=rows, of=np.array(self._name(file)))
    os.replace(temporary, path)
    return rows

  def _name(self, file: int) -> str:
    return f"{self._directory.name}/{file}"


def _load(path: pathlib.Path, name: str, shape: tuple[int, int]) -> np.ndarray:
  """The rows of a file.

  Raises:
    Damaged: it holds other bytes than were written, or is another file.
  """
  try:
    with zipfile.ZipFile(path) as file:
      # Read to its end, a member has been held against its CRC-32.
      of, rows = (np.load(io.BytesIO(file.read(f"{member}.npy")), allow_pickle=False) for member in ("of", "rows"))
  except Exception as error:  # a changed head makes zipfile raise nearly anything
    raise Damaged(path, f"it cannot be read, {error or type(error).__name__}") from error
  if str(of) != name:
    raise Damaged(path, f"it is {of}, wanted {name}")
  if rows.shape != shape or rows.dtype != np.float16:
    raise Damaged(path, f"it holds {rows.dtype}{list(rows.shape)}, wanted float16{list(shape)}")
  return rows
