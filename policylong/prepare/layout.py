"""Where things lie while a corpus is prepared, and how they are written: whole or not at all, on any kind of storage.

  lock/                      who prepares it; there while somebody does
  hub.json                   the commits of what is taken from the hub without one
  settings.json              of what and how; another one is refused
  work/<stage>/<unit>.*      what a unit of a stage gave; <unit>.json, its counts, is written last; gone at the end

and when all is done, what corpus/store.py opens:

  documents-<shard>.arrow    ids and texts
  *.npy                      the columns of corpus/builder.py
  bad_records.jsonl          {source, place, reason}: the dead letters
  removed.jsonl              {id, reason, kept | benchmarks}
  manifest.json              counts, settings, the sha256 of each file
  summary.json, DONE.json    as of every corpus; DONE.json is written last
"""

import contextlib
import io
import json
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath

from policylong import paths


def write_whole(path: epath.Path, data: bytes) -> None:
  """As `workdir.write_atomically`, where another worker may write the same bytes at the same time.

  A worker outlives by some seconds the command that was killed, and a cluster starts a slow unit twice.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  temporary.write_bytes(data)
  temporary.replace(path)


class Work:
  """The unfinished work of a folder that may lie on any storage."""

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
    return json.loads(self.path(stage, f"{unit}.json").read_bytes())

  def finish(self, stage: str, unit: str, counts: dict) -> None:
    """Says that a unit is finished."""
    write_whole(self.path(stage, f"{unit}.json"), json.dumps(counts).encode())

  def save(self, stage: str, name: str, array: np.ndarray) -> None:
    """Writes an array."""
    with io.BytesIO() as file:
      np.save(file, array, allow_pickle=False)
      write_whole(self.path(stage, f"{name}.npy"), file.getvalue())

  def load(self, stage: str, name: str) -> np.ndarray:
    """Reads an array; mapped where that can be."""
    path = self.path(stage, f"{name}.npy")
    if paths.is_url(self.directory):
      return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    return np.load(path, mmap_mode="r", allow_pickle=False)

  def save_lines(self, stage: str, name: str, rows: Iterable[dict]) -> None:
    """Writes JSON, an object a line."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(self.path(stage, f"{name}.jsonl"), lines.encode(errors="surrogatepass"))

  def save_table(self, stage: str, name: str, table: pa.Table, batch_rows: int) -> None:
    """Writes a table as Arrow IPC, cut into batches."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
      writer.write_table(table, max_chunksize=batch_rows)
    write_whole(self.path(stage, f"{name}.arrow"), sink.getvalue().to_pybytes())

  def table(self, stage: str, name: str) -> pa.ipc.RecordBatchFileReader:
    """Opens a table; mapped where that can be."""
    path = self.path(stage, f"{name}.arrow")
    return pa.ipc.open_file(pa.BufferReader(path.read_bytes()) if paths.is_url(self.directory)
                            else pa.memory_map(str(path)))
