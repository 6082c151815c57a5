"""Reads documents from JSONL, Parquet, folders of text and TFDS, and says of each bad record why it is bad.

A source yields `Reading`s in a fixed order: globs sorted, files from top to bottom. A bad record is
data, not an exception; a source that cannot be read at all is a `UserError`.

Document ids are "<source name>/<own id>", so that they are unique over all sources. The own id is
the value of `id_field` (a string or an integer), the file's path below the folder for text, and where
a record has none "line-<n>" or "row-<n>", counted from 1 ("<file>:line-<n>" in a source of several files).
"""

import dataclasses
import glob
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from policylong import config as config_lib
from policylong.errors import UserError, optional_import
from policylong.records import Document

# Why a record is no document.
NOT_JSON = "not JSON"
NOT_AN_OBJECT = "not a JSON object"
NO_TEXT = "text missing"
TEXT_NOT_STRING = "text not a string"
EMPTY_TEXT = "empty text"
INVALID_UTF8 = "invalid UTF-8"
DUPLICATE_ID = "duplicate id"

_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Reading:
  """One record of a source: a document, or the reason why it is none.

  place: where it stands, for a person ("<file>:<line>"); it holds no folder, so that it is the same on
  every machine. size: bytes of input that it took. has_id: False where the id had to be made up.
  """
  place: str
  size: int
  document: Document | None
  reason: str = ""
  has_id: bool = True


def read_source(source: config_lib.Source) -> Iterator[Reading]:
  """Every record of a source, in a fixed order; blank lines of a JSONL file are no records.

  Raises:
    UserError: a file, folder, column, builder or split is missing, or a file is damaged.
  """
  yield from {"jsonl": _read_jsonl, "parquet": _read_parquet, "text": _read_text, "tfds": _read_tfds}[
      source.kind](source)


def source_files(source: config_lib.Source) -> list[pathlib.Path]:
  """The files that a source reads, sorted; whose state tells whether it changed.

  Raises:
    UserError: nothing is there.
  """
  if source.kind == "tfds":
    directory = pathlib.Path(_builder(source).data_dir)
    if not directory.is_dir():
      raise UserError(f"the path of source {source.name!r} is {source.path}, a TFDS builder that is not prepared "
                      f"in {directory}: run its download_and_prepare with file_format='array_record' first")
    return sorted(path for path in directory.iterdir() if path.is_file())
  return [path for path, _ in _files(source)]


def _files(source) -> list[tuple[pathlib.Path, str]]:
  return find_files(source.path, source.kind, f"the path of source {source.name!r}")


def find_files(where: str, kind: str, field: str) -> list[tuple[pathlib.Path, str]]:
  """(path, name below the folder that was asked for) of each file, sorted by name.

  Args:
    where: a file, a glob, or (of kind text) a folder.
    kind: as of a source.
    field: what says so, for the sentence.

  Raises:
    UserError: nothing is there.
  """
  field = f"{field} is {where}"
  path = os.path.expanduser(where)
  if os.path.isdir(path):
    if kind != "text":
      raise UserError(f"{field}, a folder; kind {kind} wants a file or a glob such as "
                      f"{os.path.join(path, '*.' + kind)}")
    root, found = path, glob.glob(os.path.join(glob.escape(path), "**", "*.txt"), recursive=True)
    if not found:
      raise UserError(f"{field}, a folder without any .txt file")
  elif os.path.isfile(path):
    root, found = os.path.dirname(path), [path]
  elif glob.has_magic(path):
    root, found = _fixed_part(path), [f for f in glob.glob(path, recursive=True) if os.path.isfile(f)]
    if not found:
      raise UserError(f"{field}, a glob that matches no file")
  else:
    raise UserError(f"{field}, and no such file or folder exists")
  names = sorted((pathlib.Path(os.path.relpath(f, root or ".")).as_posix(), f) for f in found)
  return [(pathlib.Path(f), name) for name, f in names]


def _fixed_part(pattern: str) -> str:
  """The folder above the first wildcard of a glob."""
  folder = os.path.dirname(pattern)
  while glob.has_magic(folder):
    folder = os.path.dirname(folder)
  return folder


def _reading(source, place, size, own_id, fallback, text) -> Reading:
  """Checks id and text of one record, whichever format it came from."""
  if text is None:
    return Reading(place, size, None, NO_TEXT)
  if not isinstance(text, str):
    return Reading(place, size, None, TEXT_NOT_STRING)
  if not text.strip():
    return Reading(place, size, None, EMPTY_TEXT)
  has_id = isinstance(own_id, str | int) and not isinstance(own_id, bool) and own_id != ""
  identifier = f"{source.name}/{own_id if has_id else fallback}"
  try:  # JSON can spell half of a surrogate pair, which no UTF-8 file can hold
    text.encode()
    identifier.encode()
  except UnicodeEncodeError:
    return Reading(place, size, None, INVALID_UTF8)
  return Reading(place, size, Document(identifier, text, source.name), has_id=has_id or not source.id_field)


def _read_jsonl(source):
  files = _files(source)
  for path, name in files:
    for number, size, value in read_objects(path):
      place = f"{name}:{number}"
      if isinstance(value, str):
        yield Reading(place, size, None, value)
        continue
      fallback = f"line-{number}" if len(files) == 1 else f"{name}:line-{number}"
      yield _reading(source, place, size, value.get(source.id_field), fallback, value.get(source.text_field))


def read_objects(path: pathlib.Path) -> Iterator[tuple[int, int, dict | str]]:
  """(line number from 1, bytes of the file that it took, the object or why it is none) of each line of a JSONL file.

  Blank lines are left out. The file may be gzipped.

  Raises:
    UserError: it may not be read, or is no whole gzip file.
  """
  for number, (line, size) in enumerate(_lines(path), start=1):
    if not line.strip():
      continue
    try:
      value = json.loads(line.decode())
    except UnicodeDecodeError:
      value = INVALID_UTF8
    except (ValueError, RecursionError):
      value = NOT_JSON
    else:
      value = value if isinstance(value, dict) else NOT_AN_OBJECT
    yield number, size, value


def _lines(path) -> Iterator[tuple[bytes, int]]:
  """(line, bytes of the file that it took), of a plain or gzipped file."""
  try:
    with open(path, "rb") as raw:
      zipped = path.suffix == ".gz"
      position = 0
      for number, line in enumerate(gzip.GzipFile(fileobj=raw) if zipped else raw):
        size = raw.tell() - position if zipped else len(line)
        position += size
        yield line.removeprefix(_BOM) if number == 0 else line, size
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise UserError(f"{path} is not a whole gzip file ({error}): fetch it again") from error
  except PermissionError as error:
    raise UserError(f"{path} may not be read: give read permission or take it out of the source") from error


def _read_text(source):
  for path, name in _files(source):
    try:
      data = path.read_bytes()
    except PermissionError as error:
      raise UserError(f"{path} may not be read: give read permission or take it out of the source") from error
    try:
      text = data.removeprefix(_BOM).decode()
    except UnicodeDecodeError:
      yield Reading(name, len(data), None, INVALID_UTF8)
      continue
    yield _reading(source, name, len(data), name, name, text)


def _read_parquet(source):
  files = _files(source)
  for path, name in files:
    try:
      with pq.ParquetFile(path, memory_map=True) as file:
        yield from _parquet_rows(source, file, path, name, len(files) > 1)
    except (pa.ArrowException, OSError) as error:
      raise UserError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}): "
                      "fetch it again or take it out of the source") from error


def _parquet_rows(source, file, path, name, several):
  columns = [field for field in (source.text_field, source.id_field) if field]
  for column in columns:
    if column not in file.schema_arrow.names:
      raise UserError(f"{path} has no column {column!r}; its columns are {', '.join(file.schema_arrow.names)} "
                      f"(text_field or id_field of source {source.name!r})")
  size = path.stat().st_size // max(file.metadata.num_rows, 1)
  number = 0
  for batch in file.iter_batches(batch_size=1024, columns=columns):
    texts = batch.column(source.text_field)
    ids = batch.column(source.id_field) if source.id_field else None
    for i in range(batch.num_rows):
      number += 1
      place = f"{name}:{number}"
      try:
        text, own_id = _value(texts[i]), None if ids is None else _value(ids[i])
      except UnicodeDecodeError:
        yield Reading(place, size, None, INVALID_UTF8)
        continue
      yield _reading(source, place, size, own_id, f"{name}:row-{number}" if several else f"row-{number}", text)


def _value(scalar):
  """A Parquet cell as Python has it; bytes are taken for UTF-8."""
  value = scalar.as_py()
  return value.decode() if isinstance(value, bytes) else value


def _read_tfds(source):
  builder = _builder(source)
  for field in filter(None, (source.text_field, source.id_field)):
    if field not in builder.info.features:
      raise UserError(f"the TFDS data set {source.path} has no feature {field!r}; its features are "
                      f"{', '.join(builder.info.features)} (text_field or id_field of source {source.name!r})")
  try:
    rows = builder.as_data_source(source.split)
  except Exception as error:  # TFDS raises whatever the split parser or the file format met
    raise UserError(f"the TFDS data set {source.path} does not give split {source.split!r} of "
                    f"{', '.join(builder.info.splits)} as a data source ({_first_line(error)}): it must be "
                    "prepared with file_format='array_record' or 'parquet'") from error
  size = builder.info.dataset_size // max(builder.info.splits.total_num_examples, 1)
  for number, row in enumerate(rows, start=1):
    place = f"{source.split}:{number}"
    try:
      text, own_id = _text_of(row[source.text_field]), _text_of(row.get(source.id_field))
    except UnicodeDecodeError:
      yield Reading(place, size, None, INVALID_UTF8)
      continue
    yield _reading(source, place, size, own_id, f"row-{number}", text)


def _text_of(value):
  """A TFDS feature as Python has it: text comes as bytes, numbers as numpy scalars."""
  if isinstance(value, bytes):
    return value.decode()
  return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _builder(source):
  """The TFDS builder that `path` names: a prepared folder, or "name", "name/config", "name:version"."""
  # A second of start-up that only this kind of source needs.
  tfds = optional_import("tensorflow_datasets", "tfds", f"source {source.name!r}, of kind tfds,")
  path = os.path.expanduser(source.path)
  try:
    return tfds.builder_from_directory(path) if os.path.isdir(path) else tfds.builder(source.path)
  except Exception as error:  # an unknown name, version, config or folder, each with its own exception
    raise UserError(f"the path of source {source.name!r} is {source.path}, which is no TFDS builder and no folder "
                    f"with a prepared data set ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
