"""Texts as sequences of word hashes, a batch of documents at a time, all in numpy.

A word is a run of letters and digits after NFKC and case folding; in scripts that are written without spaces each
letter is one. So punctuation, case and white space never make two texts different. Hashes are 64 bits, the same on
every machine. N words in all, of documents that follow each other.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

# Thai and Lao, Burmese, Khmer, kana, ideographs.
_UNSPACED = ("\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
             "\U00020000-\U0003ffff")
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")
# A byte of a word as it counts, 0 between words. What is not ASCII comes from `_WORD` and is part of a word.
_LETTER = np.zeros(256, np.uint8)
for _byte in range(256):
  if _byte >= 0x80 or chr(_byte).isalnum():
    _LETTER[_byte] = ord(chr(_byte).lower()) if _byte < 0x80 else _byte
_BYTE_BASE = np.uint64(0x9E3779B97F4A7C15)
_WORD_BASE = np.uint64(0xD6E8FEB86659FD93)


@dataclasses.dataclass(frozen=True)
class Words:
  """hashes: uint64[N]. first: int64[documents + 1], where each document's words begin."""
  hashes: np.ndarray
  first: np.ndarray

  @property
  def left(self) -> np.ndarray:
    """int64[N]: how many words of its document there are from each word on, itself included."""
    return np.repeat(self.first[1:], np.diff(self.first)) - np.arange(len(self.hashes))


def split(text: str) -> list[str]:
  """The words of a text."""
  return _WORD.findall(text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold())


def hash_words(texts: Sequence[str]) -> Words:
  """The words of each text, hashed."""
  parts = [(text if text.isascii() else " ".join(split(text))).encode() for text in texts]
  data = _LETTER[np.frombuffer(b"\n".join(parts) + b"\n", np.uint8)]
  ends = np.cumsum([len(part) + 1 for part in parts])
  place = np.flatnonzero(data)
  if not len(place):
    return Words(np.zeros(0, np.uint64), np.zeros(len(parts) + 1, np.int64))
  starts = np.flatnonzero(np.diff(place, prepend=-2) != 1)
  lengths = np.diff(starts, append=len(place))
  within = np.arange(len(place)) - np.repeat(starts, lengths)
  powers = np.cumprod(np.full(lengths.max(), _BYTE_BASE))
  hashes = mixed(np.add.reduceat(data[place] * powers[within], starts))
  return Words(hashes, np.concatenate([[0], np.searchsorted(place[starts], ends)]))


def mixed(x: np.ndarray) -> np.ndarray:
  """A permutation of the 64-bit numbers whose bits all depend on each other (the last steps of splitmix64)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def shingles(words: Words, length: int) -> Words:
  """The hash of every `length` words of a document in a row; of a shorter one, of all its words. They may repeat."""
  left = words.left
  padded = np.concatenate([words.hashes, np.zeros(length, np.uint64)])
  found = np.zeros(len(left), np.uint64)
  for i in range(length):
    found = found * _WORD_BASE + np.where(left > i, padded[i:i + len(left)], np.uint64(0))
  begins = np.zeros(len(left), bool)
  begins[words.first[:-1][np.diff(words.first) > 0]] = True
  kept = (left >= length) | begins
  return Words(mixed(found[kept]), np.concatenate([[0], np.cumsum(kept)])[words.first])


def ngrams(words: Words, lengths: Sequence[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """(length, int64 first words, uint64 hashes) of all runs of so many words of a document, from short to long."""
  left = words.left
  padded = np.concatenate([words.hashes, np.zeros(max(lengths), np.uint64)])
  found = np.zeros(len(left), np.uint64)
  for i in range(max(lengths)):
    found = found * _WORD_BASE + padded[i:i + len(left)]
    if i + 1 in lengths:
      where = np.flatnonzero(left > i)
      yield i + 1, where, mixed(found[where] + np.uint64(i))
