"""GGUF files: what model they hold, and their tensors, dequantised one at a time.

Reading is the `gguf` package's. Facts of the format that matter here: array dimensions are listed last
first; a model without `output.weight` ties its head; and files of the "llama" architecture store the rows of q
and k with each head's two halves interleaved, for a RoPE that rotates neighbouring pairs.
"""

import functools
import os
import pathlib

import gguf
import numpy as np

from policylong.errors import UserError
from policylong.model import rope
from policylong.model.names import Tensor
from policylong.model.qwen import ModelConfig

# fields under rope.scaling that say how a model was made, not how it computes
_HARMLESS = ("type", "factor", "original_context_length", "finetuned")


def open_gguf(path: pathlib.Path) -> gguf.GGUFReader:
  """The file, memory-mapped; the last one opened is kept, since reading a vocabulary takes seconds.

  Raises:
    UserError: the file is missing, truncated or no GGUF file.
  """
  try:
    status = os.stat(path)
  except OSError as error:
    raise UserError(f"model file {path} cannot be read ({error.strerror}): "
                    "give an HF directory or a GGUF file") from error
  return _open(str(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)
def _open(path: str, mtime_ns: int, size: int) -> gguf.GGUFReader:
  try:
    return gguf.GGUFReader(path)
  except (ValueError, KeyError, IndexError, OverflowError, MemoryError, UnicodeDecodeError) as error:
    raise UserError(f"model file {path} ({size} bytes) is truncated, damaged or no GGUF file ({error}): "
                    "fetch it again") from error


def field(reader: gguf.GGUFReader, name: str, default=None):
  """A metadata value as a Python object, or `default` where the file has none."""
  return reader.fields[name].contents() if name in reader.fields else default


def read_config(path: pathlib.Path) -> ModelConfig:
  """What model a GGUF file holds.

  Raises:
    UserError: the file is not readable, of another architecture, or uses what is not supported.
  """
  reader = open_gguf(path)
  family = field(reader, "general.architecture", "(none)")
  if family not in ("llama", "qwen2", "qwen3"):
    raise UserError(f"{path} holds a model of architecture {family!r}; supported are llama, qwen2 and qwen3")

  def get(name: str, default=None):
    value = field(reader, f"{family}.{name}", default)
    if value is None:
      raise UserError(f"{path} has no field {family}.{name}, which a {family} model needs")
    return value

  heads, width = get("attention.head_count"), get("embedding_length")
  head_dim = get("attention.key_length", width // heads)
  _refuse_unsupported(path, reader, family, head_dim)
  names = {tensor.name for tensor in reader.tensors}
  return ModelConfig(
      family=family, vocab_size=get("vocab_size", len(field(reader, "tokenizer.ggml.tokens", ()))),
      embed_dim=width, mlp_dim=get("feed_forward_length"), num_layers=get("block_count"), num_heads=heads,
      num_kv_heads=get("attention.head_count_kv", heads), head_dim=head_dim,
      norm_eps=_decimal(get("attention.layer_norm_rms_epsilon")), rope_theta=_decimal(get("rope.freq_base", 10000.0)),
      rope_scaling=_yarn(path, reader, family, get("context_length")), max_positions=get("context_length"),
      tied="output.weight" not in names)


def _decimal(value: float) -> float:
  """The shortest decimal of a stored float32: 1e-05, not 9.999999747378752e-06."""
  return float(str(np.float32(value)))


def _yarn(path, reader, family: str, positions: int) -> rope.Yarn | None:
  kind = field(reader, f"{family}.rope.scaling.type", "none")
  if kind == "none":
    return None
  if kind != "yarn":
    raise UserError(f"{path} uses RoPE scaling {kind!r}; supported are none and yarn")
  factor = field(reader, f"{family}.rope.scaling.factor")
  if factor is None:
    raise UserError(f"{path} uses RoPE scaling 'yarn' but has no field {family}.rope.scaling.factor")
  original = field(reader, f"{family}.rope.scaling.original_context_length", positions)
  return rope.Yarn(original_max_positions=original, factor=_decimal(factor))


def _refuse_unsupported(path, reader, family: str, head_dim: int) -> None:
  """Refuses by name every field that changes what the model computes in a way we do not follow."""
  unsupported = {"attention.sliding_window": 0, "expert_count": 0, "rope.scale_linear": 1.0,
                 "rope.dimension_count": head_dim, "attention.value_length": head_dim}
  for name, wanted in unsupported.items():
    value = field(reader, f"{family}.{name}", wanted)
    if value != wanted:
      raise UserError(f"{path} has {family}.{name} = {value}, which is not supported (wanted {wanted})")
  prefix = f"{family}.rope.scaling."
  for name in reader.fields:
    if name.startswith(prefix) and name.removeprefix(prefix) not in _HARMLESS:
      raise UserError(f"{path} has {name}, which is not supported")


class GGUFSource:
  """The tensors of a GGUF file under their own names."""
  kind = "gguf"

  def __init__(self, path: pathlib.Path, config: ModelConfig):
    self.where = str(path)
    self._config = config
    self._tensors = {tensor.name: tensor for tensor in open_gguf(path).tensors}

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Each tensor's shape, in numpy's order."""
    return {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in self._tensors.items()}

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
