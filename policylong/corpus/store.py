"""The corpus on disk: built once, mapped into memory, read by row.

In `cache_dir`:

  corpus-<version>/        builder.py's files, BLOCKS (their checksums, `storage.blocks`) and DONE.json (their sizes),
                           written last
  corpus-states/<key>.json which version the sources gave in a given state; <key>.owner/: who builds it just now

The version is a hash of what was read. A restart must not read a terabyte to learn it, so the state of
the sources (their settings; of each file its path, size and time of change) points to the version that
this state gave. A touched or moved file costs one more reading and ends at the same version.

What is damaged of it is made again, with a line in the log: found when it is opened, all of it; found later, when a
block is first read, that block, from one more reading of the sources.
"""

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from etils import epath

from policylong import config as config_lib
from policylong import paths
from policylong.corpus import builder, dealt, sources, streamed
from policylong.corpus.chunks import chunk_id, parse_chunk_id
from policylong.corpus.files import size_of, why_not
from policylong.corpus.texts_file import TextsFile
from policylong.devices import hosts
from policylong.errors import Damaged, UserError
from policylong.records import Chunk, Document
from policylong.storage import blocks, lock
from policylong.storage.mending import whole_or_gone
from policylong.storage.workdir import read_json, write_json

log = logging.getLogger(__name__)

# Changes when sources are read otherwise than before: the same files may then give another version.
READER = 2


def open_corpus(config: config_lib.Corpus) -> "Corpus":
  """The corpus of a config, built the first time.

  One process builds, others that open the same corpus meanwhile wait for it. The processes of one run that share
  cache_dir read the sources together (`dealt`), and call this together. A build that was killed leaves nothing that is
  taken for whole; the next start begins it anew.

  Raises:
    UserError: a source cannot be read, or no document has text.
  """
  if config.prepared is not None:
    return _prepared(config)
  config = dataclasses.replace(config, sources=tuple(map(streamed.pinned, config.sources)))
  cache = paths.local(config.cache_dir)
  key, total_bytes = state(config)
  pointer = cache / "corpus-states" / f"{key}.json"
  directory = None
  with contextlib.suppress(Damaged):  # who holds the lock mends it
    directory = _finished(cache, pointer)
  # Without a client there is one process, which may be none that should take the devices, as that of the report.
  if hosts.client() is not None and hosts.anyone(directory is None) and _shared(cache, key):
    _build_together(config, cache, pointer, total_bytes)
    directory = _finished(cache, pointer)
  if directory is None:
    with _owned(pointer):
      directory = _mended(cache, pointer) or _build(config, cache, pointer, total_bytes)
  corpus = Corpus(directory, functools.partial(_remade, config, pointer))
  log.info(in_words(corpus.summary()))
  return corpus


def _prepared(config: config_lib.Corpus) -> "Corpus":
  """What `python -m policylong.prepare` has made of the sources of this config."""
  directory = paths.local(config.prepared)
  if not (directory / "DONE.json").exists():
    raise UserError(f"corpus.prepared is {directory}, where no prepared corpus lies: make it with `python -m "
                    "policylong.prepare --config=...`, or set corpus.prepared to None to read the sources as they are")
  # Its sources may be elsewhere by now, and what made it, Beam, is not installed beside the rest.
  corpus = Corpus(directory, remedy=f"put a whole copy of that file in its place; or delete {directory} and make it "
                  "again with `python -m policylong.prepare --config=...`, as the settings in its manifest.json say")
  summary, names = corpus.summary(), [source.name for source in config.sources]
  for field, found, wanted in (("corpus.chunk_chars", summary["chunk_chars"], config.chunk_chars),
                               ("corpus.sources", list(summary["sources"]), names)):
    if found != wanted:
      raise UserError(f"{directory} was prepared with {field} = {found}, and the config has {wanted}: prepare it again "
                      "in another folder, or set the field to what it was")
  log.info(in_words(summary))
  return corpus


def in_words(summary: dict) -> str:
  """What a corpus keeps of what was read, what not and why, in a line."""
  reasons = {**summary["bad_records"], **summary.get("removed", {})}
  why = ", ".join(f"{bad['count']} {reason}" for reason, bad in sorted(reasons.items()))
  dropped = sum(bad["count"] for bad in reasons.values())
  empty = [name for name, counts in summary["sources"].items() if not counts["documents"]]
  return (f"corpus: {summary['documents']} documents kept, {dropped} records dropped{f' ({why})' if why else ''}"
          f"{'; no document from ' + ', '.join(empty) if empty else ''}")


def state(config: config_lib.Corpus) -> tuple[str, int]:
  """(hash of the sources' settings and files as they are now, bytes of all files)."""
  parts: list[list]
  parts, total = [[READER, builder.FORMAT, config.chunk_chars]], 0
  for source in config.sources:
    named = paths.is_url(source.path) or source.kind == "tfds"  # not a place that another folder would see elsewhere
    where = source.path if named else os.path.abspath(paths.expand(source.path))
    parts.append([source.name, source.kind, where, source.id_field, source.text_field, source.split])
    for path in sources.source_files(source):
      if reason := why_not(path):
        parts.append([str(path), reason])
        continue
      if paths.is_url(path):
        parts.append([str(path), size_of(path), epath.Path(path).stat().mtime])
      else:
        parts.append([str(path.resolve()), size_of(path), path.stat().st_mtime_ns])
      total += size_of(path)
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16], total


def _finished(cache: pathlib.Path, pointer: pathlib.Path) -> pathlib.Path | None:
  """The folder that a pointer leads to; None where it does not, or the folder is not whole.

  Raises:
    Damaged: one of the two is.
  """
  if not pointer.exists():
    return None
  directory = cache / f"corpus-{read_json(pointer)['version']}"
  if not (directory / "DONE.json").exists():
    return None
  Corpus(directory)
  return directory


def _mended(cache: pathlib.Path, pointer: pathlib.Path) -> pathlib.Path | None:
  """As `_finished`; what is damaged goes, with a line."""
  try:
    return _finished(cache, pointer)
  except Damaged:
    if whole_or_gone(pointer, read_json):
      whole_or_gone(cache / f"corpus-{read_json(pointer)['version']}", Corpus)
    return None


def _owned(pointer: pathlib.Path):
  """The lock of a state of the sources: who builds or mends what they give."""
  return lock.held(pointer.with_suffix(".owner"), f"the corpus in corpus.cache_dir {pointer.parents[1]}", wait=True)


@contextlib.contextmanager
def _remade(config: config_lib.Corpus, pointer: pathlib.Path):
  """The corpus once more, in a folder of its own that goes at the end."""
  with _owned(pointer):
    folder = pointer.parents[1] / f"corpus-mending-{pointer.stem}"
    try:
      _build_in(folder, config, state(config)[1])
      yield folder
    finally:
      shutil.rmtree(folder, ignore_errors=True)


def _shared(cache: pathlib.Path, key: str) -> bool:
  """Whether there are several processes that have one cache_dir and find the sources in one state; collective."""
  if hosts.count() == 1:
    return False
  mark, same = hosts.agreed(np.array([secrets.randbits(63), int(key[:15], 16)])).tolist()
  seen = cache / f"shared-{mark:x}"
  if hosts.is_first():
    cache.mkdir(parents=True, exist_ok=True)
    seen.touch()
  hosts.barrier("cache")
  apart = hosts.anyone(not seen.exists() or same != int(key[:15], 16))
  if hosts.is_first():
    seen.unlink()
  return not apart


def _build_together(config, cache, pointer, total_bytes) -> None:
  """Each process reads some of the files, and the first one puts the corpus together; collective."""
  parts = cache / f"corpus-reading-{pointer.stem}"
  with _owned(pointer) if hosts.is_first() else contextlib.nullcontext():
    if hosts.agreed(hosts.is_first() and _mended(cache, pointer) is not None):
      return
    with hosts.first_before_others("reading"):
      if hosts.is_first():
        shutil.rmtree(parts, ignore_errors=True)  # of a build that was killed
        parts.mkdir(parents=True)
    dealt.write(config, parts, hosts.index(), hosts.count())
    hosts.barrier("read")
    try:
      if hosts.is_first():
        _build(config, cache, pointer, total_bytes, dealt.reader(config, parts))
    finally:
      if hosts.is_first():
        shutil.rmtree(parts, ignore_errors=True)
    hosts.barrier("built")


def _build(config, cache, pointer, total_bytes, read: dealt.Reader | None = None) -> pathlib.Path:
  temporary = cache / f"corpus-building-{pointer.stem}"
  try:
    version = _build_in(temporary, config, total_bytes, read)
    directory = cache / f"corpus-{version}"
    seal(temporary, [path.name for path in sorted(temporary.iterdir())])
    # Another state of the sources may have given the same version before.
    if not ((directory / "DONE.json").exists() and whole_or_gone(directory, Corpus)):
      shutil.rmtree(directory, ignore_errors=True)
      os.rename(temporary, directory)
    write_json(pointer, {"version": version})
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return directory


def seal(directory: epath.PathLike, names: Sequence[str]) -> None:
  """Marks a folder, on any storage, as whole; names are the files that a `Corpus` of it reads, in any order."""
  directory, names = epath.Path(directory), sorted(names)
  blocks.write(directory, names)
  write_json(directory / "DONE.json", {"files": {name: (directory / name).stat().length for name in names}})


def _build_in(directory: pathlib.Path, config: config_lib.Corpus, total_bytes: int, read: dealt.Reader | None = None
              ) -> str:
  """Fills a folder of ours; where the ids of a source turn out to begin anew in each file, once more from the start."""
  with_file: frozenset[str] = frozenset()
  while True:
    shutil.rmtree(directory, ignore_errors=True)  # of a build that was killed, or of the last attempt
    directory.mkdir()
    try:
      return builder.build(config, total_bytes, directory, with_file, read)
    except builder.IdsBeginAnew as found:
      with_file |= {found.source}


class Corpus:
  """Documents and chunks by row, read from mapped files: nothing is loaded, or checked, that is not asked for.

  Methods may be called from several threads.

  Attributes:
    version: hash of the documents and of the chunker.
    num_documents, num_chunks: how many there are; rows count from 0.
    bad_records: how many records were refused, by reason.
    chunk_document: int32[num_chunks], the document of each chunk (mapped, not loaded).
  """

  def __init__(self, directory: pathlib.Path, remade: Callable[[], AbstractContextManager[pathlib.Path]] | None = None,
               remedy: str = ""):
    """Opens a finished folder.

    Args:
      directory: the folder.
      remade: makes its files once more, in another folder.
      remedy: as of `blocks.Blocks`.

    Raises:
      Damaged: a file is missing or has another size than when it was written, or what is read at once is damaged and
        cannot be made again; later the methods raise it for what they read.
    """
    self._blocks = blocks.Blocks(directory, read_json(directory / "DONE.json")["files"], remade, remedy)
    self._summary = json.loads(self._blocks.read("summary.json"))
    arrays = {name: self._blocks.array(f"{name}.npy") for name in builder.ARRAYS}
    self._batch_first = arrays["batch_first"][:].tolist()
    self._document_first, self.chunk_document = arrays["document_first"], arrays["chunk_document"]
    self._start, self._end = arrays["chunk_start"], arrays["chunk_end"]
    self._byte_start, self._byte_end = arrays["chunk_byte_start"], arrays["chunk_byte_end"]
    self._id_hash, self._id_document = arrays["id_hash"], arrays["id_document"]
    self._shards = self._summary.get("shards") or [{"file": "documents.arrow", "batches": len(self._batch_first) - 1}]
    self._shard_first = np.cumsum([0, *(shard["batches"] for shard in self._shards)]).tolist()
    self._texts = functools.lru_cache(maxsize=64)(lambda shard: TextsFile(self._blocks, self._shards[shard]["file"]))
    self.version: str = self._summary["version"]
    self.num_documents, self.num_chunks = len(self._id_hash), len(self._start)
    self.bad_records = {reason: bad["count"] for reason, bad in self._summary["bad_records"].items()}
    self._sources = self._source_rows()

  def document(self, index: int) -> Document:
    """The document at row `index`."""
    batch, row = self._locate(index)
    return Document(batch.id(row), batch.text(row), self.document_source(index))

  def document_id(self, index: int) -> str:
    """The id alone, without reading the text."""
    batch, row = self._locate(index)
    return batch.id(row)

  def document_source(self, index: int) -> str:
    """The name of the source that a document came from, without reading the text."""
    return next(name for name, rows in self._sources.items() if index in rows)

  def document_index(self, doc_id: str) -> int:
    """The row of a document.

    Raises:
      KeyError: there is no such document.
    """
    key = np.uint64(builder.hash_id(doc_id))
    for i in range(bisect.bisect_left(self._id_hash, key), self.num_documents):
      if self._id_hash[i] != key:
        break
      if self.document_id(int(self._id_document[i])) == doc_id:
        return int(self._id_document[i])
    raise KeyError(f"no document {doc_id!r} in the corpus")

  def document_rows(self, index: int) -> range:
    """The rows of a document's chunks."""
    _check(index, self.num_documents, "document")
    return range(int(self._document_first[index]), int(self._document_first[index + 1]))

  def chunk(self, row: int) -> Chunk:
    """The chunk at `row`."""
    _check(row, self.num_chunks, "chunk")
    doc_id, start, end = self.document_id(int(self.chunk_document[row])), int(self._start[row]), int(self._end[row])
    return Chunk(chunk_id(doc_id, start, end), doc_id, start, end)

  def chunk_text(self, row: int) -> str:
    """The chunk's text; reads its bytes only, however long the document is."""
    _check(row, self.num_chunks, "chunk")
    batch, inside = self._locate(int(self.chunk_document[row]))
    first, last = int(self._byte_start[row]), int(self._byte_end[row])
    return batch.text(inside, first, last)

  def chunk_row(self, identifier: str) -> int:
    """The row of a chunk id.

    Raises:
      KeyError: there is no such chunk.
    """
    doc_id, start, end = parse_chunk_id(identifier)
    rows = self.document_rows(self.document_index(doc_id))
    row = rows.start + int(np.searchsorted(self._start[rows.start:rows.stop], start))
    if row == rows.stop or (self._start[row], self._end[row]) != (start, end):
      raise KeyError(f"no chunk {identifier!r} in the corpus")
    return row

  def chunk_starts(self, index: int) -> np.ndarray:
    """int64: where the chunks of a document start, in characters."""
    rows = self.document_rows(index)
    return np.array(self._start[rows.start:rows.stop])

  def source_rows(self, name: str) -> range:
    """The documents of one source: they lie together, in the order of the config."""
    return self._sources[name]

  def summary(self) -> dict:
    """For the report, ready for JSON: version, chunk_chars, documents, chunks, characters, made_up_ids;
    bad_records: {reason: {count, examples: [{source, place}]}}; sources: {name: {documents, chunks, characters,
    made_up_ids, bad_records}}. A prepared corpus has more: removed, as bad_records, and records, all that were read."""
    return self._summary

  def _locate(self, index):
    _check(index, self.num_documents, "document")
    number = bisect.bisect_right(self._batch_first, index) - 1
    shard = bisect.bisect_right(self._shard_first, number) - 1
    batch = self._texts(shard).batch(number - self._shard_first[shard])
    return batch, index - self._batch_first[number]

  def _source_rows(self):
    rows, first = {}, 0
    for name, counts in self._summary["sources"].items():
      rows[name] = range(first, first + counts["documents"])
      first += counts["documents"]
    return rows


def _check(index: int, length: int, what: str) -> None:
  """Rows from the end, as Python has them, would hide the -1 of a missing hit."""
  if not 0 <= index < length:
    raise IndexError(f"{what} {index} of {length}")
