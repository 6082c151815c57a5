"""BM25 (Robertson and Zaragoza, 2009), in memory: words in common, the rare ones first, long texts held back."""

import collections
import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from policylong.retrieval.index import nothing

_WORD = re.compile(r"\w+")
# How soon more of the same word stops to count, and how much a text's length is held against it: the usual values.
_K1, _B = 1.2, 0.75
# Queries scored at once: against a million texts 64 are 256 MB.
_QUERIES = 64


class Bm25:
  """Texts to be searched by texts.

  Attributes:
    num_rows: how many texts there are.
  """

  def __init__(self, texts: Sequence[str]):
    """Indexes the texts; a word is a run of letters and digits, without case."""
    self.num_rows = len(texts)
    self._vocabulary: dict[str, int] = {}
    places, words, counts = [], [], []
    for place, text in enumerate(texts):
      for word, count in collections.Counter(_words(text)).items():
        places.append(place)
        words.append(self._vocabulary.setdefault(word, len(self._vocabulary)))
        counts.append(count)
    shape = self.num_rows, max(1, len(self._vocabulary))
    frequency = sparse.csr_array((np.asarray(counts, np.float64), (places, words)), shape=shape)
    length = np.asarray(frequency.sum(axis=1)).reshape(-1)
    containing = np.bincount(np.asarray(words, np.int64), minlength=shape[1])
    rarity = np.log1p((self.num_rows - containing + 0.5) / (containing + 0.5))
    held_back = _K1 * (1 - _B + _B * length / max(length.mean(), 1e-9) if len(length) else length)
    found = frequency.tocoo()
    weight = rarity[found.col] * found.data * (_K1 + 1) / (found.data + held_back[found.row])
    self._weights = sparse.csr_array((weight, (found.row, found.col)), shape=shape)

  def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best texts of each query, best first, of equal scores the lower row first.

    A word that a query has n times counts n times. Texts without a word of the query are no hits.

    Returns:
      rows int32[n, k] and scores float32[n, k]; where there is no hit, row -1 and score -inf.
    """
    rows, scores = nothing(len(queries), k)
    for start in range(0, len(queries), _QUERIES):
      part = self._counts(queries[start:start + _QUERIES])
      for number, values in enumerate((part @ self._weights.T).toarray(), start=start):
        best = np.argsort(-values, kind="stable")[:k]
        best = best[values[best] > 0]
        rows[number, :len(best)], scores[number, :len(best)] = best, values[best]
    return rows, scores

  def _counts(self, queries: Sequence[str]) -> sparse.csr_array:
    entries = [(place, self._vocabulary[word], count) for place, query in enumerate(queries)
               for word, count in collections.Counter(_words(query)).items() if word in self._vocabulary]
    places, words, counts = zip(*entries) if entries else ((), (), ())
    return sparse.csr_array((np.asarray(counts, np.float64), (np.asarray(places, np.int64), np.asarray(
        words, np.int64))), shape=(len(queries), self._weights.shape[1]))


def _words(text: str) -> list[str]:
  return _WORD.findall(text.lower())
