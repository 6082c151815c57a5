"""What is opened must be a file: a FIFO waits for a writer, a device may never end."""

import os
import pathlib
import stat

from policylong.errors import UserError

_KINDS = ((stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
          (stat.S_ISBLK, "a device"))


def check_regular(path: str | os.PathLike) -> None:
  """Refuses what is neither file nor folder, at a local path or, where that is a folder, in it; opens nothing.

  Raises:
    UserError: it is one.
  """
  path = pathlib.Path(path)
  try:
    entries = [path, *path.iterdir()] if path.is_dir() else [path]
  except OSError:  # whoever reads it will say why not
    return
  for entry in entries:
    try:
      mode = entry.stat().st_mode
    except (OSError, ValueError):  # as above
      continue
    if kind := next((kind for is_one, kind in _KINDS if is_one(mode)), ""):
      raise UserError(f"{entry} is {kind}, and a file is wanted there: put one in its place")
