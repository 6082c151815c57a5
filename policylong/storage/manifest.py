"""A folder whose files hold what was written: MANIFEST.json, written when all are whole, has the sha256 of each.

For what others write and read, and no checksum can be put into: array_record, Orbax, ScaNN, tokenizers.
"""

import concurrent.futures
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from policylong.errors import Damaged
from policylong.storage.checksums import sha256_of_file
from policylong.storage.workdir import read_json, write_json

NAME = "MANIFEST.json"


def _all(name: str) -> bool:
  return True


def write(folder: epath.PathLike, wanted: Callable[[str], bool] = _all, **told: Any) -> None:
  """Writes the manifest of all files below `folder`, or of those that are `wanted`, by their names from there.

  What else is `told` of the folder stands beside their hashes.

  Raises:
    UserError: a file cannot be read.
    OSError: the disk is full.
  """
  folder = epath.Path(folder)
  names = [name for name in _names(folder) if wanted(name)]
  write_json(folder / NAME, {**told, "files": dict(zip(names, _hashed([folder / name for name in names])))})


def check(folder: epath.PathLike, wanted: Callable[[str], bool] = _all, share: Callable[[int], range] = range,
          alone: bool = False) -> Mapping[str, Any]:
  """That the files of a manifest are there and hold what they held.

  Args:
    folder: with a manifest.
    wanted: of its files, by their names.
    share: of so many files, those that this process reads; all of them, if nothing is said.
    alone: whether no other file may be there.

  Returns:
    The manifest.
  Raises:
    Damaged: there is no manifest, or a file is damaged, missing or too many; it is named.
  """
  folder = epath.Path(folder)
  if not (folder / NAME).exists():
    raise Damaged(folder, f"it has no {NAME}")
  manifest = read_json(folder / NAME)
  listed = manifest.get("files")
  if not isinstance(listed, dict):
    raise Damaged(folder / NAME, "it lists no files")
  if alone and (there := _names(folder)) != sorted(listed):
    raise Damaged(folder, f"it holds {', '.join(there)}, and its {NAME} lists {', '.join(sorted(listed))}")
  files = [(name, sha256) for name, sha256 in listed.items() if wanted(name)]
  check_files(folder, dict(files[i] for i in share(len(files))))
  return manifest


def check_files(folder: epath.PathLike, files: Mapping[str, str], told: str = NAME) -> None:
  """That files of a folder have the sha256 that `files` has of them by name; `told` says where that comes from.

  Raises:
    Damaged: the first one that has not, or is missing.
  """
  paths = [epath.Path(folder) / name for name in files]
  for path, sha256, found in zip(paths, files.values(), _hashed(paths)):
    if found != sha256:
      raise Damaged(path, "it is missing" if found is None else f"its bytes are not those of {told}")


def _names(folder: epath.Path) -> list[str]:
  found, waiting = [], [folder]
  while waiting:
    for path in waiting.pop().iterdir():
      if path.is_dir():
        waiting.append(path)
      elif path.name != NAME and not path.name.startswith("."):
        found.append(path.relative_to(folder).as_posix())
  return sorted(found)


def _hashed(paths: Sequence[epath.Path]) -> list[str | None]:
  """sha256 of each file by all cores; None of one that is missing."""
  with concurrent.futures.ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
    return list(pool.map(lambda path: sha256_of_file(path) if path.exists() else None, paths))
