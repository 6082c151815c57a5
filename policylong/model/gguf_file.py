"""GGUF files: what model they hold, and their tensors, dequantised one at a time.

Reading is the `gguf` package's. Facts of the format that matter here: array dimensions are listed last
first; a model without `output.weight` ties its head; files of the "llama" architecture store the rows of q
and k with each head's two halves interleaved, for a RoPE that rotates neighbouring pairs; and a large model lies in
parts, NAME-00001-of-00003.gguf and so on, of which the first has the metadata.
"""

import dataclasses
import functools
import glob
import os
import pathlib
import re
from typing import Any

import gguf
import numpy as np

from policylong.errors import UserError
from policylong.model import fields, rope
from policylong.model.names import Tensor
from policylong.model.qwen import ModelConfig

# Fields of a GGUF file's tokenizer that name a token which ends a generation: of a text, of a turn, of a message.
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")

# Frequencies are divided by it, one number for each pair of a head: how a file has llama3's RoPE.
_ROPE_FREQS = "rope_freqs.weight"


@dataclasses.dataclass(frozen=True)
class File:
  """A GGUF model as it lies on disk.

  parts: its files, of most models one. fields: the metadata by name. tensors: of all parts.
  """
  parts: tuple[pathlib.Path, ...]
  fields: dict[str, gguf.ReaderField]
  tensors: list[gguf.ReaderTensor]


def parts(path: str | os.PathLike) -> list[pathlib.Path]:
  """The files of a GGUF model: the one that is named, or all parts, of which one or what they share may be named.

  Raises:
    UserError: a part is missing, or parts of two models have the name.
  """
  path = pathlib.Path(path)
  if named := _PART.fullmatch(path.name):
    name, counts = named[1], {int(named[3])}
  elif path.exists():
    return [path]
  else:
    name = path.name.removesuffix(".gguf")
    found = map(_PART.fullmatch, (other.name for other in path.parent.glob(f"{glob.escape(name)}-*-of-*.gguf")))
    counts = {int(part[3]) for part in found if part and part[1] == name}
    if not counts:
      return [path]
  if len(counts) > 1:
    numbers = " and of ".join(map(str, sorted(counts)))
    raise UserError(f"{path.parent} has parts of several models {name}, of {numbers} parts: name a part of the one "
                    "that is meant")
  (count,) = counts
  files = [path.with_name(f"{name}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
  if missing := [file.name for file in files if not file.exists()]:
    more = f" and {len(missing) - 1} more files are" if len(missing) > 1 else " is"
    raise UserError(f"{missing[0]}{more} missing from {path.parent}: the model {name} lies in {count} parts, and all "
                    "are needed in one folder")
  return files or [path]


def open_gguf(path: str | os.PathLike) -> File:
  """The model, memory-mapped; the last one opened is kept, since reading a vocabulary takes seconds.

  Raises:
    UserError: a file is missing, truncated or no GGUF file, or a part belongs to another model.
  """
  files = parts(path)
  try:
    stats = [os.stat(file) for file in files]
  except OSError as error:
    raise UserError(f"model file {path} cannot be read ({error.strerror}): "
                    "give an HF directory or a GGUF file") from error
  return _open(tuple(map(str, files)), tuple((stat.st_mtime_ns, stat.st_size) for stat in stats))


@functools.lru_cache(maxsize=1)
def _open(paths: tuple[str, ...], stats: tuple[tuple[int, int], ...]) -> File:
  readers = [_read(path, size) for path, (_, size) in zip(paths, stats)]
  first = readers[0]
  for number, (path, reader) in enumerate(zip(paths, readers)):
    _check_part(path, reader, number, len(readers), first)
  tensors = [tensor for reader in readers for tensor in reader.tensors]
  names = {tensor.name for tensor in tensors}
  stated = field(first, "split.tensors.count", len(tensors))
  if len(names) < len(tensors) or stated != len(tensors):
    raise UserError(f"the {len(readers)} parts of {paths[0]} hold {len(tensors)} tensors with {len(names)} names, "
                    f"wanted {stated}: they are not parts of one model, fetch all of them again")
  return File(tuple(map(pathlib.Path, paths)), first.fields, tensors)


class _Reader(gguf.GGUFReader):
  """The package's, over a plain array, of which a vocabulary's million pieces are cut faster than of a memmap.

  The package takes what lies beyond the end of a file for nothing, and goes on reading: 2^50 times. Here it is refused.
  """

  @property
  def data(self) -> Any:
    """The file's bytes, mapped."""
    return self._bytes

  @data.setter
  def data(self, mapped: Any) -> None:
    self._bytes = mapped.view(np.ndarray)

  def _get(self, offset, dtype, count=1, *more, **options):
    end = int(offset) + np.dtype(dtype).itemsize * int(count)
    if end > len(self._bytes):
      raise ValueError(f"a value is said to end at byte {end}")
    return super()._get(offset, dtype, count, *more, **options)


def _read(path: str, size: int) -> gguf.GGUFReader:
  try:
    reader = _Reader(path)
  except (ValueError, KeyError, IndexError, OverflowError, MemoryError, UnicodeDecodeError) as error:
    raise UserError(f"model file {path} ({size} bytes) is truncated, damaged or no GGUF file ({error}): "
                    "fetch it again") from error
  if reader.endianess != gguf.GGUFEndian.LITTLE:
    raise UserError(f"model file {path} is big-endian, wanted little-endian: convert it again")
  end, before = reader.data_offset, "the metadata"
  for tensor in sorted(reader.tensors, key=lambda tensor: tensor.data_offset):
    if tensor.data_offset < end or tensor.data_offset + tensor.n_bytes > size:
      raise UserError(f"model file {path} ({size} bytes) is damaged: its tensor {tensor.name} is said to lie at bytes "
                      f"{tensor.data_offset} to {tensor.data_offset + tensor.n_bytes}, but {before} ends at {end}: "
                      "fetch it again")
    end, before = tensor.data_offset + int(tensor.n_bytes), tensor.name
  return reader


def _check_part(path: str, reader: gguf.GGUFReader, number: int, count: int, first: gguf.GGUFReader) -> None:
  """Compares what a file says of itself with its name, and with what the first part says."""
  said = field(reader, "split.no", 0), field(reader, "split.count", 1) or 1
  if said != (number, count):
    wanted = f"part {number + 1} of {count}" if count > 1 else "a whole model (parts are NAME-00001-of-00002.gguf)"
    raise UserError(f"{path} says that it is part {said[0] + 1} of {said[1]} (split.no, split.count), but by its name "
                    f"it is {wanted}")
  for name in reader.fields if reader is not first else ():
    if name.startswith(("GGUF.", "split.no")):
      continue
    if (found := field(reader, name)) != (wanted := field(first, name)):
      raise UserError(f"{path} is a part of another model than its first part: it has {name} = {found!r}, wanted "
                      f"{wanted!r}")


def field(reader: File | gguf.GGUFReader, name: str, default=None):
  """A metadata value as a Python object, or `default` where the file has none."""
  return reader.fields[name].contents() if name in reader.fields else default


def end_tokens(path: str | os.PathLike) -> frozenset[int]:
  """What ends a generation, by the metadata."""
  return frozenset({field(open_gguf(path), f"tokenizer.ggml.{name}") for name in ENDS} - {None})


def read_config(path: pathlib.Path) -> ModelConfig:
  """What model a GGUF file holds.

  Raises:
    UserError: the file is not readable, of another architecture, or uses what is not supported.
  """
  file = open_gguf(path)
  if (kind := field(file, "general.type", "model")) != "model":
    raise UserError(f"{path} holds a {kind!r} (general.type), wanted a model")
  family = field(file, "general.architecture", "(none)")
  if family not in ("llama", "qwen2", "qwen3"):
    raise UserError(f"{path} holds a model of architecture {family!r}; supported are llama, qwen2 and qwen3")
  found = {name.removeprefix(f"{family}."): field(file, name) for name in file.fields if name.startswith(f"{family}.")}

  def get(name: str, default=None):
    value = found.get(name, default)
    if value is None:
      raise UserError(f"{path} has no field {family}.{name}, which a {family} model needs")
    if isinstance(value, list):  # a number for each layer
      if len(set(value)) != 1:
        raise UserError(f"{path} has {family}.{name} = {value}, wanted one number for all layers")
      value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
      raise UserError(f"{path} has {family}.{name} = {value!r}, wanted a number above 0")
    return value

  heads, width = get("attention.head_count"), get("embedding_length")
  head_dim = get("attention.key_length", width // heads)
  # that the names stand under the architecture's is said, as the file spells them
  unset = dict.fromkeys(("logit_scale", "embedding_scale", "residual_scale"), (0.0,))  # llama.cpp's word for it
  fields.check(found, fields.GGUF, f"{path} (under {family}.)",
               {**unset, "attention.scale": (0.0, float(np.float32(head_dim**-0.5)))})
  scaling, window = _rope(path, found, file, head_dim, get("context_length"))
  _refuse_others(path, family, found, head_dim, window)
  names = {tensor.name for tensor in file.tensors}
  return ModelConfig(
      family=family, vocab_size=get("vocab_size", len(field(file, "tokenizer.ggml.tokens", ())) or None),
      embed_dim=width, mlp_dim=get("feed_forward_length"), num_layers=get("block_count"), num_heads=heads,
      num_kv_heads=get("attention.head_count_kv", heads), head_dim=head_dim,
      norm_eps=_decimal(get("attention.layer_norm_rms_epsilon")), rope_theta=_decimal(get("rope.freq_base", 10000.0)),
      rope_scaling=scaling, max_positions=window, tied="output.weight" not in names)


def _decimal(value: float) -> float:
  """The shortest decimal of a stored float32: 1e-05, not 9.999999747378752e-06."""
  return float(str(np.float32(value)))


def _refuse_others(path: pathlib.Path, family: str, found: dict, head_dim: int, window: int) -> None:
  """Refuses what the table leaves to a reader and is not followed here."""
  for name, wanted in {"rope.dimension_count": (head_dim,), "attention.value_length": (head_dim,),
                       "rope.scaling.attn_factor": (1,), "rope.scaling.yarn_attn_factor": (1,),
                       "rope.scaling.yarn_ext_factor": (1, -1), "rope.scaling.yarn_log_multiplier": (0,)}.items():
    if found.get(name) not in (None, *wanted):
      raise UserError(f"{path} has {family}.{name} = {found[name]}, which is not supported (wanted {wanted[0]})")
  if 0 < (found.get("attention.sliding_window") or 0) < window:
    size = found["attention.sliding_window"]
    raise UserError(f"{path} has {family}.attention.sliding_window = {size}, less than the "
                    f"model's window of {window} tokens, which is not supported")


def _rope(path: pathlib.Path, found: dict, file: File, head_dim: int, positions: int
          ) -> tuple[rope.Scaling | None, int]:
  """The scaling of the rotary positions, and the window in tokens: as in config.json, what a factor stretches to."""
  original = found.get("rope.scaling.original_context_length") or positions
  factor = found.get("rope.scaling.factor") or found.get("rope.scale_linear")
  # where a file says no type, llama.cpp takes a factor for that of linear scaling
  kind = found.get("rope.scaling.type") or ("linear" if factor not in (None, 1) else "none")
  divisors = _divisors(path, file, head_dim)
  if kind == "none":
    return rope.Divided(original_max_positions=original, divisors=divisors) if divisors else None, positions
  if kind not in ("linear", "yarn"):
    raise UserError(f"{path} uses RoPE scaling {kind!r}; supported are none, linear, yarn, and {_ROPE_FREQS}")
  if factor is None:
    raise UserError(f"{path} uses RoPE scaling {kind!r} but has no rope.scaling.factor")
  if divisors:
    raise UserError(f"{path} uses RoPE scaling {kind!r} and the tensor {_ROPE_FREQS} together, which is not supported")
  factor, stretched = _decimal(factor), max(positions, round(factor * original))
  if kind == "linear":
    return rope.Linear(original_max_positions=original, factor=factor), stretched
  given: dict = {name: _decimal(found[key]) for name in ("beta_fast", "beta_slow")
           if (key := f"rope.scaling.yarn_{name}") in found}
  return rope.Yarn(original_max_positions=original, factor=factor, **given), stretched


def _divisors(path: pathlib.Path, file: File, head_dim: int) -> tuple[float, ...] | None:
  """What each pair's frequency is divided by; None where nothing is.

  A tensor by whose length the file chooses (longrope) is refused.
  """
  tensors = {tensor.name: tensor for tensor in file.tensors}
  if longrope := sorted(name for name in tensors if name.startswith("rope_factors_")):
    raise UserError(f"{path} has the tensor {longrope[0]}: RoPE scaling by longrope is not supported")
  if _ROPE_FREQS not in tensors:
    return None
  stored = tensors[_ROPE_FREQS]
  values = np.asarray(gguf.dequantize(stored.data, stored.tensor_type), np.float32).reshape(-1)
  if len(values) != head_dim // 2 or not (np.isfinite(values).all() and (values > 0).all()):
    raise UserError(f"{path} has {len(values)} numbers from {values.min()} to {values.max()} in {_ROPE_FREQS}, wanted "
                    f"{head_dim // 2} above 0, one for each pair of a head")
  return None if (values == 1).all() else tuple(_decimal(value) for value in values)


class GGUFSource:
  """The tensors of a GGUF model under their own names."""
  kind = "gguf"

  def __init__(self, path: pathlib.Path, config: ModelConfig):
    self.where = str(path)
    self._config = config
    self._tensors = {tensor.name: tensor for tensor in open_gguf(path).tensors}

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Each weight's shape, in numpy's order."""
    return {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in self._tensors.items()
            if name != _ROPE_FREQS}

  def read(self, tensor: Tensor) -> np.ndarray:
    """One tensor, float32, with q and k in the order of an HF checkpoint.

    Raises:
      UserError: its quantisation is not known.
    """
    stored = self._tensors[tensor.name]
    try:
      array = gguf.dequantize(stored.data, stored.tensor_type)
    except NotImplementedError as error:
      raise UserError(f"{tensor.name} in {self.where} is quantised as {stored.tensor_type.name}, which the gguf "
                      "package cannot dequantise") from error
    array = np.asarray(array, np.float32).reshape(tensor.shape)
    if self._config.family == "llama" and tensor.entry.path[-1] in ("q", "k"):
      pairs = array.reshape(-1, self._config.head_dim // 2, 2, array.shape[-1])
      array = pairs.swapaxes(1, 2).reshape(array.shape)
    return array
