"""Qwen3-Embedding (arXiv 2506.05176): a decoder that reads a text and an end token, whose state is the vector.

The decoder, its weights and its tokenizer are the policy's own code (`policylong.model`). Queries carry an
instruction, documents none. Attention is causal, so padding behind the end token changes nothing.

The models of the series are trained so that the first numbers of a vector are a vector themselves (Matryoshka, arXiv
2205.13147): from 32 up to all of them, says their card. No file of a checkpoint says it, so who names a dimension for
another model of this kind vouches for its training.

Letters: B batch, S sequence, D the vector's numbers that are kept.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from policylong.errors import UserError
from policylong.model import hf
from policylong.model.qwen import ModelConfig, hidden_states
from policylong.model.tokenizer import load_tokenizer
from policylong.model.vocabulary import check_ids
from policylong.retrieval.buckets import Encoder, encode_in_buckets
from policylong.retrieval.files import total_sha256, version_of

# What Qwen3-Embedding's tokenizer ends a text with, and what its vector is read from.
END = "<|endoftext|>"
# The fewest numbers of a vector that the series is trained for.
LEAST_DIM = 32


class QwenEmbedder:
  """Embeds texts of up to `max_tokens` tokens, the end token included; longer ones are cut.

  Attributes:
    version: hash of everything that changes a vector.
    dim: D, the numbers of a vector.
  """

  def __init__(self, path: str | os.PathLike, *, sha256: str, max_tokens: int, batch: int, instruction: str,
               dim: int | None, dtype: str = "bfloat16"):
    """Reads a Qwen3-Embedding directory (or a GGUF file).

    Args:
      path: the directory.
      sha256: wanted hash of its weights, as `hf.load_params` counts it; "" does not check.
      max_tokens: where a text is cut.
      batch: texts of `max_tokens` tokens that a device embeds at once.
      instruction: one sentence that says what a query asks for; "" leaves queries as they are.
      dim: how many numbers of the model's vector are kept, scaled to length 1 again; None: all.
      dtype: of weights and matmul inputs, bfloat16 or float32.

    Raises:
      UserError: a file is missing, damaged, of another model or hash, the tokenizer has no end token, or the model's
        vector has fewer numbers than `dim`, or `dim` is less than the series is trained for.
    """
    path = pathlib.Path(path)
    # Nothing here reads the head, and the bare decoders of the larger ones are stored without it.
    self._config = dataclasses.replace(hf.read_model_config(path), tied=True)
    if max_tokens > self._config.max_positions:
      raise UserError(f"retrieval.embedder_max_tokens is {max_tokens}, more than the {self._config.max_positions} "
                      f"positions of the model in {path}")
    self.dim = checked_dim(dim, self._config.embed_dim, path)
    self._tokenizer = load_tokenizer(path)
    check_ids(self._tokenizer.get_vocab(), self._config.vocab_size, path)
    self._end = self._tokenizer.get_vocab().get(END)
    if self._end is None:
      raise UserError(f"the tokenizer in {path} has no token {END}, wanted that of a Qwen3-Embedding model")
    self._encode = Encoder(hf.load_params(path, self._config, jnp.dtype(dtype), sha256=sha256),
                           functools.partial(encode, config=self._config, dim=self.dim))
    self._max_tokens, self._batch, self._instruction = max_tokens, batch, instruction
    files = sorted([*path.glob("*.safetensors"), *path.glob("*.json")]) if path.is_dir() else [path]
    self.version = version_of(kind="qwen3", files=total_sha256(files), dim=self.dim, max_tokens=max_tokens,
                              pooling="last", instruction=instruction, dtype=dtype)

  def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
    """float32[len(texts), D], each of length 1; a text's vector does not depend on the others."""
    ids = self._tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []
    return encode_in_buckets(
        [[*row[:self._max_tokens - 1], self._end] for row in ids], max_tokens=self._max_tokens, batch=self._batch,
        pad=self._end, dim=self.dim,
        encode=self._encode)

  def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
    """float32[len(texts), D] of the texts behind the instruction."""
    if self._instruction:
      texts = [f"Instruct: {self._instruction}\nQuery:{text}" for text in texts]
    return self.embed_documents(texts)


def checked_dim(dim: int | None, of_model: int, path: str | os.PathLike) -> int:
  """How many numbers of the model's vector are kept.

  Raises:
    UserError: more than it has, or fewer than the series is trained for.
  """
  if dim is not None and not LEAST_DIM <= dim <= of_model:
    raise UserError(f"retrieval.dim is {dim}; the vectors of the model in {path} have {of_model} numbers, of which "
                    f"{LEAST_DIM} or more may be kept: choose a number between them, or None for all")
  return of_model if dim is None else dim


def encode(params: dict, tokens: Int[Array, "B S"], lengths: Int[Array, "B"], *, config: ModelConfig, dim: int
           ) -> Float[Array, "B D"]:
  """Unit vectors: the first D = `dim` numbers of the state of the last of the first `lengths` tokens of each row."""
  hidden = hidden_states(params, config, tokens, compute_dtype=params["embedding"].dtype)
  last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0, :dim].astype(jnp.float32)
  return last / jnp.linalg.norm(last, axis=-1, keepdims=True)
