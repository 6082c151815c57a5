"""Lines of JSON with a checksum each: files that grow, and that a kill may cut in the midst of a line.

Where the lines are ours alone it stands in them (`line`, `value`). Where others rely on their shape, the CRC-32 of each
lies beside, in <name>.crc32, written after it (`Growing`, `read`).
"""

import hashlib
import json
import zlib
from typing import Any

from etils import epath

from policylong import oserrors

_CHECKSUM = "checksum"


def line(value: dict[str, Any]) -> str:
  """A value as a line with its checksum in it."""
  return json.dumps({**value, _CHECKSUM: _checksum(value)}) + "\n"


def value(text: str | bytes) -> dict[str, Any]:
  """What `line` was given.

  Raises:
    ValueError: it is damaged.
  """
  found = json.loads(text)
  if not isinstance(found, dict) or found.pop(_CHECKSUM, None) != _checksum(found):
    raise ValueError("not what its checksum is of")
  return found


class Growing:
  """A file of lines and the one beside it, to which lines are appended, at once on their way to the disk."""

  def __init__(self, path: epath.Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._path = path
    self._lines, self._sums = path.open("a"), beside(path).open("a")

  def write(self, value: dict[str, Any]) -> None:
    """One more line."""
    text = json.dumps(value, allow_nan=False) + "\n"
    with oserrors.about(self._path):
      for file, data in ((self._lines, text), (self._sums, sum_of(text.encode()) + "\n")):
        file.write(data)
        file.flush()

  def close(self) -> None:
    """No more of them."""
    with oserrors.about(self._path), self._sums, self._lines:
      pass  # each is closed, whatever befalls the other


def read(path: epath.Path) -> tuple[list[tuple[bytes, dict[str, Any]]], int]:
  """(lines with what they hold, how many are damaged or gone) of a file that `Growing` wrote.

  Of a file that has nothing beside it, as an earlier version wrote it, what is JSON is taken as it is; so are lines
  that are no step's, which somebody else may have written, and a last line whose checksum a kill has taken.
  """
  sums = beside(path).read_bytes().decode("ascii", "replace").split() if beside(path).exists() else []
  known, found, damaged, whole = set(sums), [], 0, 0
  every = path.read_bytes().splitlines(keepends=True)
  for number, text in enumerate(every):
    ours = sum_of(text) in known
    whole += ours
    try:
      value = json.loads(text)
    except ValueError:
      value = None
    if isinstance(value, dict) and (ours or not sums or "step" not in value or number == len(every) - 1):
      found.append((text, value))
    else:
      damaged += 1
  return found, max(damaged, len(sums) - whole)


def beside(path: epath.Path) -> epath.Path:
  """Where the checksums of a growing file's lines lie."""
  return path.with_name(f"{path.name}.crc32")


def sum_of(text: bytes) -> str:
  """The checksum of a line, as it lies there."""
  return f"{zlib.crc32(text):08x}"


def _checksum(value: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
