"""Token sequences that exist already, as a published set or another run has them, for the method `given`.

The sources of such a run hold token ids: array_record files as a run writes them (a record is its ids, little-endian
int32), a column of lists in Parquet, or an array column in MDS; `text_field` names the column. Files are only counted
when they are opened, and read when a round asks for its part.
"""

import dataclasses
import hashlib
import itertools
import logging
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module

from policylong import config as config_lib
from policylong.corpus import mds
from policylong.corpus.files import Unreadable, find_files, reason_of, why_not
from policylong.corpus.sources import field
from policylong.errors import UserError
from policylong.randomness import generator
from policylong.records import GivenSequence

log = logging.getLogger(__name__)

NOT_ARRAY_RECORD = "not whole array_record"
# Of each file so much of its start and its end is in the version; the whole may be terabytes.
_PROBE = 1 << 16


@dataclasses.dataclass(frozen=True)
class _File:
  """One file: `rows(numbers)` gives its records (from 0, rising) as {column: value}."""
  name: str
  path: pathlib.Path
  count: int
  rows: Callable[[Sequence[int]], Iterator[dict]]


class GivenSequences:
  """The sequences of all sources in a random order that the seed gives; each round has its part of them.

  Attributes:
    num_sequences: how many there are.
  """

  def __init__(self, config: config_lib.Config, vocab_size: int):
    """Counts the sequences.

    Raises:
      UserError: nothing is there, the only file of a source cannot be read, a column is missing, or there are fewer
        sequences than rounds.
    """
    self._seed, self._rounds, self._vocab_size = config.seed, config.rounds, vocab_size
    self._boundaries = config.method_options.given_boundaries
    self._bad: Counter[str] = Counter()
    self._files: list[tuple[config_lib.Source, _File]] = []
    for source in config.corpus.sources:
      self._files += [(source, file) for file in self._open(source)]
    self._first = np.cumsum([0] + [file.count for _, file in self._files])
    self.num_sequences = int(self._first[-1])
    if self.num_sequences < self._rounds:
      raise UserError(f"corpus.sources hold {self.num_sequences} sequences, and each of {self._rounds} rounds wants "
                      f"its own{_why(self._bad)}: add sequences or lower rounds")
    log.info("given: %d sequences in %d files%s", self.num_sequences, len(self._files), _why(self._bad))

  def sequences(self, round_index: int, at_a_time: int) -> Iterator[GivenSequence]:
    """The part of round `round_index` = 1, 2, ...: no sequence is in two rounds.

    Args:
      round_index: which.
      at_a_time: so many are read in the order in which they lie, which is fast; the groups come in random order.

    Raises:
      UserError: a file is damaged, or a sequence is none of this model's.
    """
    order = generator(self._seed, "given").permutation(self.num_sequences)
    first, last = (self.num_sequences * r // self._rounds for r in (round_index - 1, round_index))
    for start in range(first, last, at_a_time):
      places = np.sort(order[start:min(start + at_a_time, last)])
      numbers = np.searchsorted(self._first, places, side="right") - 1
      for number in np.unique(numbers).tolist():
        source, file = self._files[number]
        yield from self._read(source, file, (places[numbers == number] - self._first[number]).tolist())

  def summary(self) -> dict:
    """What `corpus.Corpus.summary` says, of sequences: they count as documents, and there are no chunks."""
    sources = {source.name: {"documents": 0, "chunks": 0, "bad_records": 0} for source, _ in self._files}
    digest = hashlib.sha256()
    for source, file in self._files:
      sources[source.name]["documents"] += file.count
      digest.update(f"{source.name}\0{file.name}\0{file.count}\0{source.text_field}\0".encode() + _probe(file.path))
    bad = {reason: {"count": count, "examples": []} for reason, count in self._bad.items()}
    return {"version": digest.hexdigest()[:16], "documents": self.num_sequences, "chunks": 0, "bad_records": bad,
            "sources": sources}

  def _open(self, source: config_lib.Source) -> Iterator[_File]:
    what = f"the path of source {source.name!r}"
    wanted = [name for name in (source.text_field, self._boundaries) if name]
    if source.kind == "mds":
      shards = mds.find_shards(source.path, what)
      for shard in shards:
        mds.check_columns(shard, wanted)
        if why_not(shard.path):
          self._bad[reason_of(Unreadable("a shard that cannot be read"), shard.path, len(shards) == 1)] += 1
          continue
        yield _File(shard.name, shard.path, shard.samples, _of_mds(shard, wanted))
      return
    found = find_files(source.path, source.kind, what)
    opener = {"parquet": _open_parquet, "array_record": _open_array_record}[source.kind]
    for path, name in found:
      try:
        if reason := why_not(path):
          raise Unreadable(reason)
        yield opener(path, name, source, wanted)
      except Unreadable as error:
        self._bad[reason_of(error, path, len(found) == 1)] += 1

  def _read(self, source: config_lib.Source, file: _File, numbers: list[int]) -> Iterator[GivenSequence]:
    try:
      for number, row in zip(numbers, file.rows(numbers), strict=True):
        place = f"{file.path}, sequence {number + 1}"
        tokens = self._tokens(row, source.text_field, place)
        cuts = _cuts(field(row, self._boundaries), len(tokens), self._boundaries, place)
        yield GivenSequence(f"{source.name}/{file.name}:row-{number + 1}", tokens, cuts)
    except (Unreadable, pa.ArrowException, OSError, RuntimeError, ValueError) as error:
      line = (str(error).splitlines() or [repr(error)])[0]
      raise UserError(f"{file.path} cannot be read ({line}): fetch it again or take it out") from error

  def _tokens(self, row: dict, name: str, place: str) -> np.ndarray:
    values = np.asarray(field(row, name) if name else row[name])
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or not len(values):
      raise UserError(f"{place} holds no row of token ids{f' in {name!r}' if name else ''} "
                      f"(but {values.dtype} of shape {values.shape}); whole numbers are wanted, one a token")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= self._vocab_size:
      raise UserError(f"{place} holds token ids from {low} to {high}; the model has 0 to {self._vocab_size - 1}: the "
                      "sequences are of another tokenizer")
    return values.astype(np.int32)


def _cuts(value: Any, tokens: int, name: str, place: str) -> tuple[int, ...]:
  """Where documents begin and end, 0 and `tokens` among them; pairs [start, end), or the places alone."""
  if not name:
    return (0, tokens)
  if value is None:
    raise UserError(f"{place} has no document boundaries in {name!r}")
  places = np.asarray([np.asarray(each) for each in value]).ravel() if len(value) else np.zeros(0, np.int64)
  if not np.issubdtype(places.dtype, np.integer) or (np.diff(places.astype(np.int64)) < 0).any() or (
      len(places) and not 0 <= places[0] <= places[-1] <= tokens):
    raise UserError(f"{place} has the document boundaries {places.tolist()[:8]} in {name!r}; wanted are places from 0 "
                    f"to {tokens} that do not fall, or pairs [start, end) of them")
  return tuple(sorted({0, tokens, *places.tolist()}))


def _of_mds(shard: mds.Shard, wanted: list[str]):
  return lambda numbers: (row for _, _, row in mds.rows(shard, wanted, numbers))


def _open_parquet(path: pathlib.Path, name: str, source: config_lib.Source, wanted: list[str]) -> _File:
  try:
    with pq.ParquetFile(path) as file:
      for column in wanted:
        if column not in file.schema_arrow.names:
          raise UserError(f"{path} has no column {column!r}; its columns are {', '.join(file.schema_arrow.names)} "
                          f"(text_field of source {source.name!r}, or method_options.given_boundaries)")
      sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
  except (pa.ArrowException, OSError) as error:
    raise Unreadable("not whole Parquet", f"cannot be read as Parquet ({str(error).splitlines()[0]})") from error

  def rows(numbers: Sequence[int]) -> Iterator[dict]:
    firsts = np.cumsum([0, *sizes])
    groups = np.searchsorted(firsts, numbers, side="right") - 1
    with pq.ParquetFile(path) as file:
      for group, mine in itertools.groupby(zip(groups.tolist(), numbers), key=lambda pair: pair[0]):
        table = file.read_row_group(group, columns=wanted)
        for _, number in mine:
          yield {column: _list(table.column(column)[number - int(firsts[group])]) for column in wanted}
  return _File(name, path, sum(sizes), rows)


def _list(scalar: pa.Scalar) -> object:
  """A cell as an array where it is a list of numbers, which `as_py` would make a million Python ints of."""
  values = getattr(scalar, "values", None)
  if values is not None and pa.types.is_integer(values.type) and not values.null_count:
    return values.to_numpy(zero_copy_only=False)
  return scalar.as_py()


def _open_array_record(path: pathlib.Path, name: str, source: config_lib.Source, wanted: list[str]) -> _File:
  if wanted:
    raise UserError(f"source {source.name!r} is of kind array_record, whose records are token ids alone: set its "
                    f"text_field and method_options.given_boundaries to '' (found {', '.join(wanted)})")

  def rows(numbers: Sequence[int]) -> Iterator[dict]:
    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    try:
      for number in numbers:
        (record,) = reader.read([number])
        yield {"": _record(record, path)}
    finally:
      reader.close()
  try:
    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    count = reader.num_records()
    if not count:  # a damaged file says so too; only reading brings the reason out
      reader.read_all()
    reader.close()
  except (RuntimeError, ValueError, IndexError) as error:
    raise Unreadable(NOT_ARRAY_RECORD,
                     f"cannot be read as array_record ({str(error).split(';')[0].splitlines()[0]})") from error
  return _File(name, path, count, rows)


def _record(record: bytes, path: pathlib.Path) -> np.ndarray:
  """The ids of a record; that of a packed sequence (`synthesis.packing`) holds more than ids."""
  if len(record) % 4:
    raise UserError(f"{path} has a record of {len(record)} bytes; token ids are four bytes each")
  numbers = np.frombuffer(record, "<i4")
  if len(numbers) % 3 == 0:
    _, documents, learnt = numbers.reshape(3, -1)
    steps = np.diff(documents)
    if documents[0] == 1 and set(np.unique(learnt).tolist()) <= {0, 1} and ((steps == 0) | (steps == 1)
                                                                            | (documents[1:] == 0)).all():
      raise UserError(f"{path} holds packed sequences, of a run with training.document_masking or of a fine-tuning; "
                      "wanted are records of token ids alone")
  return numbers


def _probe(path: pathlib.Path) -> bytes:
  with open(path, "rb") as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(_PROBE)
    file.seek(max(0, size - _PROBE))
    return size.to_bytes(8) + head + file.read()


def _why(bad: Counter) -> str:
  return f" (not read: {', '.join(f'{count} {reason}' for reason, count in sorted(bad.items()))})" if bad else ""
