"""Sequences on disk: array_record for training, one Parquet table of spans for people.

  sequences/part-00000.array_record ...   a record is the L tokens of a sequence, little-endian int32 (the numbers of
                                          the parts may have gaps, see `together`)
  sequences/MANIFEST.json                 the sha256 of each (`storage.manifest`)
  sequences.parquet                       one row a span: `sequence` (which record), then the fields of
                                          `records.Span`; written last

Packed sequences (`packing.py`) lie in such files too, those of a run with document masking and conversations: a record
is then 3 L numbers.

All are the same bytes for the same sequences: array_record writes no clock and no path, and records
are not compressed, so the bytes do not hang on a compressor's version either.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from array_record.python import array_record_module
from etils import epath

from policylong.errors import UserError
from policylong.records import LongSequence, Positive, Span
from policylong.storage import manifest, tables
from policylong.synthesis import packing

# A new file is begun when one holds so much: 2,048 sequences of 32K tokens.
SHARD_BYTES = 256 << 20
# One record a group: a trainer reads single sequences in random order.
_OPTIONS = "group_size:1,uncompressed"
_AGAIN = "put a whole copy in its place, or begin again in another --workdir"


def write_sequences(sequences: Iterable[LongSequence], directory: epath.PathLike, packed: bool = False,
                    beginning: Sequence[int] | np.ndarray = ()) -> int:
  """Writes sequences/ and sequences.parquet into `directory` and returns the number of sequences.

  Files of an earlier attempt are removed first. Each file appears whole or not at all, the table last.

  Args:
    sequences: of a round.
    directory: of the round.
    packed: whether the records are `packing.by_document` of the sequences, or their tokens.
    beginning: int32[b], put in front of a sequence, if packed of each of its documents (`packing.begun`).

  Raises:
    OSError: the disk is full, or the folder cannot be written.
  """
  directory = epath.Path(directory)
  table_path = directory / "sequences.parquet"
  table_path.unlink(missing_ok=True)
  records = Records(sequences, packed, beginning)
  count = write_records(records, directory / "sequences")
  tables.write(table_path, records.spans())
  return count


class Records:
  """What is written of sequences: each as a record when it is iterated over, and the spans of those so far.

  The arguments are those of `write_sequences`.
  """

  def __init__(self, sequences: Iterable[LongSequence], packed: bool, beginning: Sequence[int] | np.ndarray):
    self._sequences, self._packed, self._beginning = sequences, packed, np.asarray(beginning, np.int32)
    self._spans: list[Span] = []
    self._numbers: list[int] = []

  def __iter__(self) -> Iterator[np.ndarray]:
    for count, sequence in enumerate(self._sequences):
      if len(self._beginning):
        sequence = packing.begun(sequence, self._beginning, self._packed)
      yield packing.by_document(sequence) if self._packed else sequence.tokens
      self._spans.extend(sequence.spans)
      self._numbers.extend([count] * len(sequence.spans))

  def spans(self) -> pa.Table:
    """A row a span: `sequence`, which record from 0, then the fields of `records.Span`."""
    return tables.from_records(Span, self._spans).add_column(0, "sequence", pa.array(self._numbers, pa.int64()))


def write_records(arrays: Iterable[np.ndarray], folder: epath.PathLike) -> int:
  """Writes each array's numbers as a record of part-00000.array_record, ... in `folder`; returns how many there were.

  Files of an earlier attempt are removed first. Each file appears whole or not at all, their manifest last.

  Raises:
    OSError: the disk is full, or the folder cannot be written.
  """
  folder = emptied(folder)
  shard = None
  count = files = 0
  for array in arrays:
    if shard is None:
      shard = _Shard(part(folder, files))
      files += 1
    shard.write(array)
    count += 1
    if shard.size >= SHARD_BYTES:
      shard.close()
      shard = None
  if shard is not None:
    shard.close()
  sealed(folder)
  return count


def emptied(folder: epath.PathLike) -> epath.Path:
  """The folder, made if need be, without the files of an earlier attempt."""
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / manifest.NAME).unlink(missing_ok=True)
  for path in folder.glob("*part-*"):
    path.unlink()
  return folder


def part(folder: epath.Path, number: int) -> epath.Path:
  """The path of an array_record file."""
  return folder / f"part-{number:05d}.array_record"


def write_part(path: epath.Path, arrays: Iterable[np.ndarray]) -> None:
  """Writes each array's numbers as a record of one file, whole or not at all; none where there is no array."""
  shard = None
  for array in arrays:
    shard = shard or _Shard(path)
    shard.write(array)
  if shard is not None:
    shard.close()


def sealed(folder: epath.Path) -> None:
  """Writes the manifest of a folder whose array_record files are all there."""
  manifest.write(folder, lambda name: name.startswith("part-"))


def sequence_paths(folder: epath.PathLike) -> list[epath.Path]:
  """The array_record files of a sequences/ folder, in order: sequence 0 is the first record of the first."""
  return sorted(epath.Path(folder).glob("part-*.array_record"))


def read_tokens(paths: epath.PathLike | Sequence[epath.PathLike]) -> np.ndarray:
  """int32[sequences, L]: every sequence of one or several array_record files (of packed ones int32[sequences, 3 L]).

  Raises:
    UserError: a file is missing or damaged.
  """
  records = []
  for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
    try:
      reader = array_record_module.ArrayRecordReader(os.fspath(path))
      # A damaged file says that it holds 0 records; only reading brings the reason out.
      records += reader.read(list(range(reader.num_records()))) if reader.num_records() else reader.read_all()
      reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
      raise UserError(f"{path} cannot be read as array_record ({str(error).split(';')[0]}): {_AGAIN}") from error
  if len({len(record) for record in records}) > 1 or any(len(record) % 4 for record in records):
    raise UserError(f"{paths} holds records of {sorted({len(record) for record in records})} bytes, wanted four "
                    f"bytes a token and the same length everywhere: {_AGAIN}")
  length = len(records[0]) // 4 if records else 0
  return np.frombuffer(b"".join(records), "<i4").astype(np.int32).reshape(len(records), length)


def read_spans(path: epath.PathLike, sequences: Iterable[int]) -> list[tuple[Span, ...]]:
  """The spans of some sequences of a sequences.parquet, in the order asked for.

  Raises:
    UserError: the file is missing or damaged, or lacks one of the sequences.
  """
  table = tables.read(path)
  result = []
  for number in sequences:
    rows = table.filter(pc.equal(table.column("sequence"), number))
    if not rows.num_rows:
      raise UserError(f"{path} has no sequence {number}")
    result.append(tuple(tables.to_records(Span, rows)))
  return result


def mean_attended_tokens(spans: pa.Table) -> float:
  """sum(n^2) / sum(n) over the documents of n tokens that `packing.by_document` finds, from a round's table of spans.

  What attention costs with document masking: as much as in sequences of that length.
  """
  sequence, doc_id = spans.column("sequence").to_numpy(), spans.column("doc_id").combine_chunks().dictionary_encode()
  document = doc_id.indices.to_numpy()
  begins = np.flatnonzero((np.diff(sequence, prepend=-1) != 0) | (np.diff(document, prepend=-1) != 0))
  lengths = np.add.reduceat(spans.column("end").to_numpy() - spans.column("start").to_numpy(), begins)
  return float(np.sum(lengths**2) / np.sum(lengths))


def summarise(spans: pa.Table, positives: Sequence[Positive]) -> dict:
  """What became of a round's positives, from its table of spans.

  Returns:
    sequences, roots (documents, in each sequence), joined_sequences (of several), tokens {role: count},
    positives_cut_off (positives of roots in use that found no room, or whose text stood in the sequence already).
  """
  counts = spans.group_by("role").aggregate([("start", "sum"), ("end", "sum"), ("role", "count")]).to_pylist()
  tokens = {row["role"]: row["end_sum"] - row["start_sum"] for row in counts}
  roots = spans.filter(pc.equal(spans.column("role"), "root"))
  used = set(roots.column("doc_id").to_pylist())
  placed = sum(row["role_count"] for row in counts if row["role"] == "positive")
  # A root may lie in several spans.
  documents = roots.group_by(["sequence", "doc_id"]).aggregate([])
  blocks = documents.group_by("sequence").aggregate([("doc_id", "count")]).column("doc_id_count").to_pylist()
  return {"sequences": len(blocks), "roots": sum(blocks), "joined_sequences": sum(n > 1 for n in blocks),
          "tokens": {role: tokens.get(role, 0) for role in ("root", "positive", "negative", "filler")},
          "positives_cut_off": sum(positive.doc_id in used for positive in positives) - placed}


class _Shard:
  """One array_record file, under a temporary name until it is closed."""

  def __init__(self, path: epath.Path):
    self._path, self._temporary, self.size = path, path.with_name(f".{path.name}.tmp"), 0
    self._writer = self._try(array_record_module.ArrayRecordWriter, os.fspath(self._temporary), _OPTIONS)

  def write(self, numbers: np.ndarray) -> None:
    data = numbers.astype("<i4").tobytes()
    self._try(self._writer.write, data)
    self.size += len(data)

  def close(self) -> None:
    self._try(self._writer.close)
    self._temporary.rename(self._path)

  def _try(self, function, *arguments):
    """array_record tells of a full disk by a RuntimeError with the system's sentence in it."""
    try:
      return function(*arguments)
    except RuntimeError as error:
      for code in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        if os.strerror(code) in str(error):
          raise OSError(code, os.strerror(code), os.fspath(self._path)) from error
      raise
