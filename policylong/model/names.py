"""One table: what a weight is called, and how it lies, in our parameters, in HF checkpoints and in GGUF.

A layout spells dimensions as letters (see `qwen.py`); a comma ends a dimension of the checkpoint's array, so
"nh,d" is a matrix of N*H rows and D columns. The table serves import and export.
"""

import dataclasses
import math
import re

import numpy as np

from policylong.model.qwen import ModelConfig, Weight, declare


@dataclasses.dataclass(frozen=True)
class Name:
  """A weight's path in our parameters, its names ({} is the layer), its layout there and its layout here."""
  path: tuple[str, ...]
  hf: str
  gguf: str
  theirs: str
  ours: str


_WHOLE = (
    (("embedding",), "model.embed_tokens.weight", "token_embd.weight", "v,d", "vd"),
    (("final_norm",), "model.norm.weight", "output_norm.weight", "d", "d"),
    (("head",), "lm_head.weight", "output.weight", "v,d", "vd"),
)
_OF_A_LAYER = (
    ("attention_norm", "input_layernorm.weight", "attn_norm.weight", "d", "d"),
    ("q", "self_attn.q_proj.weight", "attn_q.weight", "nh,d", "dnh"),
    ("k", "self_attn.k_proj.weight", "attn_k.weight", "kh,d", "dkh"),
    ("v", "self_attn.v_proj.weight", "attn_v.weight", "kh,d", "dkh"),
    ("q_bias", "self_attn.q_proj.bias", "attn_q.bias", "nh", "nh"),
    ("k_bias", "self_attn.k_proj.bias", "attn_k.bias", "kh", "kh"),
    ("v_bias", "self_attn.v_proj.bias", "attn_v.bias", "kh", "kh"),
    ("q_norm", "self_attn.q_norm.weight", "attn_q_norm.weight", "h", "h"),
    ("k_norm", "self_attn.k_norm.weight", "attn_k_norm.weight", "h", "h"),
    ("out", "self_attn.o_proj.weight", "attn_output.weight", "d,nh", "nhd"),
    ("mlp_norm", "post_attention_layernorm.weight", "ffn_norm.weight", "d", "d"),
    ("gate", "mlp.gate_proj.weight", "ffn_gate.weight", "f,d", "df"),
    ("up", "mlp.up_proj.weight", "ffn_up.weight", "f,d", "df"),
    ("down", "mlp.down_proj.weight", "ffn_down.weight", "d,f", "fd"),
)
NAMES = (*(Name(*row) for row in _WHOLE),
         *(Name(("layers", path), f"model.layers.{{}}.{hf}", f"blk.{{}}.{gguf}", theirs, ours)
           for path, hf, gguf, theirs, ours in _OF_A_LAYER))

# Tensors that a checkpoint may hold and that nothing is read from: tables of RoPE's frequencies, which
# older checkpoints stored and which follow from the config.
_IGNORED = re.compile(r"(model\.layers\.\d+\.self_attn|model)\.rotary_emb\.inv_freq")
_HEADS = tuple(name for entry in NAMES if entry.path == ("head",) for name in (entry.hf, entry.gguf))


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a checkpoint and where it goes: `layer` is None for weights outside of the layers."""
  name: str
  entry: Name
  layer: int | None
  shape: tuple[int, ...]


def tensors(config: ModelConfig, kind: str) -> list[Tensor]:
  """Every tensor that a checkpoint of this model must hold, with its shape there; kind is "hf" or "gguf"."""
  weights = declare(config)
  found = []
  for entry in NAMES:
    weight = lookup(weights, entry.path)
    if weight is None:
      continue
    stacked = entry.path[0] == "layers"
    shape = their_shape(entry, weight.shape[1:] if stacked else weight.shape)
    for layer in range(config.num_layers) if stacked else (None,):
      found.append(Tensor(getattr(entry, kind).format(layer), entry, layer, shape))
  return found


def ignored(name: str, config: ModelConfig) -> bool:
  """Whether a tensor outside of the table is left aside on purpose.

  Beside RoPE's tables that is a head where the config does without one: a copy of the embedding, or not asked for.
  """
  return _IGNORED.fullmatch(name) is not None or (config.tied and name in _HEADS)


def lookup(tree: dict, path: tuple[str, ...]):
  """The leaf at `path` of a nested dict, or None."""
  for key in path:
    if key not in tree:
      return None
    tree = tree[key]
  return tree


def their_shape(entry: Name, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The checkpoint's shape of a weight whose (unstacked) shape is `shape` here."""
  sizes = dict(zip(entry.ours, shape))
  return tuple(math.prod(sizes[letter] for letter in group) for group in entry.theirs.split(","))


def to_ours(entry: Name, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """A checkpoint's array as a view in our layout, of our (unstacked) shape."""
  sizes, letters = dict(zip(entry.ours, shape)), entry.theirs.replace(",", "")
  return array.reshape([sizes[letter] for letter in letters]).transpose([letters.index(l) for l in entry.ours])


def to_theirs(entry: Name, array: np.ndarray) -> np.ndarray:
  """Our (unstacked) array in the checkpoint's layout, contiguous."""
  letters = entry.theirs.replace(",", "")
  turned = array.transpose([entry.ours.index(letter) for letter in letters])
  return np.ascontiguousarray(turned).reshape(their_shape(entry, array.shape))


def our_shape(weight: Weight, entry: Name) -> tuple[int, ...]:
  """A weight's shape without the leading axis of layers."""
  return weight.shape[1:] if entry.path[0] == "layers" else weight.shape
