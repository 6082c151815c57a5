"""all-MiniLM-L6-v2 (arXiv 2002.10957, 1908.10084) in JAX: a BERT encoder with mean pooling.

Every size is read from config.json, so any BERT sentence encoder with mean pooling runs. The layers are
stacked and scanned: one layer is compiled, not six.

Letters: B batch, S sequence, D model, F hidden, N heads, H head size, L layers.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import tokenizers
from jax import lax
from jaxtyping import Array, Float, Int

from policylong.devices import elementwise
from policylong.errors import UserError
from policylong.model.vocabulary import check_ids
from policylong.retrieval.buckets import Encoder, encode_in_buckets
from policylong.retrieval.files import checked_sha256, version_of
from policylong.storage.checksums import sha256_of_file

# our name -> (names in the checkpoint, concatenated on the output axis; whether they are matrices [out, in])
_LAYER = {
    "qkv": (("attention.self.query.weight", "attention.self.key.weight", "attention.self.value.weight"), True),
    "qkv_bias": (("attention.self.query.bias", "attention.self.key.bias", "attention.self.value.bias"), False),
    "out": (("attention.output.dense.weight",), True),
    "out_bias": (("attention.output.dense.bias",), False),
    "attention_norm": (("attention.output.LayerNorm.weight",), False),
    "attention_norm_bias": (("attention.output.LayerNorm.bias",), False),
    "up": (("intermediate.dense.weight",), True),
    "up_bias": (("intermediate.dense.bias",), False),
    "down": (("output.dense.weight",), True),
    "down_bias": (("output.dense.bias",), False),
    "mlp_norm": (("output.LayerNorm.weight",), False),
    "mlp_norm_bias": (("output.LayerNorm.bias",), False),
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """The fields of config.json that shape a BERT encoder."""
  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  max_position_embeddings: int
  layer_norm_eps: float


class MiniLM:
  """Embeds texts of up to `max_tokens` tokens, [CLS] and [SEP] included; longer ones are cut.

  Attributes:
    version: hash of everything that changes a vector.
    dim: D, the length of a vector.
  """

  def __init__(self, path: str | os.PathLike, *, sha256: str, max_tokens: int, batch: int,
               dtype: str = "bfloat16"):
    """Reads config.json, tokenizer.json and model.safetensors in the folder `path`.

    Args:
      path: the folder.
      sha256: wanted hash of model.safetensors; "" does not check.
      max_tokens: where a text is cut; the model was trained with 256.
      batch: texts of `max_tokens` tokens that a device embeds at once.
      dtype: of the matmul inputs, bfloat16 or float32; sums, norms and softmax are float32. bfloat16 keeps
        a cosine of 0.9999 with float32 and takes half the time or less.

    Raises:
      UserError: a file is missing, damaged, of another model or hash.
    """
    path = pathlib.Path(path)
    self._config = read_config(path / "config.json")
    if max_tokens > self._config.max_position_embeddings:
      raise UserError(f"retrieval.embedder_max_tokens is {max_tokens}, more than the "
                      f"{self._config.max_position_embeddings} positions of the model in {path}")
    weights = checked_sha256(path / "model.safetensors", sha256)
    self._encode = Encoder(_load_params(path / "model.safetensors", self._config, jnp.dtype(dtype)),
                           functools.partial(encode, config=self._config))
    self._tokenizer = _read_tokenizer(path / "tokenizer.json")
    check_ids(self._tokenizer.get_vocab(), self._config.vocab_size, path)
    self._max_tokens, self._batch = max_tokens, batch
    self.dim = self._config.hidden_size
    self.version = version_of(kind="minilm", weights=weights, tokenizer=sha256_of_file(path / "tokenizer.json"),
                              dim=self.dim, max_tokens=max_tokens, pooling="mean", dtype=dtype)

  def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
    """float32[len(texts), D], each of length 1; a text's vector does not depend on the others."""
    # The tokenizer adds [CLS] and [SEP]; a cut text keeps both.
    ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
    rows = [row if len(row) <= self._max_tokens else row[:self._max_tokens - 1] + row[-1:] for row in ids]
    return encode_in_buckets(
        rows, max_tokens=self._max_tokens, batch=self._batch, pad=0, dim=self.dim,
        encode=self._encode)

  def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
    """The same as `embed_documents`: this model tells queries and documents not apart."""
    return self.embed_documents(texts)


def encode(params: dict, tokens: Int[Array, "B S"], lengths: Int[Array, "B"], *, config: BertConfig
           ) -> Float[Array, "B D"]:
  """Unit vectors: the mean of the last layer over the first `lengths` tokens of each row, normalised."""
  S, eps = tokens.shape[1], config.layer_norm_eps
  visible = jnp.arange(S) < lengths[:, None]
  x = _layer_norm(params["words"][tokens] + params["positions"][:S], params["norm"], params["norm_bias"], eps)

  def layer(x, w):
    x = _layer_norm(x + _attention(x, visible, w, config), w["attention_norm"], w["attention_norm_bias"], eps)
    hidden = jax.nn.gelu(_dense(x, w["up"], w["up_bias"]), approximate=False)
    return _layer_norm(x + _dense(hidden, w["down"], w["down_bias"]), w["mlp_norm"], w["mlp_norm_bias"], eps), None

  x, _ = lax.scan(layer, x, params["layers"])
  mean = jnp.where(visible[..., None], x, 0).sum(axis=1) / lengths[:, None]
  return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def _attention(x: Float[Array, "B S D"], visible: Array, w: dict, config: BertConfig) -> Float[Array, "B S D"]:
  B, S, D = x.shape
  N = config.num_attention_heads
  dtype = w["qkv"].dtype
  # One transpose of all three, sums in float32 (a bfloat16 result makes XLA multiply in float32 here), and a
  # barrier, without which softmax is fused into the second matmul: on two CPU cores at S = 256 these take the
  # encoder from 8.4 to 11.4 thousand tokens a second, timed side by side on a loaded machine.
  qkv = _dense(x, w["qkv"], w["qkv_bias"])
  qkv = elementwise.cast(qkv, dtype)
  q, k, v = qkv.reshape(B, S, 3, N, D // N).transpose(2, 0, 3, 1, 4)
  scores = _product("bnsh,bnth->bnst", q, k) * (D // N) ** -0.5
  shares = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -jnp.inf)).astype(dtype)
  mixed = _product("bnst,bnth->bnsh", lax.optimization_barrier(shares), v)
  return _dense(mixed.swapaxes(1, 2).reshape(B, S, D), w["out"], w["out_bias"])


def _dense(x: Array, matrix: Array, bias: Array) -> Array:
  # elementwise.cast: on CPU XLA's own rounding is a pass of its own; this takes a quarter off the encoder's time.
  return _product("bsd,df->bsf", elementwise.cast(x, matrix.dtype), matrix) + bias


def _product(letters: str, a: Array, b: Array) -> Array:
  """Sums in float32; float32 inputs are not rounded, as accelerators would by default."""
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jnp.einsum(letters, a, b, preferred_element_type=jnp.float32, precision=precision)


def _layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
  centred = x - x.mean(axis=-1, keepdims=True)
  return centred * lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + eps) * scale + bias


def read_config(path: pathlib.Path) -> BertConfig:
  """The config.json of a BERT encoder.

  Raises:
    UserError: it is missing, or of something else.
  """
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
    config = BertConfig(**{name: kind(values[name]) for name, kind in get_type_hints(BertConfig).items()})
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror}): retrieval.embedder_path must be a folder with "
                    "config.json, tokenizer.json and model.safetensors") from error
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(f"{path} is not the config of a BERT encoder ({error!r})") from error
  for name, wanted in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
    if (found := values.get(name, wanted)) != wanted:
      raise UserError(f"{path} has {name} {found!r}, wanted {wanted!r}")
  return config


def _read_tokenizer(path: pathlib.Path) -> tokenizers.Tokenizer:
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the package raises a bare Exception
    raise UserError(f"{path} cannot be read as a tokenizer ({str(error).splitlines()[0]}): fetch it again") from error
  # The file cuts and pads to 128 tokens by itself; both are done here instead.
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


def _load_params(path: pathlib.Path, config: BertConfig, dtype: jnp.dtype) -> dict:
  """Matrices [in, out] in `dtype`, the layers stacked; everything else in float32."""
  D, F = config.hidden_size, config.intermediate_size
  try:
    with safetensors.safe_open(path, "np") as file:
      def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        found = tuple(file.get_slice(name).get_shape())
        if found != shape:
          raise UserError(f"tensor {name} in {path} has shape {list(found)}, wanted {list(shape)}")
        return file.get_tensor(name).astype(np.float32)

      sizes = {"intermediate.dense": F}
      layers = {}
      for ours, (names, matrix) in _LAYER.items():
        stacked = []
        for layer in range(config.num_hidden_layers):
          parts = []
          for name in names:
            out = sizes.get(name.rpartition(".")[0], D)
            inputs = F if name.startswith("output.dense") else D
            part = read(f"encoder.layer.{layer}.{name}", (out, inputs) if matrix else (out,))
            parts.append(part.T if matrix else part)
          stacked.append(np.concatenate(parts, axis=-1))
        layers[ours] = jnp.asarray(np.stack(stacked), dtype if matrix else jnp.float32)
      positions = read("embeddings.position_embeddings.weight", (config.max_position_embeddings, D))
      # One sentence a row, so the token type is 0 everywhere: it is a part of the position.
      kinds = file.get_slice("embeddings.token_type_embeddings.weight")[:1].astype(np.float32)
      return {
          "words": jnp.asarray(read("embeddings.word_embeddings.weight", (config.vocab_size, D))),
          "positions": jnp.asarray(positions + kinds),
          "norm": jnp.asarray(read("embeddings.LayerNorm.weight", (D,))),
          "norm_bias": jnp.asarray(read("embeddings.LayerNorm.bias", (D,))),
          "layers": layers,
      }
  except safetensors.SafetensorError as error:
    raise UserError(f"{path} is truncated, damaged or lacks a tensor ({error}): fetch it again") from error
