"""Where things lie while a corpus is prepared, and how they are written: whole or not at all, on any kind of storage.

Each file of unfinished work has the CRC-32 of its bytes behind them, which is looked at when it is read, at 2.7 GB/s a
core: a hundredth of what writing its texts again takes, and less of what all other stages do.

  lock/                      who prepares it; there while somebody does
  hub.json                   the commits of what is taken from the hub without one
  settings.json              of what and how; another one is refused
  work/<stage>/<unit>.*      what a unit of a stage gave, each with its checksum behind it; <unit>.json, its counts, is
                             written last; gone at the end

and when all is done, what corpus/store.py opens:

  documents-<shard>.arrow    ids and texts
  *.npy                      the columns of corpus/builder.py
  bad_records.jsonl          {source, place, reason}: the dead letters
  removed.jsonl              {source, id, reason, kept_row | benchmarks}; kept_row: of a copy, the document that stays
  manifest.json              counts, settings, the sha256 of each file
  summary.json, DONE.json    as of every corpus; DONE.json is written last
"""

import contextlib
import functools
import io
import json
import mmap
import os
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath

from policylong import paths
from policylong.errors import Damaged
from policylong.storage.workdir import write_atomically

_CRC_BYTES = 4


def write_whole(path: epath.Path, data: bytes) -> None:
  """Writes a file that another worker may write at the same time, with the same bytes.

  A worker outlives by some seconds the command that was killed, and a cluster starts a slow unit twice.
  """
  write_atomically(path, data, shared=True)


class Work:
  """The unfinished work of a folder that may lie on any storage; what reads of it raises Damaged where it is."""

  def __init__(self, directory: str):
    self.directory = directory

  def path(self, stage: str, name: str) -> epath.Path:
    """A file of a stage."""
    return epath.Path(self.directory) / "work" / stage / name

  def finished(self, stage: str) -> set[str]:
    """The names of the units that a stage has finished."""
    folder = epath.Path(self.directory) / "work" / stage
    with contextlib.suppress(OSError):
      return {path.stem for path in folder.iterdir() if path.suffix == ".json" and not path.name.startswith(".")}
    return set()

  def counts(self, stage: str, unit: str) -> dict[str, Any]:
    """What a finished unit counted."""
    return json.loads(_read(self.path(stage, f"{unit}.json")))

  def finish(self, stage: str, unit: str, counts: dict) -> None:
    """Says that a unit is finished."""
    self._write(stage, f"{unit}.json", json.dumps(counts).encode())

  def forget(self, stage: str) -> None:
    """Removes what a stage has done, what says so first."""
    for unit in self.finished(stage):
      self.path(stage, f"{unit}.json").unlink(missing_ok=True)
    self.path(stage, "").rmtree()

  def save(self, stage: str, name: str, array: np.ndarray) -> None:
    """Writes an array."""
    with io.BytesIO() as file:
      np.save(file, array, allow_pickle=False)
      self._write(stage, f"{name}.npy", file.getvalue())

  def load(self, stage: str, name: str) -> np.ndarray:
    """Reads an array; mapped where that can be."""
    path = self.path(stage, f"{name}.npy")
    if paths.is_url(self.directory):
      return np.load(io.BytesIO(_read(path)), allow_pickle=False)
    _check(path)
    return np.load(path, mmap_mode="r", allow_pickle=False)

  def save_lines(self, stage: str, name: str, rows: Iterable[dict]) -> None:
    """Writes JSON, an object a line."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    self._write(stage, f"{name}.jsonl", lines.encode(errors="surrogatepass"))

  def lines(self, stage: str, name: str) -> bytes:
    """What `save_lines` wrote."""
    return _read(self.path(stage, f"{name}.jsonl"))

  def save_table(self, stage: str, name: str, table: pa.Table, batch_rows: int) -> None:
    """Writes a table as Arrow IPC, cut into batches."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
      writer.write_table(table, max_chunksize=batch_rows)
    self._write(stage, f"{name}.arrow", sink.getvalue().to_pybytes())

  def table(self, stage: str, name: str) -> pa.ipc.RecordBatchFileReader:
    """Opens a table; mapped where that can be."""
    path = self.path(stage, f"{name}.arrow")
    if paths.is_url(self.directory):
      return pa.ipc.open_file(pa.BufferReader(_read(path)))
    _check(path)
    mapped = pa.memory_map(str(path)).read_buffer()
    return pa.ipc.open_file(pa.BufferReader(mapped.slice(0, mapped.size - _CRC_BYTES)))

  def _write(self, stage: str, name: str, data: bytes) -> None:
    write_whole(self.path(stage, name), data + zlib.crc32(data).to_bytes(_CRC_BYTES))


def _read(path: epath.Path) -> bytes:
  if not path.exists():
    raise Damaged(path, "it is missing")
  data = path.read_bytes()
  _check_bytes(path, data)
  return data[:-_CRC_BYTES]


def _check(path: epath.Path) -> None:
  """As `_read`, of a file of this machine's disks that is going to be mapped."""
  if not path.exists():
    raise Damaged(path, "it is missing")
  state = os.stat(path)
  _check_once(os.fspath(path), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)
def _check_once(path: str, size: int, changed: int) -> None:
  """A process comes back to some files for each of its units."""
  del changed
  if not size:
    raise Damaged(path, "it is empty")
  with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
    _check_bytes(path, view)


def _check_bytes(path: os.PathLike | str, data: bytes | memoryview) -> None:
  if zlib.crc32(data[:-_CRC_BYTES]) != int.from_bytes(data[-_CRC_BYTES:]) or len(data) < _CRC_BYTES:
    raise Damaged(path, "its bytes are not those of the checksum at its end")
