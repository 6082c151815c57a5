"""What every unit of every stage is told, made once before the work begins."""

import dataclasses
import functools

import numpy as np

from policylong import config as config_lib
from policylong.corpus import sources
from policylong.prepare.layout import Work

# Changes when the same input and settings give other shards than before.
FORMAT = 2
# Files are put together to units of so many bytes, a larger file is one of its own.
UNIT_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Unit:
  """Files [first, last) of source `source`, and their bytes."""
  source: int
  first: int
  last: int
  size: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """directory: of the prepared corpus. near_duplicates: the least Jaccard similarity of two, 0 for none."""
  directory: str
  sources: tuple[config_lib.Source, ...]
  units: tuple[Unit, ...]
  chunk_chars: int
  near_duplicates: float

  @property
  def work(self) -> Work:
    """Where unfinished work lies."""
    return Work(self.directory)


@dataclasses.dataclass(frozen=True)
class Shard:
  """Documents [first, first + documents) of all that were read, from one source; name as its files have it."""
  name: str
  source: int
  first: int
  documents: int
  characters: int


def units_of(all_sources: tuple[config_lib.Source, ...]) -> tuple[Unit, ...]:
  """The units of the first stage, in the order in which documents count.

  Raises:
    UserError: a source is not there.
  """
  units: list[Unit] = []
  for number, source in enumerate(all_sources):
    first = size = 0
    sizes = sources.file_sizes(source)
    for i, bytes_ in enumerate(sizes):
      if i > first and size + bytes_ > UNIT_BYTES:
        units.append(Unit(number, first, i, size))
        first, size = i, 0
      size += bytes_
    units.append(Unit(number, first, len(sizes), size))
  return tuple(units)


def unit_name(number: int) -> str:
  """As its files have it."""
  return f"{number:06d}"


@functools.lru_cache(maxsize=1)
def shards_of(plan: Plan) -> tuple[Shard, ...]:
  """All shards in order, when the first stage is done."""
  found, first = [], 0
  for number, unit in enumerate(plan.units):
    for i, (documents, characters) in enumerate(plan.work.counts("read", unit_name(number))["shards"]):
      found.append(Shard(f"{unit_name(number)}-{i:04d}", unit.source, first, documents, characters))
      first += documents
  return tuple(found)


def by_shard(shards: tuple[Shard, ...], rows: np.ndarray) -> list[slice]:
  """Which part of sorted rows lies in each shard."""
  ends = np.searchsorted(rows, [shard.first + shard.documents for shard in shards]).tolist()
  return [slice(first, last) for first, last in zip([0, *ends], ends)]
