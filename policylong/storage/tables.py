"""Lists of frozen records as Parquet tables, and back: one column a field, one row a record.

The bytes depend on the records and the place in the run alone (no clock, no path), so that an interrupted and restarted
run ends with the same files. The footer says what the place is (`workdir.place_of`), and holds the sha256 of all bytes,
with zeros where it stands itself: whatever was changed of a file, and whichever file lies in the place of another, is
found when it is read.
"""

import dataclasses
import hashlib
import io
import os
import typing
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from policylong.errors import Damaged, UserError
from policylong.storage.workdir import place_of, recorded_sha256, write_atomically

_PLACE, _SHA256, _UNKNOWN = "policylong.place", "policylong.sha256", "0" * 64
_PIECE = 1 << 20
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def from_records(kind: type, records: Sequence) -> pa.Table:
  """A table with the fields of dataclass `kind` as columns; fields are str, int, float or bool."""
  return from_columns(kind, {field.name: [getattr(record, field.name) for record in records]
                             for field in dataclasses.fields(kind)})


def from_columns(kind: type, columns: Mapping[str, Sequence | np.ndarray | pa.Array]) -> pa.Table:
  """The same of all records' values, field by field: for millions of records, which need not be objects."""
  hints = typing.get_type_hints(kind)
  schema = pa.schema([(field.name, _TYPES[hints[field.name]]) for field in dataclasses.fields(kind)])
  return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def to_records(kind: type, table: pa.Table) -> list:
  """The records that `from_records` wrote."""
  names = [field.name for field in dataclasses.fields(kind)]
  columns = [table.column(name).to_pylist() for name in names]
  return [kind(*row) for row in zip(*columns)]


def to_bytes(table: pa.Table, place: str = "") -> bytes:
  """A table as a Parquet file, which says what place it is for and what the sha256 of its bytes is."""
  buffer = io.BytesIO()
  table = table.replace_schema_metadata(None)  # of the file that it was read from
  with pq.ParquetWriter(buffer, table.schema, compression="zstd") as writer:
    writer.write_table(table)
    writer.add_key_value_metadata({_PLACE: place, _SHA256: _UNKNOWN})
  data = buffer.getvalue()
  at = _at(data[-_footer_bytes(data[-8:]):]) - _footer_bytes(data[-8:]) + len(data)
  return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + len(_UNKNOWN):]


def from_bytes(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
  """The table that `to_bytes` was given, or some columns of it; raises what pyarrow raises, and checks nothing."""
  return pq.read_table(io.BytesIO(data), columns=columns).replace_schema_metadata(None)


def write(path: epath.Path, table: pa.Table) -> None:
  """Writes a Parquet file whole or not at all."""
  write_atomically(path, to_bytes(table, place_of(path)))


def read(path: epath.Path, columns: Sequence[str] | None = None) -> pa.Table:
  """Reads a Parquet file of this package, or some columns of it.

  Raises:
    UserError: the file is missing.
    Damaged: it holds something else than was written.
  """
  try:
    data = epath.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror or error}): put a whole copy in its place, or begin again "
                    "elsewhere") from error
  check(path, io.BytesIO(data))
  try:
    return from_bytes(data, columns)
  except (pa.ArrowException, OSError) as error:
    raise Damaged(path, str(error).splitlines()[0]) from error


def check(path: epath.PathLike, file: BinaryIO | None = None, checked: bool = True) -> str:
  """The sha256 of a table's file, which holds what was written for this place.

  Args:
    path: of the file.
    file: it, opened; None opens it. It is read in pieces.
    checked: False takes what has no checksum, which an earlier version may have written.

  Raises:
    OSError: it cannot be read.
    Damaged: it holds other bytes, is for another place, or is not what DONE.json of its round says.
  """
  if file is None:
    with epath.Path(path).open("rb") as file:
      return check(path, file, checked)
  size = file.seek(0, os.SEEK_END)
  file.seek(max(0, size - 8))
  length = _footer_bytes(file.read())
  if not 16 <= length <= size:
    raise Damaged(path, "it does not end as a Parquet file does")
  file.seek(size - length)
  footer = file.read()
  at = _at(footer)
  if at < 0 and not checked:
    return ""
  if at < 0:
    raise Damaged(path, "it has no checksum: written by something else, or by a version before there were any")
  end = at + len(_UNKNOWN)
  found, told = hashlib.sha256(), footer[at:end]
  file.seek(0)
  for start in range(0, size - length, _PIECE):
    found.update(file.read(min(_PIECE, size - length - start)))
  whole = found.copy()
  found.update(footer[:at] + _UNKNOWN.encode() + footer[end:])
  whole.update(footer)
  if found.hexdigest().encode() != told:
    raise Damaged(path, "its bytes are not those of its checksum")
  file.seek(0)
  place = (pq.read_metadata(file).metadata or {}).get(_PLACE.encode(), b"").decode()
  if place != place_of(path):
    raise Damaged(path, f"it is {place}, and this place is {place_of(path)}")
  if recorded_sha256(path) not in (None, whole.hexdigest()):
    raise Damaged(path, "it is not the table of which the round's DONE.json tells")
  return whole.hexdigest()


def _footer_bytes(end: bytes) -> int:
  """How many bytes the footer takes, with its length and the magic number behind it, by the last eight; 0: none."""
  return int.from_bytes(end[:4], "little") + 8 if len(end) == 8 and end[4:] == b"PAR1" else 0


def _at(footer: bytes) -> int:
  """Where the checksum begins in a footer; -1: it has none. Metadata stands behind all that came from the rows."""
  at = footer.rfind(_SHA256.encode())
  # The key, then the value: its type and its length, a byte each.
  return -1 if at < 0 else at + len(_SHA256) + 2
