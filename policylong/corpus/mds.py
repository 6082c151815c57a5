"""Reads MDS shards, the form in which the streaming package keeps data sets (EntropyLong, NExtLong and ProLong too).

A folder holds index.json and its shards. The index says of each shard its columns with their encodings and sizes, how
many samples it has, and its files: the raw one, and where it was compressed the compressed one. A raw shard is

  uint32 samples, uint32[samples + 1] offsets, the columns once more as JSON, then the samples' bytes

and a sample is a uint32 size for each column without a fixed one, then the columns' values one behind the other.
Numbers are little-endian. Of a sample only the wanted columns are decoded; pickled ones are refused. Where the index
has a hash of the raw shard (`hashes`: sha1, xxh128, ...), the bytes must be those, or the shard is damaged.
"""

import dataclasses
import functools
import glob
import hashlib
import importlib.util
import io
import json
import logging
import math
import mmap
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from policylong import paths
from policylong.corpus.files import Unreadable, opened, why_not
from policylong.errors import UserError

log = logging.getLogger(__name__)

INDEX = "index.json"
NOT_MDS = "not a whole MDS shard"

# dtypes by the byte that stands for them before an array, and those of the array's shape.
_DTYPES = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32",
           64: "uint64", 65: "int64", 66: "float64"}
_SHAPE_DTYPES = ("uint8", "uint16", "uint32", "uint64")
_SCALARS = {**{name: name for name in _DTYPES.values()}, "int": "int64"}
# Compressions without first bytes of their own.
_NAMED = {"br": "brotli", "snappy": "snappy"}


@dataclasses.dataclass(frozen=True)
class Column:
  """One column: `size` in bytes, None if each sample says its own."""
  name: str
  encoding: str
  size: int | None


@dataclasses.dataclass(frozen=True)
class Shard:
  """A shard: where it lies, its name below the folder that was asked for, and what the index says of it.

  path: the raw file, or the compressed one if that alone is there. bytes, hashes: of the raw one, {algorithm: hex
  digits} as pairs. compression: of the file at path, "" for none.
  """
  path: pathlib.Path
  name: str
  columns: tuple[Column, ...]
  samples: int
  bytes: int
  hashes: tuple[tuple[str, str], ...]
  compression: str


def is_mds(where: str) -> bool:
  """Whether it is an index.json, or a folder with one in it or below it."""
  if os.path.isdir(where):
    return any(glob.iglob(os.path.join(glob.escape(where), "**", INDEX), recursive=True))
  return os.path.basename(where) == INDEX and os.path.isfile(where)


def find_shards(where: str, field: str) -> list[Shard]:
  """The shards of a folder (its own index, or else those of the folders below), of an index.json, or of a glob of both.

  Args:
    where: see above.
    field: what says so, for the sentence.

  Raises:
    UserError: there is none, or an index is damaged.
  """
  root, indexes = _indexes(paths.expand(where), f"{field} is {where}")
  return [shard for index in indexes for shard in _read_index(index, root)]


def files(where: str, field: str) -> list[pathlib.Path]:
  """The index files and the shards; raises as `find_shards`."""
  _, indexes = _indexes(paths.expand(where), f"{field} is {where}")
  return [*indexes, *(shard.path for shard in find_shards(where, field))]


def check_columns(shard: Shard, fields: Sequence[str]) -> None:
  """Raises a UserError for a column that is missing, or in an encoding that is not read."""
  _decoders(shard, fields)


def rows(shard: Shard, fields: Sequence[str], only: Sequence[int] | None = None) -> Iterator[tuple[int, int, dict]]:
  """(number from 1, bytes of a sample, {column: value}) of each sample, of the columns that hold `fields`.

  `only`, if given, are the samples that are wanted, counted from 0.

  Values are str, bytes, int, float, numpy arrays, or what JSON has.

  Raises:
    Unreadable: the shard is missing or damaged.
    UserError: a column is missing, or in an encoding that is not read.
  """
  decoders = _decoders(shard, fields)
  if not decoders:
    return
  data = _raw(shard)
  if len(data) < 4 or int.from_bytes(data[:4], "little") != shard.samples or len(data) < 8 + 4 * shard.samples:
    raise Unreadable(NOT_MDS)
  offsets = np.frombuffer(data, "<u4", shard.samples + 1, 4).tolist()
  for number in range(1, shard.samples + 1) if only is None else [wanted + 1 for wanted in only]:
    start, end = offsets[number - 1:number + 1]
    try:
      yield number, end - start, _sample(shard, data[start:end], decoders)
    except (ValueError, IndexError, KeyError, RecursionError) as error:
      raise Unreadable(NOT_MDS, f"is {NOT_MDS} (sample {number}: {error!r})") from error


def _indexes(where, field) -> tuple[str, list[pathlib.Path]]:
  if os.path.isdir(where):
    root, found = where, _below(where)
  elif os.path.basename(where) == INDEX and os.path.isfile(where):
    root, found = os.path.dirname(where), [where]
  elif glob.has_magic(where):
    root, matches = paths.fixed_part(where), paths.matching(where)
    found = [path for match in matches for path in (_below(match) if os.path.isdir(match) else [match])]
    found = [path for path in dict.fromkeys(found) if os.path.basename(path) == INDEX]
  else:
    raise UserError(f"{field}, where no folder is; kind mds wants a folder with {INDEX}")
  if not found:
    raise UserError(f"{field}, where no {INDEX} of MDS shards is found")
  return root, sorted(map(pathlib.Path, found))


def _below(folder: str) -> list[str]:
  """Its own index, which tells of all shards below it too, or else those of the nearest folders below."""
  own = os.path.join(folder, INDEX)
  if os.path.isfile(own):
    return [own]
  return [path for name in sorted(os.listdir(folder)) if os.path.isdir(inner := os.path.join(folder, name))
          for path in _below(inner)]


def _read_index(path: pathlib.Path, root: str) -> list[Shard]:
  try:
    with opened(path) as (stream, _):
      index = json.load(stream)
    return [_shard(entry, path.parent, root) for entry in index["shards"]]
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{path} is not the index of MDS shards ({error!r}): fetch it again") from error
  except Unreadable as error:
    raise UserError(f"{path} {error}: fetch it again") from error


def _shard(entry: dict, folder: pathlib.Path, root: str) -> Shard:
  if (entry["format"], entry["version"]) != ("mds", 2):
    raise UserError(f"its shards are of format {entry['format']} {entry['version']}; mds 2 is read")
  names, encodings, sizes = entry["column_names"], entry["column_encodings"], entry["column_sizes"]
  columns = tuple(Column(*column) for column in zip(names, encodings, sizes, strict=True))
  raw, packed = entry["raw_data"], entry["zip_data"]
  path, compression = folder / raw["basename"], ""
  if packed and not path.exists():
    path, compression = folder / packed["basename"], entry["compression"].partition(":")[0]
  name = pathlib.Path(os.path.relpath(path, root or ".")).as_posix()
  hashes = tuple(sorted((algorithm, digits.lower()) for algorithm, digits in (raw.get("hashes") or {}).items()))
  return Shard(path, name, columns, int(entry["samples"]), int(raw["bytes"]), hashes, compression)


def _raw(shard: Shard) -> bytes | mmap.mmap:
  """The shard's bytes, decompressed and checked."""
  if reason := why_not(shard.path):
    raise Unreadable("a shard that does not exist" if not shard.path.exists() else reason)
  if not shard.compression:
    with open(shard.path, "rb") as file:
      data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if shard.path.stat().st_size else b""
  elif shard.compression in _NAMED:
    try:
      data = pa.decompress(shard.path.read_bytes(), shard.bytes, _NAMED[shard.compression], asbytes=True)
    except (OSError, pa.ArrowException) as error:
      raise Unreadable(NOT_MDS) from error
  else:
    with opened(shard.path) as (stream, _):
      data = stream.read()
  if len(data) != shard.bytes:
    raise Unreadable(NOT_MDS, f"is {NOT_MDS}: it has {len(data)} bytes, and its {INDEX} says {shard.bytes}")
  if shard.compression:
    _check_hash(shard, io.BytesIO(data))
  else:
    _check_raw(shard, shard.path.stat().st_mtime_ns)
  return data


@functools.cache
def _check_raw(shard: Shard, changed: int) -> None:
  """Once for each time at which a raw file was changed: its rows may be asked for a few at a time."""
  del changed
  with open(shard.path, "rb") as file:
    _check_hash(shard, file)


def _check_hash(shard: Shard, file: io.BufferedIOBase) -> None:
  """Raises Unreadable for a shard's bytes whose hash is another than its index says."""
  known = [(algorithm, digits, make) for algorithm, digits in shard.hashes if (make := _hash(algorithm))]
  for algorithm, digits, make in known[:1]:  # one is enough
    if hashlib.file_digest(file, make).hexdigest() != digits:
      raise Unreadable(NOT_MDS, f"is {NOT_MDS}: its {algorithm} is not the one in its {INDEX}")


@functools.cache
def _hash(algorithm: str) -> Callable | None:
  """What makes a hash of that name, as the streaming package knows them: hashlib's and xxhash's."""
  if algorithm in hashlib.algorithms_available and not algorithm.startswith("shake"):
    return functools.partial(hashlib.new, algorithm, usedforsecurity=False)
  if importlib.util.find_spec("xxhash"):
    import xxhash  # of the shards that need it
    if algorithm in xxhash.algorithms_available:
      return getattr(xxhash, algorithm)
  log.warning("MDS shards have the hash %s, which cannot be computed here%s: of their files only the sizes are checked",
              algorithm, " (pip install xxhash)" if algorithm.startswith("xxh") else "")
  return None


def _decoders(shard: Shard, fields: Sequence[str]) -> dict[str, Callable[[bytes], object]]:
  columns = {column.name: column for column in shard.columns}
  found = {}
  for field in fields:
    column = columns.get(field) or next((c for name, c in columns.items() if field.startswith(f"{name}.")), None)
    if column is None:
      raise UserError(f"{shard.path} has no column {field!r}; its columns are {', '.join(columns)}")
    try:
      found[column.name] = _decoder(column.encoding)
    except (ValueError, KeyError) as error:
      raise UserError(f"{shard.path} has the column {column.name!r} in the encoding {column.encoding!r}, which is not "
                      "read: str, bytes, json, numbers and ndarray are") from error
  return found


def _decoder(encoding: str) -> Callable[[bytes], object]:
  """What turns the bytes of a value into it; ValueError or KeyError for an encoding that is not read, as pkl."""
  name, _, rest = encoding.partition(":")
  if name == "ndarray":
    dtype, _, shape = rest.partition(":")
    return _array_decoder(dtype, tuple(map(int, shape.split(","))) if shape else None)
  if name in _SCALARS:
    return lambda data: np.frombuffer(data, _little(_SCALARS[name]))[0].item()
  # Text stays bytes: whoever reads it says what is to happen where it is no UTF-8.
  decoders: dict[str, Callable] = {"str": bytes, "bytes": bytes, "json": json.loads, "str_int": int}
  return decoders[name]


def _array_decoder(dtype: str, shape: tuple[int, ...] | None) -> Callable[[bytes], np.ndarray]:
  """Where dtype or shape are not the column's, they stand before the values."""
  if dtype and dtype not in _DTYPES.values():
    raise ValueError(dtype)

  def decode(data: bytes) -> np.ndarray:
    position = 0
    own, dims = dtype, shape
    if not own:
      own, position = _DTYPES[data[0]], 1
    if dims is None:
      ndim, kind = data[position] >> 2, np.dtype(_little(_SHAPE_DTYPES[data[position] & 3]))
      dims = tuple(np.frombuffer(data, kind, ndim, position + 1).tolist())
      position += 1 + ndim * kind.itemsize
    return np.frombuffer(data, _little(own), math.prod(dims), position).reshape(dims)
  return decode


def _little(name: str) -> str:
  return np.dtype(name).newbyteorder("<").str


def _sample(shard: Shard, data: bytes, decoders: dict[str, Callable[[bytes], object]]) -> dict:
  own = [column for column in shard.columns if not column.size]
  sizes = dict(zip((column.name for column in own), np.frombuffer(data, "<u4", len(own)).tolist()))
  position, values = 4 * len(own), {}
  for column in shard.columns:
    size = column.size or sizes[column.name]
    if position + size > len(data):
      raise ValueError("a value ends behind its sample")
    if column.name in decoders:
      values[column.name] = decoders[column.name](data[position:position + size])
    position += size
  return values
