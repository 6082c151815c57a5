"""Texts as sequences of word hashes, a batch of documents at a time, all in numpy.

A word is a run of letters and digits, each with its marks (vowel signs, points, accents), after NFKC and case folding.
So punctuation, case and white space never make two texts different, nor do joiners and other characters that only say
how a text is drawn.

In scripts that are written without spaces each letter, with its marks, has a hash of its own and counts as a part of a
word: half of one in Chinese and Japanese, where translators reckon with 1.3 to 1.8 and 2 to 2.5 characters for a word
of English, a third in the scripts of South East Asia, whose words are longer. Sizes of runs are in sixths of a word
(WORD), whole numbers in every script.

Hashes are 64 bits, the same on every machine. N words in all, or such letters, of documents that follow each other.
"""

import dataclasses
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

# The sixths of a word that a word of a script with spaces counts, and a letter of one without.
WORD, _EAST_ASIAN, _SOUTH_EAST_ASIAN = 6, 3, 2
_UNSPACED = (
    # Ideographs with their iteration marks, and kana.
    *((first, last, _EAST_ASIAN) for first, last in (
        (0x3005, 0x3007), (0x303B, 0x303B), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF), (0x1AFF0, 0x1B16F), (0x20000, 0x33FFF))),
    # Thai and Lao, Burmese, Khmer, Tai Le and New Tai Lue, Tai Tham, Balinese, Javanese and Burmese, Tai Viet.
    *((first, last, _SOUTH_EAST_ASIAN) for first, last in (
        (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F),
        (0xA980, 0xA9FF), (0xAA60, 0xAADF))))
# Joiners, soft hyphens, marks of direction, variation selectors.
_LEFT_OUT = ((0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x180B, 0x180F), (0x200C, 0x200F), (0x2060, 0x2064),
             (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xE0000, 0xE0FFF))
_BYTE_BASE = np.uint64(0x9E3779B97F4A7C15)
_WORD_BASE = 0xD6E8FEB86659FD93

# What a character is: of no word (0), a mark, left out, or a letter or digit, and then what a word of it counts.
_MARK, _NOTHING = 1, 7
_KIND = np.zeros(0x110000, np.uint8)
for _code in range(0x34000):  # behind it there are only private characters and some of `_LEFT_OUT`
  _category = unicodedata.category(chr(_code))[0]
  if _category in "LNM":
    _KIND[_code] = _MARK if _category == "M" else WORD
for _first, _last, _size in _UNSPACED:
  _range = _KIND[_first:_last + 1]
  _range[_range == WORD] = _size
for _first, _last in _LEFT_OUT:
  _KIND[_first:_last + 1] = _NOTHING


@dataclasses.dataclass(frozen=True)
class Hashes:
  """hashes: uint64[N]. first: int64[documents + 1], where each document's begin."""
  hashes: np.ndarray
  first: np.ndarray


@dataclasses.dataclass(frozen=True)
class Words(Hashes):
  """hashes, first: of words. sizes: uint8[N], what each counts, in sixths of a word."""
  sizes: np.ndarray

  @property
  def counted(self) -> np.ndarray:
    """int64[N + 1]: what all before each word count, and at last all of them, in sixths of a word."""
    return np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])

  @property
  def spaced(self) -> bool:
    """Whether every one is a whole word."""
    return bool((self.sizes == WORD).all())


def split(text: str) -> list[str]:
  """The words of a text; in scripts without spaces, its letters."""
  letters, starts, _, _ = _letters([text])
  return ["".join(map(chr, letters[start:end])) for start, end in zip(starts, [*starts[1:], len(letters)])]


def hash_words(texts: Sequence[str]) -> Words:
  """The words of each text, hashed."""
  letters, starts, first, sizes = _letters(texts)
  if not len(starts):
    return Words(np.zeros(0, np.uint64), first, sizes)
  lengths = np.diff(starts, append=len(letters))
  within = np.arange(len(letters)) - np.repeat(starts, lengths)
  powers = np.cumprod(np.full(lengths.max(), _BYTE_BASE))
  return Words(mixed(np.add.reduceat(letters * powers[within], starts)), first, sizes)


def _letters(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Of all texts the code points of their words, behind each other; where in them each word starts; of which word on
  each text's words are (int64[documents + 1]); what each word counts.
  """
  folded = [text.lower() if text.isascii() else _folded(text) for text in texts]
  codes = np.frombuffer("\n".join([*folded, ""]).encode("utf-32-le", "surrogatepass"), "<u4")
  kinds = _KIND[codes]
  ends = np.cumsum([len(text) + 1 for text in folded], dtype=np.int64)
  if (kinds == _NOTHING).any():
    kept = kinds != _NOTHING
    codes, kinds, ends = codes[kept], kinds[kept], np.cumsum(kept)[ends - 1]
  of = kinds  # and of a mark what the letter is that it belongs to, 0 if there is none
  letter = kinds > _MARK
  if (kinds == _MARK).any():
    newest = np.maximum.accumulate(np.where(kinds == _MARK, 0, np.arange(len(kinds))))
    of = kinds[newest]
    of[of == _MARK] = 0  # the first characters of all
  start = letter.copy()
  start[1:] &= (of[1:] != WORD) | (of[:-1] != WORD)
  place = np.flatnonzero(of)
  starts = np.flatnonzero(start)
  first = np.concatenate([[0], np.searchsorted(starts, ends)])
  return codes[place], np.searchsorted(place, starts), first, kinds[starts]


def _folded(text: str) -> str:
  folded = unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i")  # of İ, which only keeps its dot
  return unicodedata.normalize("NFKC", folded)  # which casefold may have undone


def mixed(x: np.ndarray) -> np.ndarray:
  """A permutation of the 64-bit numbers whose bits all depend on each other (the last steps of splitmix64)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def shingles(words: Words, length: int) -> Hashes:
  """The hash of the shortest run from each word on, in its document, that counts `length` words or more; of a document
  that counts less, of all its words. They may repeat.
  """
  runs = _Runs(words)
  whole, hashes = runs.of_size(length * WORD)
  begins = np.zeros(len(whole), bool)
  begins[words.first[:-1][np.diff(words.first) > 0]] = True
  hashes[begins & ~whole] = runs.documents()[np.diff(words.first) > 0][~whole[begins]]
  kept = np.flatnonzero(whole | begins)
  return Hashes(mixed(hashes[kept]), np.searchsorted(kept, words.first))


def ngrams(words: Words, sizes: Sequence[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """(size, int64 first words, uint64 hashes) of the shortest run from each word on, in its document, that counts so
  many sixths of a word or more, for each size.
  """
  runs = _Runs(words)
  for size in sizes:
    whole, hashes = runs.of_size(size)
    where = np.flatnonzero(whole)
    yield size, where, mixed(hashes[where] + np.uint64(size))


class _Runs:
  """Hashes of runs of words from any of them to any, by what all before it sum up to (Karp and Rabin, modulo 2^64)."""

  def __init__(self, words: Words):
    count = len(words.hashes)
    self._words, counted = words, words.counted
    self._sums = np.zeros(count + 1, np.uint64)
    np.cumsum(words.hashes * np.cumprod(np.full(count, _WORD_BASE, np.uint64)), out=self._sums[1:])
    self._inverse = np.cumprod(np.full(count, pow(_WORD_BASE, -1, 1 << 64), np.uint64))
    self._before = counted[:-1]
    self._left = np.repeat(counted[words.first[1:]], np.diff(words.first)) - self._before
    # Behind the word in which each sixth lies; None where all words count the same, and no table is needed.
    self._behind = None if words.spaced else np.repeat(np.arange(1, count + 1), words.sizes)

  def of_size(self, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(bool[N] whether so much is left in the document from each word on; uint64[N] where it is, the run's hash)."""
    whole = self._left >= size
    if self._behind is None:
      step = min(-(-size // WORD), len(whole))
      hashes = np.zeros(len(whole), np.uint64)
      hashes[:len(whole) - step + 1] = self._sums[step:] - self._sums[:len(self._sums) - step]
      return whole, hashes * self._inverse
    ends = np.take(self._behind, self._before + (size - 1), mode="clip")
    return whole, (self._sums[ends] - self._sums[:-1]) * self._inverse

  def documents(self) -> np.ndarray:
    """uint64[documents]: each one's hash as a run; of one without words anything."""
    first, last = self._words.first[:-1], self._words.first[1:]
    return (self._sums[last] - self._sums[first]) * np.append(self._inverse, np.uint64(0))[first]
