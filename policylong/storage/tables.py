"""Lists of frozen records as Parquet tables, and back: one column a field, one row a record.

The bytes depend on the records alone (no clock, no path), so that an interrupted and restarted run
ends with the same files.
"""

import dataclasses
import io
import typing
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from policylong.errors import UserError
from policylong.storage.workdir import write_atomically

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


def to_bytes(table: pa.Table) -> bytes:
  """A table as a Parquet file."""
  buffer = io.BytesIO()
  pq.write_table(table, buffer, compression="zstd")
  return buffer.getvalue()


def from_bytes(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
  """The table that `to_bytes` was given, or some columns of it; raises what pyarrow raises."""
  return pq.read_table(io.BytesIO(data), columns=columns)


def write(path: epath.Path, table: pa.Table) -> None:
  """Writes a Parquet file whole or not at all."""
  write_atomically(path, to_bytes(table))


def read(path: epath.Path, columns: Sequence[str] | None = None) -> pa.Table:
  """Reads a Parquet file of this package, or some columns of it.

  Raises:
    UserError: the file is missing or damaged.
  """
  try:
    return from_bytes(epath.Path(path).read_bytes(), columns)
  except (FileNotFoundError, pa.ArrowInvalid, OSError) as error:
    raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): put a whole copy in its "
                    "place, or begin again in another --workdir") from error
