"""Finds the files of a source, and opens them by what their first bytes are: plain, gzip, bzip2, xz or Zstandard.

On this machine's disks only a regular file is ever opened, so nothing is waited for; other storage (gs://...) is read
through fsspec. What cannot be read is `Unreadable`, with a reason that names no path: of several files it is counted as
one bad record, a single one is refused (`reason_of`).
"""

import contextlib
import glob
import gzip
import io
import os
import pathlib
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator

from etils import epath

from policylong import paths
from policylong.corpus import compressed
from policylong.errors import UserError
from policylong.storage.checksums import sha256_of_files, sha256_of_texts

# Why a file is none that can be read.
A_FOLDER = "a folder"
NOT_REGULAR = "not a regular file"
DANGLING = "a link to a file that does not exist"
MISSING = "a file that does not exist"
NO_PERMISSION = "a file without read permission"

# What is read line by line and can be looked into without reading (`peek`).
Stream = io.BufferedReader | gzip.GzipFile
_COMPRESSED_TEXT = ("gz", "bz2", "xz", "zst")
_BLOCK, _REMOTE_BLOCK = 1 << 16, 4 << 20


class Unreadable(Exception):
  """A file that cannot be read, or not to its end.

  Attributes:
    reason: what it is, without its path, to be counted.
  """

  def __init__(self, reason: str, sentence: str = ""):
    """`sentence` follows the path where the file is refused; without one it is "is <reason>"."""
    super().__init__(sentence or f"is {reason}")
    self.reason = reason


def reason_of(error: Unreadable, path: pathlib.Path, alone: bool) -> str:
  """The reason to count a file by, which is one of several.

  Raises:
    UserError: the file is alone, so that nothing is left without it.
  """
  if alone:
    raise UserError(f"{path} {error}: give a whole file, or take it out") from error
  return error.reason


def find_files(where: str, kind: str, field: str) -> list[tuple[epath.Path, str]]:
  """(path, name below the folder that was asked for) of each file, sorted by name.

  A glob also gives what it finds besides files; see `why_not`.

  Args:
    where: a file, a glob, or (of kind text) a folder.
    kind: as of a source.
    field: what says so, for the sentence.

  Raises:
    UserError: nothing is there.
  """
  field = f"{field} is {where}"
  path = paths.expand(where)
  if paths.is_url(path):
    return _find_remote(path, kind, field)
  if os.path.isdir(path):
    if kind != "text":
      raise UserError(f"{field}, a folder; kind {kind} wants a file or a glob such as "
                      f"{os.path.join(path, '*.' + kind)}")
    root, found = path, _texts(path)
    if not found:
      raise UserError(f"{field}, a folder without any .txt file")
  elif os.path.isfile(path):
    root, found = os.path.dirname(path), [path]
  elif os.path.exists(path):
    raise UserError(f"{field}, which is {why_not(pathlib.Path(path))}: copy what it holds into a file")
  elif glob.has_magic(path):
    root, found = paths.fixed_part(path), _matches(path)
    if not found:
      raise UserError(f"{field}, a glob that matches no file")
  else:
    raise UserError(f"{field}, and no such file or folder exists")
  names = sorted((pathlib.Path(os.path.relpath(f, root or ".")).as_posix(), f) for f in found)
  return [(pathlib.Path(f), name) for name, f in names]


def _find_remote(url: str, kind: str, field: str) -> list[tuple[epath.Path, str]]:
  """As `find_files`, on another kind of storage than a disk."""
  literal = re.split(r"[*?\[]", url, maxsplit=1)[0]
  folder = epath.Path(url if literal == url else literal.rpartition("/")[0])
  try:
    if literal != url:
      found = [path for path in folder.glob(url[len(os.fspath(folder)) + 1:]) if not path.is_dir()]
    elif kind == "text" and folder.is_dir():
      ends = (".txt", *(f".txt.{suffix}" for suffix in _COMPRESSED_TEXT))
      found = [path for path in _below(folder) if path.name.endswith(ends)]
    else:
      found, folder = ([folder] if folder.exists() and not folder.is_dir() else []), folder.parent
  # No package for this storage, or it is out of reach; ** in a glob.
  except (ImportError, OSError, NotImplementedError) as error:
    raise UserError(f"{field}, which cannot be listed ({_first_line(error)})") from error
  if not found:
    raise UserError(f"{field}, where no file is found")
  return sorted(((path, os.fspath(path)[len(os.fspath(folder)) + 1:]) for path in found), key=lambda pair: pair[1])


def _below(folder: epath.Path) -> Iterator[epath.Path]:
  """The files of a folder and of the folders in it."""
  for path in folder.iterdir():
    if path.is_dir():
      yield from _below(path)
    else:
      yield path


def why_not(path: epath.Path) -> str:
  """Why nothing can be read at a path, "" if it is a file; never opens it."""
  if paths.is_url(path):
    return "" if path.exists() else MISSING
  try:
    mode = path.stat().st_mode
  except PermissionError:  # of one of its folders
    return NO_PERMISSION
  except OSError:
    return DANGLING if os.path.lexists(path) else MISSING
  if stat.S_ISDIR(mode):
    return A_FOLDER
  if not stat.S_ISREG(mode):  # a FIFO, a device, a socket: opening or reading it may never end
    return NOT_REGULAR
  return "" if os.access(path, os.R_OK) else NO_PERMISSION


def size_of(path: epath.Path) -> int:
  """The bytes of a file, 0 of what cannot be read."""
  return 0 if why_not(path) else epath.Path(path).stat().length


def fingerprint(files: Iterable[epath.PathLike]) -> str:
  """What changes with files: of those on a disk their bytes, of others their names, sizes and times."""
  on_disk, told = [], []
  for path in files:
    if paths.is_url(path):
      state = epath.Path(path).stat()
      told.append(f"{path} {state.length} {state.mtime}")
    elif not why_not(pathlib.Path(path)):
      on_disk.append(path)
  return sha256_of_texts(sha256_of_files(on_disk), *told)


@contextlib.contextmanager
def raw(path: epath.Path) -> Iterator[io.BufferedReader]:
  """The bytes of a file, wherever it lies."""
  if not paths.is_url(path):
    with open(path, "rb") as file:
      yield file
  else:
    with path.open("rb") as file, io.BufferedReader(file, _REMOTE_BLOCK) as buffered:
      yield buffered


@contextlib.contextmanager
def opened(path: epath.Path) -> Iterator[tuple[Stream, Callable[[], int]]]:
  """(the file's bytes, decompressed where they are compressed; how many bytes of the file have been read).

  Raises:
    Unreadable: also out of the block, where the file ends too early or is damaged.
  """
  if reason := why_not(path):
    raise Unreadable(reason, "does not exist" if reason == MISSING else "")
  codec = ""
  try:
    with raw(path) as file:
      codec = _codec(file.peek(16))
      yield _decompressed(codec, file), file.tell
  except (zlib.error, *compressed.ERRORS) as error:
    if codec:
      raise Unreadable(f"not a whole {codec} file", f"is not a whole {codec} file ({_first_line(error)})") from error
    raise Unreadable("a file that the system cannot read", f"cannot be read ({_first_line(error)})") from error


def _codec(head: bytes) -> str:
  """The name of a compression by a file's first bytes, "" for none."""
  if head.startswith(b"\x1f\x8b"):
    return "gzip"
  if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):  # a block, or the end of an empty file
    return "bzip2"
  if head.startswith(b"\xfd7zXZ\0"):
    return "xz"
  # A frame, or one to be skipped (RFC 8878), with which pzstd begins.
  if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5f):
    return "zstd"
  return ""


def _decompressed(codec: str, file: io.BufferedReader) -> Stream:
  if codec == "gzip":
    return gzip.GzipFile(fileobj=file)
  return io.BufferedReader(compressed.Decompressed(file, codec), _BLOCK) if codec else file


def _matches(pattern: str) -> list[str]:
  """What a glob finds; "**" at its end finds folders only for what they hold."""
  found = paths.matching(pattern)
  if os.path.basename(pattern) == "**":
    found = [path for path in found if not os.path.isdir(path)]
  return found if any(map(os.path.isfile, found)) else []


def _texts(folder: str) -> list[str]:
  below = os.path.join(glob.escape(folder), "**", "*.txt")
  patterns = (below, *(f"{below}.{suffix}" for suffix in _COMPRESSED_TEXT))
  return [path for pattern in patterns for path in glob.glob(pattern, recursive=True)]


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
