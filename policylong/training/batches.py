"""Batches of long sequences from array_record files, by Grain, with a position that a checkpoint can hold.

A record is the L token ids of one sequence as little-endian int32, nothing else; or two such rows of a weighed one
(see `make_weighed_batch`), three of a packed one (`make_packed_batch`). The order is a shuffle seeded by (run, round),
reshuffled each time the sequences are used up. Row b of microbatch a of step s is that order's record (s A + a) B + b,
whatever the mesh and however many processes there are.

Letters: A microbatches, B sequences of one microbatch, L tokens of a sequence.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding

from policylong.errors import UserError
from policylong.training.step import Batch, make_batch, make_packed_batch, make_weighed_batch

# Passes over the sequences: more than any run makes. Without a number, Grain cannot batch by ones.
_EPOCHS = 2**31
_PURPOSE = zlib.crc32(b"policylong.training.batches")

# Rows of a record -> what makes batches of such records.
_MAKE = {1: make_batch, 2: make_weighed_batch, 3: make_packed_batch}


class Sequences:
  """Records of several files, int32[L], or int32[R, L] if they have R rows; a damaged one is refused by its number."""

  def __init__(self, paths: Sequence[epath.PathLike], sequence_length: int, vocab_size: int, rows: int = 1):
    self.names = [epath.Path(path).name for path in paths]
    self._paths = [str(path) for path in paths]
    self._shape = (rows, sequence_length) if rows > 1 else (sequence_length,)
    self._vocab_size = vocab_size
    try:
      self._records = grain.sources.ArrayRecordDataSource(self._paths) if paths else ()
      self._count = len(self._records)
    except Exception as error:  # array_record raises RuntimeError, ValueError and OSError alike
      raise UserError(f"the sequences {self._named()} cannot be read ({_first_line(error)}): put whole copies in "
                      "their place, or begin again in another --workdir") from error
    if not self._count:
      raise UserError(f"there is no training sequence in {self._named()}: the round made none")

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> np.ndarray:
    try:
      record = self._records[index]
    except Exception as error:
      raise UserError(f"record {index} of {self._named()} cannot be read ({_first_line(error)}): put whole copies "
                      "in their place, or begin again in another --workdir") from error
    wanted = 4 * math.prod(self._shape)
    if len(record) != wanted:
      raise UserError(f"record {index} of {self._named()} holds {len(record)} bytes; a sequence of "
                      f"{self._shape[-1]} tokens has {wanted}")
    numbers = np.frombuffer(record, "<i4").astype(np.int32).reshape(self._shape)
    tokens = numbers.reshape(-1, self._shape[-1])[0]
    if tokens.min() < 0 or tokens.max() >= self._vocab_size:
      raise UserError(f"record {index} of {self._named()} holds token ids from {tokens.min()} to {tokens.max()}; "
                      f"the model has 0 to {self._vocab_size - 1}")
    return numbers

  def _named(self) -> str:
    more = f" and {len(self._paths) - 1} more files" if len(self._paths) > 1 else ""
    return f"{self._paths[0]}{more}" if self._paths else "an empty list of files"


class Batches(Iterator[Batch]):
  """Endless iterator of `Batch` on the devices; each process reads the rows that its devices hold, and no others."""

  def __init__(self, paths: Sequence[epath.PathLike], *, shape: tuple[int, int, int], sharding: NamedSharding,
               vocab_size: int, seed: int, round_index: int, rows: int = 1):
    """Opens the files; reading runs ahead in two threads.

    Args:
      paths: array_record files, in a fixed order.
      shape: (A, B, L) of a global batch.
      sharding: of that batch, over the mesh.
      vocab_size: token ids must be below it.
      seed: the run's seed; the round is folded into it.
      round_index: the round that the sequences belong to.
      rows: of a record, see `config.Training.record_rows`.

    Raises:
      UserError: no file, an unreadable file, no record; later a record of the wrong length or with
        token ids that the model does not have.
    """
    self._shape, self._sharding = shape, sharding
    self._make_batch = _MAKE[rows]
    source = Sequences(paths, shape[2], vocab_size, rows)
    self._files = source.names
    self.num_sequences = len(source)
    self._rows = rows_held(sharding, shape, jax.process_index())
    self._iterator = read_shuffled(source, seed=fold_seed(seed, round_index), shape=shape[:2], rows=self._rows)

  def __next__(self) -> Batch:
    records = next(self._iterator)
    local = self._make_batch(records.reshape(self._shape[0], -1, *records.shape[1:]),
                             self._sharding.mesh.shape["context"])
    return place(local, self._shape, self._sharding, self._rows)

  def get_state(self) -> dict[str, Any]:
    """The position as JSON: batches given out, and which files they come from."""
    return {"iterator": self._iterator.get_state(), "files": self._files, "num_sequences": self.num_sequences}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on where `get_state` was called; the position does not depend on the number of processes.

    Raises:
      UserError: the files are not those that the state belongs to.
    """
    found, wanted = (self._files, self.num_sequences), (state["files"], state["num_sequences"])
    if found != wanted:
      raise UserError(f"the round's sequences have changed since the checkpoint: {found[1]} in {len(found[0])} files, "
                      f"wanted {wanted[1]} in {len(wanted[0])} files: remove the checkpoints of this round")
    self._iterator.set_state(state["iterator"])


def place(batch: Batch, shape: tuple[int, ...], sharding: NamedSharding, rows: np.ndarray | None = None) -> Batch:
  """A Batch on the devices, of which this process has the rows that its devices hold.

  Args:
    batch: on the host, arrays [..., rows, L].
    shape: (..., B, L) of the global batch.
    sharding: of that.
    rows: which of B they are, ascending, as `rows_held` says; None: all.
  """
  rows = np.arange(shape[-2]) if rows is None else rows

  def put(local: np.ndarray) -> jax.Array:
    def part(index: tuple[slice, ...]) -> np.ndarray:
      *outer, of_rows, of_tokens = index
      start, stop, _ = of_rows.indices(shape[-2])
      # a device's rows follow each other, and here too, as all of them are
      first = int(np.searchsorted(rows, start))
      return local[(*outer, slice(first, first + stop - start), of_tokens)]
    return jax.make_array_from_callback(shape, sharding, part)

  return jax.tree.map(put, batch)


def read_shuffled(source: grain.sources.RandomAccessDataSource, *, seed: int, shape: tuple[int, int],
                  rows: Sequence[int] | np.ndarray) -> grain.DatasetIterator:
  """Endless passes over `source`, each in its own order, a step at a time, of which the records of `rows` are read.

  Args:
    source: of records.
    seed: of the order.
    shape: (A, B) records of a step.
    rows: which of B are wanted, ascending.

  Returns:
    An iterator of A * len(rows) records: those rows of the step's first microbatch, then of its second, and so on.
  """
  A, B = shape
  held = [int(row) for row in rows]
  shuffled = grain.MapDataset.source(source).shuffle(seed).repeat(_EPOCHS)

  def record(index: int):
    microbatch, row = divmod(index, len(held))
    return shuffled[microbatch * B + held[row]]

  dataset = grain.MapDataset.range(len(shuffled) // B * len(held)).map(record).batch(A * len(held))
  # Two batches ahead: 32 sequences of 131,072 tokens are 16 MB.
  return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))


def rows_held(sharding: NamedSharding, shape: tuple[int, int, int], process: int) -> np.ndarray:
  """Which rows of B a process's devices hold, ascending; devices of several processes may share one.

  They need not follow each other: on a TPU slice neighbours on an axis are neighbours in the machine, and a ring of
  chips comes back to a host that it has left.
  """
  held = [index[1].indices(shape[1])[:2] for device, index in sharding.devices_indices_map(shape).items()
          if device.process_index == process]
  return np.unique(np.concatenate([np.arange(*block) for block in held]))


def fold_seed(seed: int, round_index: int) -> int:
  """The seed of a round's order."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _PURPOSE), round_index)
  return int(jax.random.bits(key))


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]
