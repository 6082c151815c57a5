"""Chunks as the policy reads them: text plus separator, tokenised, cut to a length."""

import threading
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from policylong.corpus.store import Corpus

# Chunks whose tokens are kept: 256 MB of 512 tokens each.
_KEPT = 1 << 17


class ChunkTokens:
  """Tokens of a chunk, the same in verification and in training sequences; safe to call from several threads.

  Args:
    corpus: holds the texts.
    tokenizer: the policy's.
    separator: text between a chunk and what follows it; its tokens belong to the chunk.
    most: a longer chunk is cut to so many tokens.
  """

  def __init__(self, corpus: Corpus, tokenizer, separator: str, most: int):
    self._corpus, self._tokenizer, self._separator, self._most = corpus, tokenizer, separator, most
    self.separator = np.asarray(tokenizer(separator, add_special_tokens=False).input_ids, np.int32)
    self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
    self._lock = threading.Lock()

  def prepare(self, chunk_ids: Iterable[str]) -> None:
    """Tokenises chunks that will be asked for, all at once: a tokenizer spreads many texts over all cores."""
    self.prepare_rows(map(self._corpus.chunk_row, chunk_ids))

  def prepare_rows(self, rows: Iterable[int]) -> None:
    """The same of rows of the corpus."""
    with self._lock:
      missing = [row for row in dict.fromkeys(rows) if row not in self._kept]
    for start in range(0, len(missing), _KEPT // 4):
      self._tokenise(missing[start:start + _KEPT // 4])

  def row(self, row: int) -> np.ndarray:
    """int32[at most `most`] of a row of the corpus."""
    with self._lock:
      if (tokens := self._kept.get(row)) is not None:
        self._kept.move_to_end(row)
        return tokens
    return self._tokenise([row])[0]

  def __call__(self, chunk_id: str) -> np.ndarray:
    """int32[at most `most`] of the chunk with this id."""
    return self.row(self._corpus.chunk_row(chunk_id))

  def _tokenise(self, rows: list[int]) -> list[np.ndarray]:
    texts = [self._corpus.chunk_text(row) + self._separator for row in rows]
    found = [np.asarray(ids[:self._most], np.int32)
             for ids in self._tokenizer(texts, add_special_tokens=False).input_ids]
    for tokens in found:
      tokens.setflags(write=False)
    with self._lock:
      self._kept.update(zip(rows, found))
      while len(self._kept) > _KEPT:
        self._kept.popitem(last=False)
    return found
