"""One Arrow file of documents, columns id and text in batches: mapped, and checked where it is read."""

import functools
import threading

import numpy as np
import pyarrow as pa

from policylong.storage.blocks import Blocks

# At the end of an Arrow file: the length of the footer, then the magic number.
_END = 10
# A batch in the footer, as Arrow's format has it: where its description begins, the bytes of that, and of what follows.
_BLOCK = np.dtype([("start", "<i8"), ("description", "<i4"), ("_", "<i4"), ("body", "<i8")])


class TextsFile:
  """Batches of documents by number. Methods may be called from several threads."""

  def __init__(self, blocks: Blocks, name: str):
    """Reads the footer alone.

    Raises:
      Damaged: it is, and cannot be made again.
    """
    self._blocks, self._name = blocks, name
    self._bytes = pa.py_buffer(blocks.mapped(name))
    size = self._bytes.size
    blocks.check(name, size - _END)
    footer = size - _END - int.from_bytes(self._bytes[size - _END:size - 6].to_pybytes(), "little")
    blocks.check(name, footer)
    blocks.check(name, 0, 8)  # the magic number
    self._batches = _batches(self._bytes[footer:size - _END].to_pybytes())
    self._reader = pa.ipc.open_file(pa.BufferReader(self._bytes))
    self._lock = threading.Lock()
    self.batch = functools.lru_cache(maxsize=64)(self._read)

  def _read(self, number: int) -> "Batch":
    """Its ids and where its texts lie; raises Damaged as all that reads them."""
    start, description = (int(self._batches[number][field]) for field in ("start", "description"))
    self._blocks.check(self._name, start, start + description)
    with self._lock:  # Arrow's reader is not promised to be safe for threads; the cache in front of it is
      batch = self._reader.get_batch(number)
    *ids, valid, offsets, texts = (buffer for column in batch.columns for buffer in column.buffers())
    for buffer in filter(None, (*ids, valid, offsets)):
      self._check(buffer)
    return Batch(batch.column(0), np.frombuffer(offsets, "<i8"), texts, self._check)

  def _check(self, buffer: pa.Buffer) -> None:
    first = buffer.address - self._bytes.address
    self._blocks.check(self._name, first, first + buffer.size)


class Batch:
  """Some documents: their ids were checked, their texts are when they are read."""

  def __init__(self, ids: pa.Array, offsets: np.ndarray, texts: pa.Buffer, check):
    self._ids, self._offsets, self._texts, self._check = ids, offsets, texts, check

  def id(self, row: int) -> str:
    """Of the document in a row."""
    return self._ids[row].as_py()

  def text(self, row: int, first: int = 0, last: int | None = None) -> str:
    """Its text, or bytes first .. last of it; others are not touched."""
    begin, end = self._offsets[row:row + 2].tolist()
    end = end if last is None else begin + last
    part = self._texts.slice(begin + first, end - begin - first)
    self._check(part)
    return part.to_pybytes().decode()


def _batches(footer: bytes) -> np.ndarray:
  """The record batches that a footer lists. pyarrow does not say where they lie; it is a flatbuffer's fourth field."""
  def at(place: int, kind: str) -> int:
    return int(np.frombuffer(footer, kind, 1, place)[0])
  table = at(0, "<u4")
  field = table + at(table - at(table, "<i4") + 4 + 2 * 3, "<u2")
  vector = field + at(field, "<u4")
  return np.frombuffer(footer, _BLOCK, at(vector, "<u4"), vector + 4)
