"""What an embedder is, and the one that a config names."""

import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from policylong import config as config_lib
from policylong.errors import UserError
from policylong.model import hf
from policylong.retrieval import minilm, qwen_embedder
from policylong.retrieval.hashed import DIM as HASHED_DIM
from policylong.retrieval.hashed import HashedNgrams
from policylong.retrieval.minilm import MiniLM
from policylong.retrieval.qwen_embedder import QwenEmbedder
from policylong.storage.regular import check_regular


class Embedder(Protocol):
  """Texts to vectors of length 1, whose dot product is their cosine.

  A text's vector does not depend, in any bit, on the other texts of the call.

  Attributes:
    version: hash of everything that changes a vector but the machine and the batch size, which change its
      last bits alone.
    dim: D, the length of a vector.
  """
  version: str
  dim: int

  def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
    """float32[len(texts), D] of texts that are searched."""

  def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
    """float32[len(texts), D] of texts that are searched for."""


def make_embedder(config: config_lib.Retrieval) -> Embedder:
  """The embedder of a config, with its weights loaded.

  Raises:
    UserError: its files are missing, damaged, of another model or hash.
  """
  if config.embedder == "hashed":
    return HashedNgrams(embedder_dim(config))
  check_regular(config.embedder_path)
  settings: dict[str, Any] = {"sha256": config.embedder_sha256, "max_tokens": config.embedder_max_tokens,
              "batch": config.embedder_batch}
  if config.embedder == "qwen3":
    return QwenEmbedder(config.embedder_path, instruction=config.query_instruction, dim=config.dim, **settings)
  return MiniLM(config.embedder_path, **settings)


def embedder_dim(config: config_lib.Retrieval) -> int:
  """D of the config's embedder; of its files the config alone is read.

  Raises:
    UserError: that is missing or damaged, or `retrieval.dim` is none that the model has.
  """
  if config.embedder == "minilm":
    return minilm.read_config(pathlib.Path(config.embedder_path) / "config.json").hidden_size
  if config.embedder == "qwen3":
    path = pathlib.Path(config.embedder_path)
    return qwen_embedder.checked_dim(config.dim, hf.read_model_config(path).embed_dim, path)
  if (dim := config.dim or HASHED_DIM) > HASHED_DIM:
    raise UserError(f"retrieval.dim is {dim}, and the vectors of retrieval.embedder 'hashed' have {HASHED_DIM} "
                    "numbers: choose a smaller number, or None for all")
  return dim
