"""Reads documents from JSONL, Parquet, folders of text, MDS, TFDS and the hub, and says why a record is bad.

A source yields `Reading`s in a fixed order: globs sorted, files from top to bottom. A bad record is
data, not an exception, and so is a file that cannot be read among several; a source that cannot be read at
all is a `UserError`.

Document ids are "<source name>/<own id>", so that they are unique over all sources. The own id is
the value of `id_field` (a string or an integer), the file's path below the folder for text, and where
a record has none "line-<n>" or "row-<n>", counted from 1 ("<file>:line-<n>" in a source of several files).
Where ids begin anew in each file of a source, all of its ids are "<file>:<own id>".

A field may lie deeper: "content.text" is the field "text" of the field "content", unless a field has that very name.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from policylong import config as config_lib
from policylong import paths
from policylong.corpus import mds, parquet, prepared, streamed
from policylong.corpus.files import Unreadable, find_files, opened, reason_of, size_of
from policylong.corpus.json_records import INVALID_UTF8, read_objects
from policylong.records import Document

log = logging.getLogger(__name__)

# Why a record is no document; json_records.py has more.
NO_TEXT = "text missing"
TEXT_NOT_STRING = "text not a string"
EMPTY_TEXT = "empty text"
DUPLICATE_ID = "duplicate id"

# All files of a source.
ALL = slice(None)
_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Reading:
  """One record of a source: a document, or the reason why it is none.

  place: where it stands, for a person ("<file>:<line>"); it holds no folder, so that it is the same on
  every machine. size: bytes of input that it took. has_id: False where the id had to be made up. file: the name of its
  file in the source. chunks: `chunks.chunk_table` of the text, where another process has made it already.
  """
  place: str
  size: int
  document: Document | None
  reason: str = ""
  has_id: bool = True
  file: str = ""
  chunks: np.ndarray | None = None


def read_source(source: config_lib.Source, ids_with_file: bool = False, only: slice = ALL) -> Iterator[Reading]:
  """Every record of a source, in a fixed order; blank lines of a JSONL file are no records.

  Args:
    source: where they are.
    ids_with_file: whether a record's own id is "<file>:<own id>".
    only: which of the source's files (`file_sizes`) are read; what is read of them is the same.

  Raises:
    UserError: a file, folder, column, builder or split is missing, or the only file is damaged.
  """
  if source.kind == "text":
    yield from _read_text(source, only)
    return
  files, rows = _rows(source)
  unit = "line" if source.kind == "jsonl" else "row"
  for path, name in files[only]:
    try:
      for number, size, row in rows(path):
        own_id = "" if isinstance(row, str) else field(row, source.id_field)
        has_id = isinstance(own_id, str | int | bytes) and not isinstance(own_id, bool) and own_id not in ("", b"")
        if not has_id:
          own_id = f"{unit}-{number}"
        named = len(files) > 1 and (ids_with_file or not has_id)
        yield _reading(source, name, f"{name}:{number}", size, own_id, name if named else "", row, has_id)
    except Unreadable as error:
      yield Reading(name, 0, None, reason_of(error, path, len(files) == 1), file=name)


def carrying_file(source: config_lib.Source, reading: Reading) -> Reading:
  """What `read_source` gives with `ids_with_file` for a record of several files that it gave without."""
  # An id that was made up has the file already, and so has that of a text.
  if reading.document is None or source.kind == "text" or not source.id_field or not reading.has_id:
    return reading
  own_id = reading.document.id.removeprefix(f"{source.name}/")
  try:
    identifier = f"{source.name}/{reading.file}:{own_id}"
    identifier.encode()
  except UnicodeError:
    return dataclasses.replace(reading, document=None, reason=INVALID_UTF8, has_id=True)
  return dataclasses.replace(reading, document=dataclasses.replace(reading.document, id=identifier))


def read_with_unique_ids(source: config_lib.Source) -> list[Reading]:
  """All records of a source, in memory; their ids carry the file where two files share one.

  A second record of a file with the same id is a bad one, as in a corpus.

  Raises:
    UserError: as `read_source`.
  """
  readings = list(read_source(source))
  first: dict[str, str] = {}
  for reading in readings:
    if reading.document and first.setdefault(reading.document.id, reading.file) != reading.file:
      log_ids_begin_anew(source.name, reading)
      readings = list(read_source(source, ids_with_file=True))
      break
  seen: set[str] = set()
  for i, reading in enumerate(readings):
    if reading.document and reading.document.id in seen:
      readings[i] = dataclasses.replace(reading, document=None, reason=DUPLICATE_ID)
    elif reading.document:
      seen.add(reading.document.id)
  return readings


def log_ids_begin_anew(name: str, reading: Reading) -> None:
  """Says that the ids of a source carry the file, because of this record."""
  log.info("source %s: the id %s stands in several files, again in %s: its ids carry the file", name,
           reading.document.id.removeprefix(f"{name}/"), reading.place)


def source_at(name: str, path: str) -> config_lib.Source:
  """The source of a command's flag: JSONL, Parquet or MDS by what lies there, text by the suffix .txt."""
  expanded = paths.expand(path)
  if mds.is_mds(expanded):
    kind = "mds"
  elif parquet.is_parquet(expanded):
    kind = "parquet"
  else:
    kind = "text" if expanded.endswith(".txt") else "jsonl"
  id_field = "" if kind == "parquet" and not parquet.has_column(expanded, "id") else "id"
  return config_lib.Source(name=name, kind=kind, path=paths.Path(path), id_field=id_field, text_field="text", split="")


def source_files(source: config_lib.Source) -> list[pathlib.Path]:
  """The files that a source reads, sorted; whose state tells whether it changed. Some may be none that can be read.

  Raises:
    UserError: nothing is there.
  """
  if source.kind == "tfds":
    return prepared.files(source)
  if source.kind == "hub":  # a commit says it all
    return []
  if source.kind == "mds":
    return mds.files(source.path, _field(source))
  return [path for path, _ in find_files(source.path, source.kind, _field(source))]


def file_sizes(source: config_lib.Source) -> list[int]:
  """The bytes of each file that `read_source` reads, in its order; a data set of TFDS or the hub is one, of 0.

  Raises:
    UserError: nothing is there.
  """
  if source.kind == "text":
    files = find_files(source.path, source.kind, _field(source))
  else:
    files, _ = _rows(source)
  return [size_of(path) for path, _ in files]


def field(row: Mapping, name: str) -> object:
  """The value of a field, which may lie in others; None if there is none."""
  if not name:
    return None
  if name in row:
    return row[name]
  for dot in (i for i, letter in enumerate(name) if letter == "."):
    inner = row.get(name[:dot])
    if isinstance(inner, Mapping) and (value := field(inner, name[dot + 1:])) is not None:
      return value
  return None


def _field(source) -> str:
  return f"the path of source {source.name!r}"


def _rows(source) -> tuple[list[tuple[pathlib.Path, str]], Callable]:
  """The files, and what reads one of them: (number from 1, bytes that it took, fields or why it has none) a record."""
  if source.kind == "tfds":
    return [(pathlib.Path(source.path), source.split)], lambda _: prepared.rows(source)
  if source.kind == "hub":
    return [(pathlib.Path(source.path), source.split)], lambda _: streamed.rows(source)
  wanted = [name for name in (source.text_field, source.id_field) if name]
  if source.kind == "mds":
    found = mds.find_shards(source.path, _field(source))
    shards = {shard.path: shard for shard in found}
    return [(shard.path, shard.name) for shard in found], lambda path: mds.rows(shards[path], wanted)
  files = find_files(source.path, source.kind, _field(source))
  if source.kind == "jsonl":
    return files, read_objects
  return files, lambda path: parquet.rows(path, source.text_field, source.id_field, len(files) == 1)


def _reading(source, file, place, size, own_id, prefix, row, has_id=True) -> Reading:
  """Checks id and text of one record, whichever format it came from."""
  if isinstance(row, str):
    return Reading(place, size, None, row, file=file)
  try:
    text, own_id = _decoded(field(row, source.text_field)), _decoded(own_id)
    if text is None:
      return Reading(place, size, None, NO_TEXT, file=file)
    if not isinstance(text, str):
      return Reading(place, size, None, TEXT_NOT_STRING, file=file)
    if not text.strip():
      return Reading(place, size, None, EMPTY_TEXT, file=file)
    identifier = f"{source.name}/{prefix}{':' if prefix else ''}{own_id}"
    text.encode()  # JSON can spell half of a surrogate pair, which no UTF-8 file can hold
    identifier.encode()
  except UnicodeError:
    return Reading(place, size, None, INVALID_UTF8, file=file)
  return Reading(place, size, Document(identifier, text, source.name), has_id=has_id or not source.id_field, file=file)


def _decoded(value):
  """Bytes, as TFDS, MDS and binary columns have them, are taken for UTF-8."""
  return value.decode() if isinstance(value, bytes) else value


def _read_text(source, only):
  files = find_files(source.path, source.kind, _field(source))
  source = dataclasses.replace(source, id_field="name", text_field="text")
  for path, name in files[only]:
    try:
      with opened(path) as (stream, position):
        data = stream.read()
        size = position()
    except Unreadable as error:
      yield Reading(name, 0, None, reason_of(error, path, len(files) == 1), file=name)
      continue
    yield _reading(source, name, name, size, name, "", {"text": data.removeprefix(_BOM)})
