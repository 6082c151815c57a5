"""Stage `read`: records of the sources become shards of clean documents, all others dead letters with their reason."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from policylong.corpus import sources
from policylong.corpus.builder import Hashes, hash_id
from policylong.prepare.cleaning import clean
from policylong.prepare.plan import Plan, unit_name

SHARD_CHARACTERS, SHARD_ROWS = 32 << 20, 1 << 16
BATCH_ROWS = 256
_DEAD_LETTERS = 1 << 17  # a file
EXAMPLES = 5  # of each reason
SCHEMA = pa.schema([("id", pa.large_string()), ("has_id", pa.bool_()), ("text", pa.large_string())])


def read(plan: Plan, number: int) -> dict[str, Any]:
  """Reads a unit's files: shards of (id, has_id, text), the hashes of the ids, and the dead letters.

  A document's id is that of `sources.read_source` where ids do not carry the file. The second document of a file with
  an id is a bad record, as for `corpus.builder`.
  """
  unit = plan.units[number]
  source = plan.sources[unit.source]
  writer = _Writer(plan, unit_name(number), source.name)
  file, seen = None, Hashes()
  for reading in sources.read_source(source, only=slice(unit.first, unit.last)):
    if reading.file != file:
      file, seen = reading.file, Hashes()
    reading = _cleaned(reading)
    if reading.document is None:
      writer.bad(reading)
    elif not seen.add(key := hash_id(reading.document.id)):
      writer.bad(dataclasses.replace(reading, document=None, reason=sources.DUPLICATE_ID))
    else:
      writer.add(reading, key)
  return writer.finish()


def sources_whose_ids_carry_the_file(plan: Plan) -> list[bool]:
  """Of each source, whether two of its files have the same id. On the host: 8 bytes a document of one source."""
  result = []
  for source in range(len(plan.sources)):
    hashes = [plan.work.load("read", f"{unit_name(number)}-hashes")
              for number, unit in enumerate(plan.units) if unit.source == source]
    together = np.sort(np.concatenate(hashes))
    result.append(bool((together[1:] == together[:-1]).any()))
  return result


def final_id(identifier: str, source: str, file: str) -> str:
  """The id of a document with a file in it; one that was made up has it already."""
  return f"{source}/{file}:{identifier.removeprefix(source + '/')}"


def _cleaned(reading: sources.Reading) -> sources.Reading:
  if reading.document is None or (text := clean(reading.document.text)) == reading.document.text:
    return reading
  if not text.strip():
    return dataclasses.replace(reading, document=None, reason=sources.EMPTY_TEXT)
  return dataclasses.replace(reading, document=dataclasses.replace(reading.document, text=text))


class _Writer:
  """Gathers what a unit gives, and writes it in pieces."""

  def __init__(self, plan: Plan, unit: str, source: str):
    self._plan, self._unit, self._source = plan, unit, source
    self._shards: list[tuple[int, int]] = []
    self._files: dict[str, int] = {}  # the first document of each file, counted within the unit
    self._hashes: list[int] = []
    self._bad: dict[str, dict] = {}
    self._letters: list[dict] = []
    self._letter_files = 0
    self._start()

  def add(self, reading: sources.Reading, key: int) -> None:
    self._files.setdefault(reading.file, len(self._hashes))
    self._hashes.append(key)
    self._rows.append((reading.document.id, reading.has_id, reading.document.text))
    self._characters += len(reading.document.text)
    if self._characters >= SHARD_CHARACTERS or len(self._rows) == SHARD_ROWS:
      self._flush()

  def bad(self, reading: sources.Reading) -> None:
    reason = self._bad.setdefault(reading.reason, {"count": 0, "examples": []})
    reason["count"] += 1
    if len(reason["examples"]) < EXAMPLES:
      reason["examples"].append({"source": self._source, "place": reading.place})
    self._letters.append({"source": self._source, "place": reading.place, "reason": reading.reason})
    if len(self._letters) == _DEAD_LETTERS:
      self._send()

  def finish(self) -> dict[str, Any]:
    self._flush()
    self._send()
    self._plan.work.save("read", f"{self._unit}-hashes", np.array(self._hashes, np.uint64))
    return {"shards": self._shards, "bad_records": self._bad, "dead_letters": self._letter_files,
            "files": list(self._files.items()), "documents": len(self._hashes)}

  def _start(self):
    self._rows, self._characters = [], 0

  def _flush(self):
    if self._rows:
      columns = [pa.array(column, kind.type) for column, kind in zip(zip(*self._rows), SCHEMA)]
      self._plan.work.save_table("read", f"{self._unit}-{len(self._shards):04d}",
                                 pa.table(columns, schema=SCHEMA), BATCH_ROWS)
      self._shards.append((len(self._rows), self._characters))
    self._start()

  def _send(self):
    if self._letters:
      self._plan.work.save_lines("read", f"{self._unit}-bad-{self._letter_files:04d}", self._letters)
      self._letter_files += 1
    self._letters = []
