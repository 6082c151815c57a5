"""The last stages: what is kept becomes the shards of a corpus, with its chunks, and one corpus with its manifest."""

import bisect
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath

from policylong import paths
from policylong.corpus import builder, store
from policylong.corpus.chunks import byte_spans, chunk_spans
from policylong.errors import UserError
from policylong.prepare import duplicates, reading
from policylong.prepare.layout import write_whole
from policylong.prepare.plan import FORMAT, Plan, Shard, by_shard, shards_of, unit_name
from policylong.storage import manifest
from policylong.storage.checksums import sha256_of_file
from policylong.storage.workdir import temporary_beside, write_json

# Characters that were read for an output shard.
OUTPUT_CHARACTERS = 512 << 20
# Why a document is removed, in the order in which it is asked.
CONTAMINATED, EXACT, NEAR = 0, 1, 2
WORDS = {EXACT: "exact duplicate", NEAR: "near-duplicate"}


@functools.lru_cache(maxsize=1)
def outputs(plan: Plan) -> tuple[tuple[int, ...], ...]:
  """The numbers of the shards that each output shard is made of: neighbours."""
  found: list[list[int]] = []
  size = 0
  for number, shard in enumerate(shards_of(plan)):
    if not found or size + shard.characters > OUTPUT_CHARACTERS:
      found.append([])
      size = 0
    found[-1].append(number)
    size += shard.characters
  return tuple(map(tuple, found))


def decide(plan: Plan) -> None:
  """Writes what becomes of the documents. On the host: 9 bytes a document, 32 for each that is removed.

  Of each shard int64[3, n]: documents that go, counted within it; why; for a contaminated one the bits of the
  benchmarks, for a duplicate the row in the corpus of the document that stands for it.
  """
  shards = shards_of(plan)
  alive = np.ones(sum(shard.documents for shard in shards), bool)
  gone = []
  for shard in shards:
    held = plan.work.load("sign", f"{shard.name}-benchmarks")
    at = np.flatnonzero(held)
    gone.append(np.stack([at + shard.first, np.full(len(at), CONTAMINATED), held[at].astype(np.int64)]))
  copies, near = duplicates.removed(plan, "exact"), duplicates.removed(plan, "verify")
  first = copies[1].copy()  # which may be a near-duplicate itself
  if near.shape[1]:
    at = np.minimum(np.searchsorted(near[0], first), near.shape[1] - 1)
    first = np.where(near[0][at] == first, near[1][at], first)
  for reason, rows, kept in ((EXACT, copies[0], first), (NEAR, *near)):
    gone.append(np.stack([rows, np.full(len(rows), reason), kept]))
  together = np.concatenate([np.zeros((3, 0), np.int64), *gone], axis=1)
  together = together[:, np.argsort(together[0], kind="stable")]
  alive[together[0]] = False
  duplicate = together[1] != CONTAMINATED
  together[2, duplicate] = np.cumsum(alive)[together[2, duplicate]] - 1
  for shard, mine in zip(shards, by_shard(shards, together[0])):
    plan.work.save("decided", shard.name, together[:, mine] - np.array([[shard.first], [0], [0]]))


def write(plan: Plan, number: int, carries_file: list[bool], benchmarks: list[str]) -> dict[str, Any]:
  """Writes an output shard: its texts where they stay, its columns and removed documents for `finish`."""
  counts = {name: _no_counts() for name in (source.name for source in plan.sources)}
  removed: dict[str, dict] = {}
  columns = _Columns(plan.chunk_chars)
  letters: list[dict] = []
  sink = _Sink(epath.Path(plan.directory) / f"documents-{number:05d}.arrow")
  with sink as file, pa.ipc.new_file(file, builder.SCHEMA) as arrow:
    for shard in (shards_of(plan)[i] for i in outputs(plan)[number]):
      source = plan.sources[shard.source].name
      gone = plan.work.load("decided", shard.name)
      for place, identifier, has_id, text in _documents(plan, shard, carries_file[shard.source]):
        at = int(np.searchsorted(gone[0], place))
        if at < gone.shape[1] and gone[0, at] == place:
          why = _why(int(gone[1, at]), int(gone[2, at]), benchmarks)
          letters.append({"source": source, "id": identifier, **why})
          _count(removed, why["reason"], source, identifier)
          counts[source]["removed"] += 1
          continue
        counts[source]["documents"] += 1
        counts[source]["characters"] += len(text)
        counts[source]["made_up_ids"] += not has_id
        counts[source]["chunks"] += columns.add(identifier, text)
        if columns.full:
          arrow.write_batch(columns.batch())
    if columns.rows:
      arrow.write_batch(columns.batch())
  for name, array in columns.arrays().items():
    plan.work.save("write", f"{number:06d}-{name}", array)
  plan.work.save_lines("write", f"{number:06d}-removed", letters)
  return {"sources": counts, "removed": removed, "batches": columns.batches, "sha256": sink.sha256,
          "documents": columns.documents}


def finish(plan: Plan, settings: dict) -> dict[str, Any]:
  """Puts the columns of all shards behind each other, and says in summary and manifest what was made of what.

  On the host, 20 bytes a document for sorting the hashes of the ids.

  Raises:
    NothingLeft: so it is.
  """
  directory = epath.Path(plan.directory)
  written = [plan.work.counts("write", f"{number:06d}") for number in range(len(outputs(plan)))]
  summary = summarised(plan, written)
  refuse_nothing(summary)
  _write_arrays(plan, directory, written)
  files = {"bad_records.jsonl": _bad_records(plan), "removed.jsonl": [
      ("write", f"{number:06d}-removed") for number in range(len(written))]}
  for name, parts in files.items():
    with _Sink(directory / name) as file:
      for stage, part in parts:
        file.write(plan.work.lines(stage, part))
  shards = [{"file": f"documents-{number:05d}.arrow", "documents": one["documents"], "batches": one["batches"],
             "sha256": one["sha256"]} for number, one in enumerate(written)]
  # An earlier start may have written them.
  manifest.check_files(directory, {shard["file"]: shard["sha256"] for shard in shards}, "the unit that wrote it")
  hashes = {name: sha256_of_file(directory / name) for name in (*files, *(f"{name}.npy" for name in builder.ARRAYS))}
  version = hashlib.sha256(json.dumps([FORMAT, builder.FORMAT, plan.chunk_chars, shards, hashes],
                                      sort_keys=True).encode()).hexdigest()[:16]
  summary = {"version": version, **summary, "shards": [{"file": one["file"], "batches": one["batches"]}
                                                       for one in shards]}
  # Not sorted: documents lie in the order of the sources.
  write_whole(directory / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
  told = {"format": FORMAT, "version": version, "settings": settings, "shards": shards, "files": hashes,
          **{key: value for key, value in summary.items() if key not in ("version", "shards")}}
  write_json(directory / "manifest.json", told)
  # What runs read; the dead letters have their sha256 in the manifest.
  store.seal(directory, [*(one["file"] for one in shards), *(f"{name}.npy" for name in builder.ARRAYS), "summary.json"])
  return told


class NothingLeft(UserError):
  """No document is left of a corpus."""


def refuse_nothing(summary: dict) -> None:
  """Raises NothingLeft for a corpus without documents, with what became of the records that were read."""
  if summary["documents"]:
    return
  parts = [f"{summary['records']:,} records, {summary['documents']:,} documents kept"]
  for what in ("bad_records", "removed"):
    parts += [f"{row['count']:,} {reason}" for reason, row in sorted(summary[what].items())]
  raise NothingLeft(f"nothing is left of the corpus: {', '.join(parts)}; check path, id_field and text_field")


def _documents(plan: Plan, shard: Shard, carries_file: bool) -> Iterator[tuple[int, str, bool, str]]:
  """(place in the shard, final id, whether the record had one, text)."""
  unit, _, part = shard.name.partition("-")
  counts = plan.work.counts("read", unit)
  before = sum(documents for documents, _ in counts["shards"][:int(part)])
  firsts = [first for _, first in counts["files"]]
  source = plan.sources[shard.source].name
  reader = plan.work.table("read", shard.name)
  place = 0
  for i in range(reader.num_record_batches):
    batch = reader.get_batch(i)
    for identifier, has_id, text in zip(*(column.to_pylist() for column in batch.columns)):
      if carries_file and has_id:
        name = counts["files"][bisect.bisect_right(firsts, before + place) - 1][0]
        identifier = reading.final_id(identifier, source, name)
      yield place, identifier, has_id, text
      place += 1


def _why(reason: int, what: int, benchmarks: list[str]) -> dict[str, Any]:
  if reason == CONTAMINATED:
    names = [name for bit, name in enumerate(benchmarks) if what >> bit & 1]
    return {"reason": f"contaminated by {' and '.join(names)}", "benchmarks": names}
  return {"reason": WORDS[reason], "kept_row": what}


def _count(reasons: dict[str, dict], reason: str, source: str, place: str, count: int = 1) -> None:
  row = reasons.setdefault(reason, {"count": 0, "examples": []})
  row["count"] += count
  if len(row["examples"]) < reading.EXAMPLES:
    row["examples"].append({"source": source, "place": place})


def _no_counts() -> dict[str, int]:
  return dict.fromkeys(("documents", "chunks", "characters", "made_up_ids", "bad_records", "removed"), 0)


def _merge(into: dict[str, dict], more: dict[str, dict]) -> None:
  for reason, row in more.items():
    found = into.setdefault(reason, {"count": 0, "examples": []})
    found["count"] += row["count"]
    found["examples"] = (found["examples"] + row["examples"])[:reading.EXAMPLES]


def summarised(plan: Plan, written: list[dict]) -> dict[str, Any]:
  """The counts of all units, as `Corpus.summary` has them, with what was removed and how many records there were."""
  per_source = {source.name: _no_counts() for source in plan.sources}
  bad: dict[str, dict] = {}
  removed: dict[str, dict] = {}
  read = 0
  for number, unit in enumerate(plan.units):
    counts = plan.work.counts("read", unit_name(number))
    _merge(bad, counts["bad_records"])
    per_source[plan.sources[unit.source].name]["bad_records"] += sum(
        row["count"] for row in counts["bad_records"].values())
    read += counts["documents"] + sum(row["count"] for row in counts["bad_records"].values())
  for one in written:
    _merge(removed, one["removed"])
    for name, counts in one["sources"].items():
      for key, value in counts.items():
        per_source[name][key] += value
  totals = {key: sum(counts[key] for counts in per_source.values())
            for key in ("documents", "chunks", "characters", "made_up_ids")}
  kept_or_not = totals["documents"] + sum(row["count"] for part in (bad, removed) for row in part.values())
  if kept_or_not != read:
    raise RuntimeError(f"{read} records were read and {kept_or_not} accounted for")
  return {"chunk_chars": plan.chunk_chars, **totals, "records": read, "bad_records": bad, "removed": removed,
          "sources": per_source}


def _bad_records(plan: Plan) -> list[tuple[str, str]]:
  return [("read", f"{unit_name(number)}-bad-{i:04d}") for number in range(len(plan.units))
          for i in range(plan.work.counts("read", unit_name(number))["dead_letters"])]


def _write_arrays(plan: Plan, directory: epath.Path, written: list[dict]) -> None:
  """builder.py's columns of the whole, from those of the shards, which count from 0 each."""
  documents = np.cumsum([0, *(one["documents"] for one in written)])
  chunks = np.cumsum([0, *(sum(counts["chunks"] for counts in one["sources"].values()) for one in written)])
  kinds = {"document_first": np.int64, "batch_first": np.int64, **builder.CHUNK_COLUMNS}
  before = {"document_first": chunks, "batch_first": documents, "chunk_document": documents}
  for name, kind in kinds.items():
    with _Sink(directory / f"{name}.npy") as file:
      column = builder.Column(file, kind)
      for number in range(len(written)):
        part = plan.work.load("write", f"{number:06d}-{name}")
        column.append(part + before[name][number] if name in before else part)
      if name in ("document_first", "batch_first"):
        column.append(np.array([(chunks if name == "document_first" else documents)[-1]]))
      column.finish()
  hashes = np.concatenate([plan.work.load("write", f"{number:06d}-id_hash") for number in range(len(written))])
  order = np.argsort(hashes, kind="stable")
  for name, array in (("id_hash", hashes[order]), ("id_document", order.astype(np.int32))):
    with _Sink(directory / f"{name}.npy") as file:
      np.save(file, array, allow_pickle=False)


class _Columns:
  """The columns of an output shard, counted from 0, and its texts a batch at a time."""

  def __init__(self, chunk_chars: int):
    self._chunk_chars = chunk_chars
    self.documents = self.batches = self._chunks = 0
    self._first: list[int] = []
    self._batch_first: list[int] = []
    self._hashes: list[int] = []
    self._spans: list[np.ndarray] = []
    self._start()

  @property
  def rows(self) -> int:
    return len(self._ids)

  @property
  def full(self) -> bool:
    return self._size >= builder.BATCH_BYTES or len(self._ids) == builder.BATCH_ROWS

  def add(self, identifier: str, text: str) -> int:
    """Adds a document; the number of its chunks."""
    spans = chunk_spans(text, self._chunk_chars)
    self._new += [(self.documents, *span, *inside) for span, inside in zip(spans, byte_spans(text, spans))]
    self._first.append(self._chunks)
    self._hashes.append(builder.hash_id(identifier))
    self._ids.append(identifier)
    self._texts.append(text)
    self._size += len(text)
    self.documents += 1
    self._chunks += len(spans)
    return len(spans)

  def batch(self) -> pa.RecordBatch:
    """What was added since the last one."""
    batch = pa.record_batch([pa.array(self._ids, pa.large_string()), pa.array(self._texts, pa.large_string())],
                            schema=builder.SCHEMA)
    self._spans.append(np.array(self._new, np.int64).reshape(-1, len(builder.CHUNK_COLUMNS)))
    self._batch_first.append(self.documents - len(self._ids))
    self.batches += 1
    self._start()
    return batch

  def arrays(self) -> dict[str, np.ndarray]:
    """builder.py's arrays, but for what sorts the ids."""
    spans = np.concatenate([np.zeros((0, len(builder.CHUNK_COLUMNS)), np.int64), *self._spans])
    return {"batch_first": np.array(self._batch_first, np.int64), "document_first": np.array(self._first, np.int64),
            "id_hash": np.array(self._hashes, np.uint64),
            **{name: column.astype(kind) for (name, kind), column in zip(builder.CHUNK_COLUMNS.items(), spans.T)}}

  def _start(self):
    self._ids, self._texts, self._new = [], [], []
    self._size = 0


class _Sink:
  """A file that is written piece by piece and appears whole, on any storage; remote ones are made on this disk."""

  def __init__(self, path: epath.Path):
    self._path, self.sha256 = path, ""
    self._beside = temporary_beside(path, shared=True)

  def __enter__(self):
    self._made = tempfile.mkstemp()[1] if paths.is_url(self._path) else os.fspath(self._beside)
    self._file = open(self._made, "wb")
    return self._file

  def __exit__(self, kind, *_):
    self._file.close()
    if kind is None:
      self.sha256 = sha256_of_file(epath.Path(self._made))
      if paths.is_url(self._path):
        with open(self._made, "rb") as made, self._beside.open("wb") as file:
          shutil.copyfileobj(made, file, 1 << 20)
        os.unlink(self._made)
      self._beside.replace(self._path)
    else:
      os.unlink(self._made)
