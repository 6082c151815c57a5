"""A folder whose files hold what was written: MANIFEST.json, written when all are whole, has the sha256 of each.

For what others write and read, and no checksum can be put into: array_record, Orbax, tokenizers.
"""

import concurrent.futures
import os
from collections.abc import Callable, Sequence

from etils import epath

from policylong.errors import Damaged
from policylong.storage.checksums import sha256_of_file
from policylong.storage.workdir import read_json, write_json

NAME = "MANIFEST.json"


def _all(name: str) -> bool:
  return True


def write(folder: epath.PathLike, wanted: Callable[[str], bool] = _all) -> None:
  """Writes the manifest of all files below `folder`, or of those that are `wanted`, by their names from there.

  Raises:
    UserError: a file cannot be read.
    OSError: the disk is full.
  """
  folder = epath.Path(folder)
  names = [name for name in _names(folder) if wanted(name)]
  write_json(folder / NAME, {"files": dict(zip(names, _hashed([folder / name for name in names])))})


def check(folder: epath.PathLike, wanted: Callable[[str], bool] = _all, share: Callable[[int], range] = range) -> None:
  """That the files of a manifest are there and hold what they held; others may be there too.

  Args:
    folder: with a manifest.
    wanted: of its files, by their names.
    share: of so many files, those that this process reads; all of them, if nothing is said.

  Raises:
    Damaged: there is no manifest, or a file is damaged or missing; it is named.
  """
  folder = epath.Path(folder)
  if not (folder / NAME).exists():
    raise Damaged(folder, f"it has no {NAME}")
  files = [(name, told) for name, told in read_json(folder / NAME)["files"].items() if wanted(name)]
  mine = [files[i] for i in share(len(files))]
  for (name, told), found in zip(mine, _hashed([folder / name for name, _ in mine])):
    if found != told:
      raise Damaged(folder / name, "it is missing" if found is None else f"its bytes are not those of {NAME}")


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
