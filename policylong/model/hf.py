"""Weights in and out: an HF directory (safetensors) or a GGUF file in, an HF directory out.

Import goes weight by weight: one stacked array at a time is on the host beside what is already on the
devices, and one tensor of the checkpoint beside that; the model is never there twice.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from policylong.errors import UserError
from policylong.model import gguf_file, hf_config
from policylong.model.names import NAMES, Tensor, ignored, lookup, our_shape, tensors, to_ours, to_theirs
from policylong.model.qwen import ModelConfig, Params, abstract_params
from policylong.model.vocabulary import write_end_tokens
from policylong.storage.progress import Bar
from policylong.storage.regular import check_regular
from policylong.storage.workdir import new_directory

_INDEX = "model.safetensors.index.json"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_ROWS = 4096  # of a head compared at a time
_BLOCK = 1 << 17  # floats looked at at a time
# transformers reads shards of any size; 5 GB is what it writes
SHARD_BYTES = 5_000_000_000


class Source(Protocol):
  """A checkpoint: named tensors. `kind` is the column of names ("hf" or "gguf"), `where` is for errors."""
  kind: str
  where: str

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Each tensor's shape."""

  def read(self, tensor: Tensor) -> np.ndarray:
    """One tensor."""


def read_model_config(path: str | os.PathLike) -> ModelConfig:
  """What model an HF directory or a GGUF file holds.

  Raises:
    UserError: nothing readable is there, the architecture is unknown, or it uses what is not supported.
  """
  path = pathlib.Path(path)
  check_regular(path)
  if path.is_dir():
    return _with_its_head(path, hf_config.read_config(path))
  return gguf_file.read_config(path)


def load_params(path: str | os.PathLike, config: ModelConfig, dtype: jnp.dtype,
                mesh: jax.sharding.Mesh | None = None, sha256: str = "") -> Params:
  """The weights of an HF directory or a GGUF file as parameters in `dtype`, on `mesh` where one is given.

  `sha256`, if not empty, is checked first: of the GGUF file or of model.safetensors; of several files it is that of
  their bytes one after another, in the order of their names.

  Raises:
    UserError: a file is missing, damaged or has another hash; a tensor is unknown, there twice, missing or of
      the wrong shape; it holds NaN or infinite values; or the mesh does not divide a dimension.
  """
  path = pathlib.Path(path)
  files = weight_files(path)
  if sha256:
    _check_hash(path, files, sha256)
  with ExitStack() as stack:
    source = (SafetensorsSource(path, files, stack, config.tied) if path.is_dir() else
              gguf_file.GGUFSource(path, config))
    wanted = tensors(config, source.kind)
    _check(source, config, wanted)
    return _read(source, config, wanted, abstract_params(config, dtype, mesh))


def _check(source: Source, config: ModelConfig, wanted: list[Tensor]) -> None:
  """Compares names and shapes before anything is read."""
  found = source.shapes()
  expected = {tensor.name: tensor.shape for tensor in wanted}
  for name in found:
    if name not in expected and not ignored(name, config):
      raise UserError(f"tensor {name} in {source.where} fits no weight of this {config.family} model "
                      f"with {config.num_layers} layers")
  for name, shape in expected.items():
    if name not in found:
      raise UserError(f"tensor {name} is missing from {source.where}; a {config.family} model needs it")
    if found[name] != shape:
      raise UserError(f"tensor {name} in {source.where} has shape {list(found[name])}, wanted {list(shape)}")


def _read(source: Source, config: ModelConfig, wanted: list[Tensor], abstract: Params) -> Params:
  """Fills one stacked host array after another and puts each on the devices."""
  params = jax.tree.map(lambda leaf: None, abstract)
  with Bar(total=len(wanted), desc="reading weights", unit="tensor", leave=False,
           disable=True if jax.process_index() else None) as bar:
    for entry in NAMES:
      target = lookup(abstract, entry.path)
      if target is None:
        continue
      host = np.empty(target.shape, target.dtype)
      shape = our_shape(target, entry)
      for tensor in (tensor for tensor in wanted if tensor.entry is entry):
        read = host[... if tensor.layer is None else tensor.layer]
        read[...] = to_ours(entry, source.read(tensor), shape)
        if not all_finite(read):
          raise UserError(f"tensor {tensor.name} in {source.where} holds NaN or infinite values: the file is damaged, "
                          "or its training went wrong")
        bar.update()
      parent = lookup(params, entry.path[:-1])
      parent[entry.path[-1]] = _place(host, target.sharding)
  return params


def all_finite(array: np.ndarray) -> bool:
  """Whether no float of a contiguous array is NaN or infinite, at the speed at which memory is read.

  The bits of such a float are, without the sign, at least those of infinity: two maxima tell, of the bits with the sign
  as a number's sign and as its highest bit. A block at a time, so that the second finds it in a cache.
  """
  bits = array.reshape(-1).view(f"u{array.itemsize}")
  signed = bits.view(f"i{array.itemsize}")
  positive, negative = (np.array(value, array.dtype).view(bits.dtype) for value in (np.inf, -np.inf))
  blocks = (slice(i, i + _BLOCK) for i in range(0, bits.size, _BLOCK))
  return all(signed[block].max() < int(positive) and bits[block].max() < negative for block in blocks)


def _place(host: np.ndarray, sharding) -> jax.Array:
  if sharding is None:
    return jax.device_put(host)  # on CPU without a copy; jnp.asarray makes two
  return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


class SafetensorsSource:
  """The tensors of one or several safetensors files, by the names that a whole model's checkpoint gives them.

  A bare decoder's checkpoint (Qwen3-Embedding) leaves "model." off its names; here they all have it. Where head and
  embedding are tied and only the head was stored, it stands for the embedding too.
  """
  kind = "hf"

  def __init__(self, path: pathlib.Path, files: Sequence[pathlib.Path], stack: ExitStack, tied: bool):
    self.where = str(path)
    self._stored: dict[str, tuple] = {}  # name: (opened file, name there)
    opened = [(file, self._open(file, stack)) for file in files]
    bare = any("embed_tokens.weight" in reader.keys() for _, reader in opened)  # noqa: SIM118 (no mapping)
    for file, reader in opened:
      for stored in reader.keys():  # noqa: SIM118
        name = stored if not bare or stored.startswith("model.") or stored == _HEAD else f"model.{stored}"
        if name in self._stored:
          raise UserError(f"tensor {name} is in {self.where} twice (again in {file.name}); keep one of them")
        self._stored[name] = reader, stored
    if tied and _EMBEDDING not in self._stored and _HEAD in self._stored:
      self._stored[_EMBEDDING] = self._stored[_HEAD]

  @staticmethod
  def _open(file: pathlib.Path, stack: ExitStack):
    try:
      return stack.enter_context(safetensors.safe_open(file, "np"))
    except (safetensors.SafetensorError, OSError) as error:
      raise UserError(f"{file} is missing, truncated or no safetensors file ({error}): fetch it again") from error

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Each tensor's shape."""
    return {name: tuple(self.slice(name).get_shape()) for name in self._stored}

  def slice(self, name: str):
    """A tensor that is not read yet: get_shape(), get_dtype(), and rows by indexing."""
    reader, stored = self._stored[name]
    return reader.get_slice(stored)

  def read(self, tensor: Tensor) -> np.ndarray:
    """One tensor in its stored dtype.

    Raises:
      UserError: it does not hold plain floats (a quantised checkpoint).
    """
    reader, stored = self._stored[tensor.name]
    dtype = reader.get_slice(stored).get_dtype()
    if dtype not in ("F64", "F32", "F16", "BF16"):
      raise UserError(f"tensor {tensor.name} in {self.where} is of type {dtype}, wanted F32, F16 or BF16")
    return reader.get_tensor(stored)


def _with_its_head(path: pathlib.Path, config: ModelConfig) -> ModelConfig:
  """The config, its head untied where the file ties it to the embedding but holds another one.

  transformers (5.23) keeps such a head too. What is wrong with the files is said when they are loaded.
  """
  if not config.tied:
    return config
  try:
    files = _safetensors_files(path)
    state = tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    own = _has_its_own_head(path, state)
  except UserError:
    return config
  return dataclasses.replace(config, tied=False) if own else config


@functools.lru_cache(maxsize=16)
def _has_its_own_head(path: pathlib.Path, state: tuple[tuple[pathlib.Path, int, int], ...]) -> bool:
  """Whether head and embedding are both there and differ; `state` is what tells these files from later ones."""
  with ExitStack() as stack:
    source = SafetensorsSource(path, [file for file, _, _ in state], stack, tied=False)
    shapes = source.shapes()
    if _HEAD not in shapes or _EMBEDDING not in shapes:
      return False
    head, embedding = source.slice(_HEAD), source.slice(_EMBEDDING)
    same = shapes[_HEAD] == shapes[_EMBEDDING] and all(
        np.array_equal(head[i:j], embedding[i:j]) for i, j in _blocks(shapes[_HEAD][0]))
  if not same:
    logging.warning("%s says tie_word_embeddings, but the weights hold another %s: it is kept as the model's head",
                    path / "config.json", _HEAD)
  return not same


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
  return ((i, min(i + _ROWS, rows)) for i in range(0, rows, _ROWS))


def weight_files(path: str | os.PathLike) -> tuple[pathlib.Path, ...]:
  """The files that hold the weights of an HF directory or a GGUF file, in the order of their names.

  Raises:
    UserError: an HF directory has none, or lacks one that its index names; a GGUF model lacks a part.
  """
  path = pathlib.Path(path)
  return tuple(_safetensors_files(path) if path.is_dir() else gguf_file.parts(path))


def _safetensors_files(path: pathlib.Path) -> list[pathlib.Path]:
  """The weight files of an HF directory, in the order of their names; one file before many, as transformers has it."""
  index, single = path / _INDEX, path / "model.safetensors"
  if single.exists():
    if index.exists():
      _say_one_of_two(path)
    return [single]
  if not index.exists():
    raise UserError(f"{path} has neither model.safetensors nor {_INDEX}: give an HF model directory with "
                    "safetensors weights, or a GGUF file")
  try:
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
  except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
    raise UserError(f"{index} cannot be read as an index of weight files ({error!r})") from error
  for name in names:
    if pathlib.PurePath(name).name != name or not (path / name).is_file():
      raise UserError(f"{index} names the weight file {name!r}, which is not in {path}")
  return [path / name for name in names]


@functools.cache
def _say_one_of_two(path: pathlib.Path) -> None:
  logging.warning("%s has both model.safetensors and %s: the former is read, as transformers does it", path, _INDEX)


def _check_hash(path: pathlib.Path, files: Sequence[pathlib.Path], wanted: str) -> None:
  digest = hashlib.sha256()
  for file in files:
    try:
      with open(file, "rb") as reader:
        while block := reader.read(1 << 22):
          digest.update(block)
    except OSError as error:
      raise UserError(f"model file {file} cannot be read ({error.strerror})") from error
  if digest.hexdigest() != wanted.lower():
    raise UserError(f"the weights of {path} have sha256 {digest.hexdigest()}, wanted {wanted} (model.sha256; '' for no "
                    "check): they are not used")


def export_hf(params: Params, config: ModelConfig, tokenizer, directory: str | os.PathLike,
              end_tokens: frozenset[int] | None = None, shard_bytes: int = SHARD_BYTES) -> None:
  """Writes an HF directory that transformers loads: config.json, safetensors in the parameters' dtype, tokenizer.

  `end_tokens` are what ends a generation, in config.json and generation_config.json; None: the tokenizer's own.
  Everything is written to a temporary folder beside `directory`, which is renamed at the end. More than
  `shard_bytes` of weights go into several files with an index.

  Raises:
    UserError: `directory` is there already, or the model has what config.json has no name for.
  """
  values = hf_config.to_dict(config, jnp.dtype(params["embedding"].dtype).name)
  with new_directory(directory) as temporary:
    _write_weights(params, config, temporary, shard_bytes)
    tokenizer.save_pretrained(temporary)
    if end_tokens is None:
      end_tokens = frozenset({tokenizer.eos_token_id} - {None})
    ids = write_end_tokens(end_tokens, tokenizer, temporary)
    (temporary / "config.json").write_text(json.dumps({**values, **ids}, indent=2) + "\n", encoding="utf-8")


def _write_weights(params: Params, config: ModelConfig, directory: pathlib.Path, shard_bytes: int) -> None:
  itemsize = jnp.dtype(params["embedding"].dtype).itemsize
  shards: list[list[Tensor]] = [[]]
  size = 0
  # layer by layer, so that a shard holds whole layers where it can
  for tensor in sorted(tensors(config, "hf"), key=lambda tensor: -1 if tensor.layer is None else tensor.layer):
    bytes_ = int(np.prod(tensor.shape)) * itemsize
    if shards[-1] and size + bytes_ > shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append(tensor)
    size += bytes_
  names = (["model.safetensors"] if len(shards) == 1 else
           [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))])
  for name, shard in zip(names, shards):
    safetensors.numpy.save_file({tensor.name: _fetch(params, tensor) for tensor in shard}, directory / name,
                                metadata={"format": "pt"})  # transformers insists on a format
    (directory / name).chmod(0o644)  # safetensors writes for the owner alone
  if len(shards) > 1:
    weight_map = {tensor.name: name for name, shard in zip(names, shards) for tensor in shard}
    total = sum(int(np.prod(tensor.shape)) * itemsize for shard in shards for tensor in shard)
    (directory / _INDEX).write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")


def _fetch(params: Params, tensor: Tensor) -> np.ndarray:
  """One tensor of the export, on the host."""
  stacked = lookup(params, tensor.entry.path)
  return to_theirs(tensor.entry, np.asarray(stacked if tensor.layer is None else stacked[tensor.layer]))
