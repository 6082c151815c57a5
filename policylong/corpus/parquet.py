"""Reads rows of Parquet files, whatever kind of string a column holds."""

import contextlib
import pathlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from policylong import paths
from policylong.corpus.files import Unreadable, raw, size_of, why_not
from policylong.corpus.json_records import INVALID_UTF8
from policylong.errors import UserError

_MAGIC = b"PAR1"


def rows(path: epath.Path, text_field: str, id_field: str, alone: bool) -> Iterator[tuple[int, int, dict | str]]:
  """(number from 1, about how many bytes it took, the columns or why they cannot be had) of each row.

  Args:
    path: of a file.
    text_field: a column, or a field of a struct column ("content.text").
    id_field: the same, or "". A file among several may lack it.
    alone: whether it is the only file of its source.

  Raises:
    Unreadable: it is no whole Parquet file, or has no column of texts.
    UserError: the only file lacks a column.
  """
  if reason := why_not(path):
    raise Unreadable(reason)
  try:
    with _opened(path) as file:
      columns = []
      for name in filter(None, (text_field, id_field)):
        if (column := _column(file.schema_arrow, name)) is not None:
          columns.append(column)
        elif alone:
          raise UserError(f"{path} has no column {name!r}; its columns are {', '.join(file.schema_arrow.names)} "
                          "(what text_field or id_field of its source names)")
        elif name == text_field:
          raise Unreadable(f"Parquet without a column {name!r}")
      size = size_of(path) // max(file.metadata.num_rows, 1)
      yield from _values(file, list(dict.fromkeys(columns)), size)
  except (pa.ArrowException, OSError) as error:
    raise Unreadable("not whole Parquet",
                     f"cannot be read as Parquet ({(str(error) or repr(error)).splitlines()[0]})") from error


def is_parquet(where: str) -> bool:
  """Whether a file, or one of a glob's files (beside a README, say), is Parquet by its first bytes."""
  return any(_head(path) == _MAGIC for path in map(pathlib.Path, paths.matching(where)) if not why_not(path))


def has_column(where: str, name: str) -> bool:
  """Whether a Parquet file, or one of a glob's files, has a column; one that cannot be read has none."""
  def has(path):
    try:
      with pq.ParquetFile(path) as file:
        return _column(file.schema_arrow, name) is not None
    except (pa.ArrowException, OSError):
      return False
  return any(has(path) for path in paths.matching(where) if not why_not(pathlib.Path(path)))


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[pq.ParquetFile]:
  if not paths.is_url(path):
    with pq.ParquetFile(path, memory_map=True) as file:
      yield file
  else:
    with raw(path) as stream, pq.ParquetFile(stream) as file:
      yield file


def _head(path: pathlib.Path) -> bytes:
  with open(path, "rb") as file:
    return file.read(len(_MAGIC))


def _column(schema: pa.Schema, name: str) -> str | None:
  """What of a file is to be read for a field: the column of that very name, or the outermost one that holds it."""
  if name in schema.names:
    return name
  for dot in (i for i, letter in enumerate(name) if letter == "."):
    if (outer := name[:dot]) in schema.names and pa.types.is_struct(schema.field(outer).type):
      return outer
  return None


def _values(file: pq.ParquetFile, columns: list[str], size: int) -> Iterator[tuple[int, int, dict | str]]:
  number = 0
  for batch in file.iter_batches(batch_size=1024, columns=columns):
    for i in range(batch.num_rows):
      number += 1
      try:
        yield number, size, {name: batch.column(name)[i].as_py() for name in columns}
      except UnicodeDecodeError:  # a string column whose bytes are no UTF-8, as some writers leave it
        yield number, size, INVALID_UTF8
