"""Hashed n-grams of words and characters: an embedder of no weights, for hermetic tests and smoke runs.

The hashing trick (Weinberger et al., ICML 2009): a feature adds +-1 to one of `dim` places, both chosen by
a stable hash; counts are damped by a logarithm and the vector is scaled to length 1. It finds shared words
and spellings, not meanings.
"""

import collections
import itertools
import re
import zlib
from collections.abc import Sequence

import numpy as np

from policylong.retrieval.files import version_of

# Places to hash into, unless a config wants fewer.
DIM = 512
_WORD = re.compile(r"\w+")
# Character n-grams of a word catch its other forms; they weigh less than the word itself.
_CHARACTERS = 4
_CHARACTER_WEIGHT = 0.25


class HashedNgrams:
  """Embeds by words, pairs of neighbouring words and character 4-grams.

  Attributes:
    version: hash of everything that changes a vector.
    dim: the length of a vector.
  """

  def __init__(self, dim: int = DIM):
    """`dim` places to hash into."""
    self.dim = dim
    self.version = version_of(kind="hashed", dim=dim, characters=_CHARACTERS, weight=_CHARACTER_WEIGHT)

  def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
    """float32[len(texts), dim], each of length 1; a text without a word is the first unit vector."""
    return np.stack([self._embed(text) for text in texts]) if texts else np.zeros((0, self.dim), np.float32)

  def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
    """The same as `embed_documents`."""
    return self.embed_documents(texts)

  def _embed(self, text: str) -> np.ndarray:
    vector = np.zeros(self.dim, np.float64)
    for feature, count in _features(text).items():
      # zlib.crc32 is the same everywhere; Python's own hash of a string changes with each process.
      code = zlib.crc32(feature.encode())
      weight = _CHARACTER_WEIGHT if feature[0] == "#" else 1.0
      vector[(code >> 1) % self.dim] += (1 if code & 1 else -1) * weight * (1 + np.log(count))
    length = float(np.linalg.norm(vector))
    if not length:
      vector[0] = length = 1.0
    return (vector / length).astype(np.float32)


def _features(text: str) -> collections.Counter[str]:
  words = _WORD.findall(text.lower())
  features = collections.Counter("." + word for word in words)
  features.update(f".{a} {b}" for a, b in itertools.pairwise(words))
  for word in words:
    spelled = f"<{word}>"
    features.update("#" + spelled[i:i + _CHARACTERS] for i in range(len(spelled) - _CHARACTERS + 1))
  return features
