"""What files hold, as one number: sha256, of several files by all cores.

Sizes and times of files say nothing sure of their bytes, so all bytes are read, once each time that a command asks:
0.8 to 2 GB/s a core, so that the disk is what is waited for (the 15 GB of a model of 7B take some seconds, and lie in
memory when the weights are read after it).
"""

import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Sequence

from etils import epath

from policylong.errors import Damaged, UserError

_BLOCK = 64 << 20
_SHA256_BYTES = 32


def sha256_of_file(path: str | os.PathLike) -> str:
  """sha256 of a file's bytes, on any storage.

  Raises:
    UserError: it cannot be read.
  """
  try:
    with epath.Path(path).open("rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror}); give a path that exists") from error


def sha256_of_files(files: Sequence[str | os.PathLike]) -> str:
  """sha256 over the sha256 of each 64 MiB of each file and its length, in the given order; names do not count.

  Raises:
    UserError: a file cannot be read.
  """
  with concurrent.futures.ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
    return hashlib.sha256("".join(pool.map(_sha256_of_block, *zip(*_blocks(files)))).encode()).hexdigest()


def sha256_of_texts(*texts: str) -> str:
  """sha256 over several texts, each with its length before it."""
  digest = hashlib.sha256()
  for text in texts:
    data = text.encode(errors="surrogatepass")
    digest.update(f"{len(data)}:".encode() + data)
  return digest.hexdigest()


def sealed(data: bytes) -> bytes:
  """Bytes with their sha256 behind them, of files whose readers mind nothing that comes after their end."""
  return data + hashlib.sha256(data).digest()


def unsealed(path: os.PathLike, data: bytes) -> bytes:
  """What `sealed` was given; `path` is where it was read.

  Raises:
    Damaged: it was not given that.
  """
  content, digest = data[:-_SHA256_BYTES], data[-_SHA256_BYTES:]
  if hashlib.sha256(content).digest() != digest:
    raise Damaged(path, "its bytes are not those of the checksum at its end")
  return content


def _blocks(files: Sequence[str | os.PathLike]) -> list[tuple[pathlib.Path, int]]:
  """(file, first byte) of each block; an empty file has one of no byte."""
  found = []
  for path in map(pathlib.Path, files):
    try:
      found += [(path, start) for start in range(0, max(1, path.stat().st_size), _BLOCK)]
    except OSError as error:
      raise UserError(f"{path} cannot be read ({error.strerror})") from error
  return found


def _sha256_of_block(path: pathlib.Path, start: int) -> str:
  """Of at most 64 MiB from `start` on; with the place, so that no two lists of files are written alike."""
  digest, left = hashlib.sha256(), _BLOCK
  try:
    with open(path, "rb") as file:
      file.seek(start)
      while left and (data := file.read(min(left, 1 << 20))):
        digest.update(data)
        left -= len(data)
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror})") from error
  return f"{start}+{_BLOCK - left}:{digest.hexdigest()} "
