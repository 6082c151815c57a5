"""A path as a person writes it, and what it stands for: the one place that knows about ~, wildcards and brackets.

Whatever comes in by a flag goes through `expand`, and a config's fields of type `Path` when they are read
(`config.parse`). URLs (gs://...) stay as they are, and a name that is there as it is written is never a pattern.
"""

import argparse
import glob
import os
import pathlib
import typing
from collections.abc import Iterator

from etils import epath

# The type of a config's field that is a path: it is expanded when the config is read.
Path = typing.NewType("Path", str)


def expand(path: str) -> str:
  """The path with the home folder for a leading ~ or ~user; all else, and an URL, as it is."""
  return path if is_url(path) else os.path.expanduser(path)


def flag(text: str) -> str:
  """`expand`, as the type of an argparse flag: an empty one, which would stand for the current folder, is refused."""
  if not text:
    raise argparse.ArgumentTypeError("it is empty; name a path")
  return expand(text)


def local(path: str) -> pathlib.Path:
  """`expand`, for what can only lie on this machine's disks."""
  return pathlib.Path(expand(path))


def is_url(path: str | os.PathLike) -> bool:
  """Whether it is one of another kind of storage than a disk, e.g. gs://bucket/run."""
  return "://" in os.fspath(path)


def seen_from(path: str, folder: str | os.PathLike) -> str:
  """A path that was written in `folder`, as it is called from here: a relative one is below that folder."""
  return path if is_url(path) else os.path.join(os.fspath(folder), path)


def found_from(path: str, folder: str | os.PathLike) -> str:
  """`seen_from` where something is there; else the path as it is: of what has yet to be made, or has moved."""
  if not path or is_url(path) or os.path.realpath(folder) == os.getcwd():
    return path
  there = seen_from(path, folder)
  return there if matching(there) else path


def matching(pattern: str) -> list[str]:
  """The files and folders that a name stands for, sorted; *, ?, [...] and ** are wildcards.

  What is there as it is written is no pattern, be it the whole name or the folders that it begins with: data[1]/*.gz
  is looked for in data[1] if there is such a folder. Where nothing is found, brackets are read as brackets.
  """
  if os.path.lexists(pattern):
    return [pattern]
  literal = _literal_folder(pattern)
  rest = pattern[len(literal):]
  for wanted in (rest, rest.replace("[", "[[]")):
    if found := sorted(glob.glob(glob.escape(literal) + wanted, recursive=True)):
      return found
  return []


def fixed_part(pattern: str) -> str:
  """The folder in which all lies that `matching` may find: what stands before the first wildcard."""
  literal = _literal_folder(pattern)
  folder = os.path.dirname(pattern)
  while len(folder) > len(literal) and glob.has_magic(folder[len(literal):]):
    folder = os.path.dirname(folder)
  return folder


def _literal_folder(pattern: str) -> str:
  """The longest beginning of a name that is a folder as it is written, with its last slash; "" if none is."""
  end = 0
  while (slash := pattern.find("/", end)) >= 0 and (slash == 0 or os.path.isdir(pattern[:slash])):
    end = slash + 1
  return pattern[:end]


_PosixPath = type(epath.Path("/"))
_glob = _PosixPath.glob


def _glob_in_folder(folder: epath.Path, pattern: str) -> Iterator[epath.Path]:
  """etils joins a folder's own name to the pattern, so that run[1] is looked for in run1 and nothing is found there.

  That befalls Orbax as well, which then leaves the arrays out of a checkpoint; so it is put right for all.
  """
  if not is_url(folder):
    folder = type(folder)(glob.escape(os.fspath(folder)))
  return _glob(folder, pattern)


_PosixPath.glob = _glob_in_folder
