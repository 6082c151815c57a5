"""Chunks as the policy reads them: text plus separator, tokenised, cut to a length."""

import functools

import numpy as np

from policylong.corpus.store import Corpus


class ChunkTokens:
  """Tokens of a chunk, the same in verification and in training sequences.

  Args:
    corpus: holds the texts.
    tokenizer: the policy's.
    separator: text between a chunk and what follows it; its tokens belong to the chunk.
    most: a longer chunk is cut to so many tokens.
  """

  def __init__(self, corpus: Corpus, tokenizer, separator: str, most: int):
    self._corpus, self._tokenizer, self._separator, self._most = corpus, tokenizer, separator, most
    self.separator = np.asarray(tokenizer(separator, add_special_tokens=False).input_ids, np.int32)
    self.row = functools.lru_cache(maxsize=1 << 14)(self._row)

  def _row(self, row: int) -> np.ndarray:
    text = self._corpus.chunk_text(row) + self._separator
    ids = self._tokenizer(text, add_special_tokens=False).input_ids
    tokens = np.asarray(ids[:self._most], np.int32)
    tokens.setflags(write=False)
    return tokens

  def __call__(self, chunk_id: str) -> np.ndarray:
    """int32[at most `most`] of the chunk with this id."""
    return self.row(self._corpus.chunk_row(chunk_id))
