"""Large files that are read in places: a checksum of each block of 64 KiB, looked at when the block is first read.

BLOCKS in the folder has the CRC-32 of every block of every file, in the order of the files, uint32, and its own sha256
at its end. Small blocks, so that a text of 2 KB out of a terabyte costs the reading of 64; a CRC, because it is there
against bits that flip and not against people: 2.7 GB/s a core.
"""

import logging
import mmap
import pathlib
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
from etils import epath

from policylong.errors import Damaged
from policylong.storage.checksums import sealed, unsealed
from policylong.storage.workdir import write_atomically

log = logging.getLogger(__name__)

NAME = "BLOCKS"
SIZE = 1 << 16


def write(folder: epath.PathLike, names: Sequence[str]) -> None:
  """Writes the checksums of the files `names` of a folder."""
  sums = []
  for name in names:
    with (epath.Path(folder) / name).open("rb") as file:
      while data := file.read(SIZE):
        sums.append(zlib.crc32(data))
  write_atomically(epath.Path(folder) / NAME, sealed(np.asarray(sums, "<u4").tobytes()))


class Blocks:
  """The files of a folder, mapped into memory. Methods may be called from several threads."""

  def __init__(self, folder: pathlib.Path, sizes: Mapping[str, int],
               remade: Callable[[], AbstractContextManager[pathlib.Path]] | None = None, remedy: str = ""):
    """Reads none of the files.

    Args:
      folder: where they lie.
      sizes: {name: bytes} of all of them, in the order in which `write` was given them.
      remade: makes the files once more, in another folder; a damaged block is mended with it.
      remedy: what a person is told to do where that cannot be; "": to begin anew.

    Raises:
      Damaged: a file is missing or has another size, or BLOCKS is damaged.
    """
    remedy = remedy or f"delete the folder {folder} and start again, and it is made anew"
    self._folder, self._sizes, self._remade, self._remedy = folder, dict(sizes), remade, remedy
    self._mending = threading.Lock()
    for name, size in sizes.items():
      found = (folder / name).stat().st_size if (folder / name).exists() else 0
      if found != size:
        raise Damaged(folder / name, f"it has {found} bytes, wanted {size}", remedy)
    if not (folder / NAME).exists():
      raise Damaged(folder, f"it has no {NAME}, as an earlier version made it", remedy)
    blocks = {name: -(-size // SIZE) for name, size in sizes.items()}
    try:
      self._sums = np.frombuffer(unsealed(folder / NAME, (folder / NAME).read_bytes()), "<u4")
    except Damaged as error:
      raise Damaged(error.path, error.reason, remedy) from error
    if len(self._sums) != sum(blocks.values()):
      raise Damaged(folder / NAME, f"it has {len(self._sums)} checksums, wanted {sum(blocks.values())}", remedy)
    starts = np.cumsum([0, *blocks.values()]).tolist()
    self._first = dict(zip(blocks, starts))
    self._checked = np.zeros(len(self._sums), bool)
    self._maps: dict[str, mmap.mmap] = {}

  def check(self, name: str, first: int = 0, last: int | None = None) -> None:
    """That bytes first .. last of a file are those that were written; a damaged block is mended if that can be.

    Raises:
      Damaged: it cannot.
    """
    last = self._sizes[name] if last is None else last
    if not 0 <= first <= last <= self._sizes[name]:
      raise IndexError(f"bytes {first} to {last} of {name}, which has {self._sizes[name]}")
    begin, end = first // SIZE, -(-last // SIZE)
    checked = self._checked[self._first[name] + begin:self._first[name] + max(begin, end)]
    if checked.all():
      return
    for at in np.flatnonzero(~checked).tolist():
      if not self._whole(name, begin + at):
        self._mend(name, begin + at)
      checked[at] = True

  def array(self, name: str) -> "Array":
    """A one-dimensional .npy file."""
    self.check(name, 0, min(SIZE, self._sizes[name]))  # its header
    return Array(self, name, np.load(self._folder / name, mmap_mode="r"))

  def mapped(self, name: str) -> mmap.mmap:
    """A whole file, which is not empty; nothing of it is checked by this."""
    if name not in self._maps:
      with open(self._folder / name, "rb") as file:
        self._maps.setdefault(name, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return self._maps[name]

  def read(self, name: str, first: int = 0, last: int | None = None) -> bytes:
    """Bytes of a file, checked."""
    self.check(name, first, last)
    return self.mapped(name)[first:last]

  def _whole(self, name: str, block: int) -> bool:
    return zlib.crc32(self.mapped(name)[block * SIZE:(block + 1) * SIZE]) == self._sums[self._first[name] + block]

  def _mend(self, name: str, block: int) -> None:
    """Puts the bytes of the file made once more into this one, where all who have mapped it see them."""
    with self._mending:
      if self._whole(name, block):  # another thread was here
        return
      damage = Damaged(self._folder / name, f"bytes {block * SIZE} to {(block + 1) * SIZE} are not those of {NAME}",
                       self._remedy)
      if self._remade is None:
        raise damage
      log.warning("%s is damaged (%s): it is made again", damage.path, damage.reason)
      with self._remade() as folder:
        with open(folder / name, "rb") as file:
          file.seek(block * SIZE)
          data = file.read(SIZE)
        if zlib.crc32(data) != self._sums[self._first[name] + block]:
          raise damage
        with open(self._folder / name, "r+b") as file:
          file.seek(block * SIZE)
          file.write(data)


class Array:
  """A mapped one-dimensional array whose blocks are checked when they are first read."""

  def __init__(self, blocks: Blocks, name: str, values: np.memmap):
    self._blocks, self._name, self._values = blocks, name, values

  def __len__(self) -> int:
    return len(self._values)

  @property
  def dtype(self) -> np.dtype:
    """Of its values."""
    return self._values.dtype

  def __getitem__(self, index):
    """One value, or those of a slice without a step; rows count from 0."""
    first, last = index.indices(len(self))[:2] if isinstance(index, slice) else (int(index), int(index) + 1)
    size = self._values.itemsize
    self._blocks.check(self._name, self._values.offset + first * size, self._values.offset + last * size)
    return self._values[index]
