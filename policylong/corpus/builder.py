"""Writes a corpus to disk in one pass over its sources, in memory that does not grow with the texts.

In the folder: documents.arrow (uncompressed Arrow IPC, columns id and text, in batches) and one .npy
per column of numbers, because a flat array can be mapped and searched where Arrow's columns are cut
into batches:

  batch_first        int64[batches + 1]    first document of each batch of documents.arrow
  document_first     int64[documents + 1]  first chunk of each document
  chunk_document     int32[chunks]
  chunk_start, chunk_end            int64[chunks], characters of the document's text
  chunk_byte_start, chunk_byte_end  int64[chunks], bytes of its UTF-8
  id_hash, id_document              uint64, int32[documents], sorted by the hash of the id

summary.json is what a report says of the corpus. What stays in memory: 8 bytes a document for its hash,
12 more at the end for sorting.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import typing
from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa

from policylong import config as config_lib
from policylong import oserrors
from policylong.corpus import chunks, dealt, sources
from policylong.errors import UserError
from policylong.records import Document
from policylong.storage.progress import Bar

# Changes when the files, the chunker or the ids mean something else than before.
FORMAT = 1
BATCH_BYTES = 8 << 20
BATCH_ROWS = 4096
EXAMPLES = 5  # bad records that are named, per reason

SCHEMA = pa.schema([("id", pa.large_string()), ("text", pa.large_string())])
CHUNK_COLUMNS = {"chunk_document": np.int32, "chunk_start": np.int64, "chunk_end": np.int64,
                 "chunk_byte_start": np.int64, "chunk_byte_end": np.int64}
ARRAYS = ("batch_first", "document_first", *CHUNK_COLUMNS, "id_hash", "id_document")


class IdsBeginAnew(Exception):
  """Two files of a source have the same id: its ids must carry the file."""

  def __init__(self, source: str):
    super().__init__(source)
    self.source = source


def build(config: config_lib.Corpus, total_bytes: int, directory: pathlib.Path,
          with_file: Collection[str] = (), read: dealt.Reader | None = None) -> str:
  """Reads all sources and fills the empty folder `directory`.

  Args:
    config: which sources.
    total_bytes: of their files, for the bar.
    directory: where to write.
    with_file: sources whose ids carry the file.
    read: gives the records of a source; None reads its files.

  Returns:
    The version: a hash of every document's id and text, of what was refused, and of the chunker. It
    holds no path and no time, so the same texts have the same version everywhere.
  Raises:
    UserError: a source cannot be read, or no source gives a single document.
    IdsBeginAnew: a source is to be named in `with_file`.
  """
  digest = hashlib.sha256(f"{FORMAT} {config.chunk_chars}".encode())
  counts = _Counts(config)
  with _Writer(directory, config.chunk_chars) as writer, Bar(
      total=total_bytes, unit="B", unit_scale=True, desc="corpus", mininterval=1) as bar:
    for source in config.sources:
      digest.update(b"source" + source.name.encode() + b"\0")
      carry = source.name in with_file
      for reading in _unique((read or sources.read_source)(source, carry), carry):
        bar.update(reading.size)
        if reading.document is None:
          counts.bad(source.name, reading)
          digest.update(b"bad" + f"{reading.place}\0{reading.reason}\0".encode(errors="surrogatepass"))
        else:
          added = writer.add(reading.document, reading.chunks)
          counts.good(source.name, reading, added)
          _update(digest, reading.document)
    if not writer.documents:
      raise UserError(counts.nothing())
  version = digest.hexdigest()[:16]
  summary = counts.summary(version, config.chunk_chars)
  (directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
  return version


def hash_id(doc_id: str) -> int:
  """64 bits of a document's id, the same in every process."""
  return int.from_bytes(hashlib.blake2b(doc_id.encode(), digest_size=8).digest())


def _update(digest, document: Document) -> None:
  """Adds a document with its lengths, so that no two corpora spell the same bytes."""
  for part in (document.id.encode(), document.text.encode()):
    digest.update(len(part).to_bytes(8))
    digest.update(part)


def _unique(readings: Iterator[sources.Reading], with_file: bool) -> Iterator[sources.Reading]:
  """Turns a second document with the same id into a bad record. (Ids of two sources always differ.)

  Raises:
    IdsBeginAnew: the two are of different files, and ids do not carry them yet.
  """
  seen = of_file = Hashes()
  file = None
  for reading in readings:
    if file is not None and reading.file != file and not with_file:
      of_file = Hashes()
    file = reading.file
    if reading.document is not None:
      key = hash_id(reading.document.id)
      new = seen.add(key)
      new_in_file = new if of_file is seen else of_file.add(key)
      if not new and new_in_file:
        sources.log_ids_begin_anew(reading.document.source, reading)
        raise IdsBeginAnew(reading.document.source)
      if not new:
        reading = dataclasses.replace(reading, document=None, reason=sources.DUPLICATE_ID)
    yield reading


class Hashes:
  """A set of 64-bit numbers in about 8 bytes each: a Python set of the newest, sorted runs of the rest.

  Among 229M documents two ids share a hash with probability 0.0014; the second would be dropped.
  """

  RECENT = 1 << 18

  def __init__(self):
    self._recent: set[int] = set()
    self._runs: list[np.ndarray] = []

  def add(self, value: int) -> bool:
    """Adds a number; whether it is new."""
    if value in self._recent:
      return False
    key = np.uint64(value)
    for run in self._runs:
      i = np.searchsorted(run, key)
      if i < len(run) and run[i] == key:
        return False
    self._recent.add(value)
    if len(self._recent) == self.RECENT:
      self._runs.append(np.sort(np.fromiter(self._recent, np.uint64, len(self._recent))))
      self._recent.clear()
      while len(self._runs) > 1 and len(self._runs[-2]) <= len(self._runs[-1]):
        self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]), kind="stable")]
    return True


class _Writer:
  """Appends documents and their chunks to the files of a folder, which are whole when its `with` block ends."""

  def __init__(self, directory: pathlib.Path, chunk_chars: int):
    self._directory, self._chunk_chars = directory, chunk_chars
    self._open = contextlib.ExitStack()
    self._file = self._open.enter_context(pa.OSFile(str(directory / "documents.arrow"), "wb"))
    self._arrow = pa.ipc.new_file(self._file, SCHEMA)
    self._columns = {name: self._column(name, kind) for name, kind in CHUNK_COLUMNS.items()}
    self._first = self._column("document_first", np.int64)
    self._batch_first = [0]
    self._hashes: list[np.ndarray] = []
    self.documents = self._chunks = 0
    self._start_batch()

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    with oserrors.about(self._directory), self._open:
      if kind is None:
        self._finish()

  def add(self, document: Document, spans: np.ndarray | None = None) -> int:
    """Appends one document, with its chunks where they are known; their number."""
    spans = chunks.chunk_table(document.text, self._chunk_chars) if spans is None else spans
    self._document_first.append(self._chunks)
    self._ids.append(document.id)
    self._texts.append(document.text)
    self._batch_bytes += len(document.text)
    self._spans.append(spans)
    self.documents += 1
    self._chunks += len(spans)
    if self._batch_bytes >= BATCH_BYTES or len(self._ids) == BATCH_ROWS:
      self._flush()
    return len(spans)

  def _start_batch(self):
    self._ids, self._texts, self._spans, self._document_first = [], [], [], []
    self._batch_bytes = 0

  def _flush(self):
    if not self._ids:
      return
    documents = np.arange(self.documents - len(self._ids), self.documents)
    numbers = np.repeat(documents, [len(spans) for spans in self._spans])
    with oserrors.about(self._directory):
      self._arrow.write_batch(pa.record_batch([pa.array(self._ids, pa.large_string()),
                                               pa.array(self._texts, pa.large_string())], schema=SCHEMA))
      for column, values in zip(self._columns.values(), [numbers, *np.concatenate(self._spans).T]):
        column.append(values)
    self._first.append(np.asarray(self._document_first))
    self._hashes.append(np.fromiter(map(hash_id, self._ids), np.uint64, len(self._ids)))
    self._batch_first.append(self.documents)
    self._start_batch()

  def _column(self, name, kind):
    return Column(self._open.enter_context(open(self._directory / f"{name}.npy", "wb")), kind)

  def _finish(self):
    self._flush()
    self._arrow.close()
    self._first.append(np.asarray([self._chunks]))
    for column in (*self._columns.values(), self._first):
      column.finish()
    hashes = np.concatenate(self._hashes) if self._hashes else np.zeros(0, np.uint64)
    order = np.argsort(hashes, kind="stable")
    np.save(self._directory / "batch_first.npy", np.asarray(self._batch_first, np.int64))
    np.save(self._directory / "id_hash.npy", hashes[order])
    np.save(self._directory / "id_document.npy", order.astype(np.int32))


class Column:
  """A one-dimensional .npy file that grows; its header leaves room for any length."""

  def __init__(self, file: typing.BinaryIO, kind: type):
    self._file, self._dtype, self._length = file, np.dtype(kind), 0
    self._write_header()

  def append(self, values: np.ndarray) -> None:
    """Writes more values."""
    self._file.write(values.astype(self._dtype).tobytes())
    self._length += len(values)

  def finish(self) -> None:
    """Writes the length where a reader looks for it."""
    self._file.seek(0)
    self._write_header()

  def _write_header(self):
    np.lib.format.write_array_header_1_0(self._file, {
        "descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._length,)})


class _Counts:
  """What was read and what was refused, per source."""

  def __init__(self, config: config_lib.Corpus):
    self._sources = {source.name: {"documents": 0, "chunks": 0, "characters": 0, "made_up_ids": 0,
                                   "bad_records": 0} for source in config.sources}
    self._bad: dict[str, dict] = {}

  def good(self, name: str, reading: sources.Reading, added: int) -> None:
    counts = self._sources[name]
    counts["documents"] += 1
    counts["chunks"] += added
    counts["characters"] += len(reading.document.text)
    counts["made_up_ids"] += not reading.has_id

  def bad(self, name: str, reading: sources.Reading) -> None:
    self._sources[name]["bad_records"] += 1
    reason = self._bad.setdefault(reading.reason, {"count": 0, "examples": []})
    reason["count"] += 1
    if len(reason["examples"]) < EXAMPLES:
      reason["examples"].append({"source": name, "place": reading.place})

  def nothing(self) -> str:
    """The sentence for a corpus without a document."""
    reasons = ", ".join(f"{bad['count']} {reason}" for reason, bad in self._bad.items()) or "they hold no record"
    return (f"the corpus is empty: corpus.sources {', '.join(self._sources)} give no document with text "
            f"({reasons}); check path, id_field and text_field")

  def summary(self, version: str, chunk_chars: int) -> dict:
    totals = {key: sum(source[key] for source in self._sources.values())
              for key in ("documents", "chunks", "characters", "made_up_ids")}
    return {"version": version, "chunk_chars": chunk_chars, **totals, "bad_records": self._bad,
            "sources": self._sources}
