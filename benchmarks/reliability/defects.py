"""Defects that a battery must see: each is planted in this process, of which what is started next is a copy."""

import contextlib
import io
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyarrow.parquet as pq

from policylong.storage import tables
from policylong.storage.workdir import place_of
from policylong.training.batches import Batches

_SHARD = "rounds/1/shards/scan-00000.parquet"


class Defect(NamedTuple):
  """What is wrong with the code; what it would have to find, in the folder of a stopped run; whether it can be mended
  where nothing is wrong with the code, or is nothing then.
  """
  plant: Callable[[], contextlib.AbstractContextManager[None]]
  change: Callable[[pathlib.Path], None]
  without: str


@contextlib.contextmanager
def _replaced(owner: object, name: str, function: Callable) -> Iterator[None]:
  kept = getattr(owner, name)
  setattr(owner, name, function)
  try:
    yield
  finally:
    setattr(owner, name, kept)


def _changed_value(run: pathlib.Path) -> None:
  """A shard says another entropy, and its checksum is that of the first one."""
  path = run / _SHARD
  table = tables.read(path)
  rows = table["threshold"].to_pylist()
  column = table.schema.get_field_index("threshold")
  changed = table.set_column(column, table.schema.field(column), [[0.5 * value for value in rows]])
  place = pq.read_metadata(path).metadata[b"policylong.place"].decode()
  told = pq.read_metadata(path).metadata[b"policylong.sha256"]
  data = tables.to_bytes(changed, place)
  digest = pq.read_metadata(io.BytesIO(data)).metadata[b"policylong.sha256"]
  path.write_bytes(data.replace(digest, told))


def _swapped(run: pathlib.Path) -> None:
  """A shard lies in the place of another one."""
  path = run / _SHARD
  path.write_bytes((run / _SHARD.replace("00000", "00001")).read_bytes())


def _told_place(path) -> str:
  """What the file says itself, whatever its place is."""
  if not path.exists():
    return place_of(path)
  return pq.read_metadata(path).metadata[b"policylong.place"].decode()


DEFECTS = {
    "a skipped hash check": Defect(lambda: _replaced(tables, "check", lambda *_, **__: ""), _changed_value, "rebuilt"),
    "a swapped shard": Defect(lambda: _replaced(tables, "place_of", _told_place), _swapped, "rebuilt"),
    "a lost data cursor": Defect(lambda: _replaced(Batches, "set_state", lambda *_: None), lambda _: None, "harmless")}
