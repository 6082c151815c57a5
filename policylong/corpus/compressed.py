"""Reads bzip2, xz and Zstandard files to their last byte: all their streams (frames), whatever window they need."""

import bz2
import io
import lzma
from collections.abc import Callable
from typing import Protocol

import zstandard

# What is read of a file at a time; it may become thousands of times as much.
_READ = 1 << 14


class _Decompressor(Protocol):
  """Of one stream: `eof` at its end, and then `unused_data` has what follows."""

  @property
  def eof(self) -> bool: ...

  @property
  def unused_data(self) -> bytes: ...

  def decompress(self, data: bytes, /) -> bytes: ...


def _zstd() -> _Decompressor:
  # As zstd --long=31 writes it, the most that there is; without it 2^27 is refused, be there so much text or not.
  return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "bzip2": bz2.BZ2Decompressor, "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), "zstd": _zstd}
# What reading raises where a file is cut short or damaged.
ERRORS = EOFError, lzma.LZMAError, zstandard.ZstdError, OSError


class Decompressed(io.RawIOBase):
  """What a file's streams hold, one behind the other. Between and behind them there may be zeros, as xz pads them.

  The standard library's own readers take what follows a stream, and is none, for the end: with one damaged byte there
  all streams behind it would be left out without a word.

  Raises:
    ERRORS: when it is read; all that is whole before comes first.
  """

  def __init__(self, file: io.BufferedIOBase, codec: str):
    self._file, self._new = file, _DECOMPRESSORS[codec]
    self._stream: _Decompressor | None = None
    self._ready = memoryview(b"")

  def readable(self) -> bool:
    """It is."""
    return True

  def readinto(self, buffer, /) -> int:
    """As of every raw file."""
    while not self._ready:
      data = b""
      if self._stream and self._stream.eof:
        data, self._stream = self._stream.unused_data, None
      data = data or self._file.read(_READ)
      if not data:
        if self._stream:
          raise EOFError("it ends within a stream")
        return 0
      if not self._stream:
        if not (data := data.lstrip(b"\0")):
          continue
        self._stream = self._new()
      self._ready = memoryview(self._stream.decompress(data))
    count = min(len(buffer), len(self._ready))
    buffer[:count], self._ready = self._ready[:count], self._ready[count:]
    return count
