"""MinHash (Broder 1997) by bands (Leskovec, Rajaraman, Ullman, ch. 3): which documents may be near-duplicates.

Two documents whose sets of shingles have Jaccard similarity s agree in one of BANDS bands of ROWS hashes with
probability 1 - (1 - s^ROWS)^BANDS: 0.9997 at s = 0.7, 0.984 at 0.6, 0.86 at 0.5. What agrees is compared exactly
afterwards, so the bands only decide how much is found, never that something is removed.

The hashes are (a h + b) mod 2^32 of 32 bits of a shingle's hash, which a core multiplies eight at a time. 120 of them
for a document of 150 words took 4 us in one run on a shared core, and its words and shingles 45; datasketch 2.0 took
206 us, rensa 0.5 (Rust) 4 us and 54 for the strings that it wants.
"""

import numpy as np

from policylong.prepare.words import Hashes, mixed

SHINGLE = 5  # words, as FineWeb has it; letters of scripts without spaces count as words.py says
BANDS, ROWS = 30, 4

_constants = mixed(np.arange(1, 2 * BANDS * ROWS + 1, dtype=np.uint64))
_FACTORS = (_constants[:BANDS * ROWS] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
_TERMS = (_constants[BANDS * ROWS:] >> np.uint64(32)).astype(np.uint32)
_ROW_BASE = np.uint64(0x2545F4914F6CDD1D)


def signatures(shingles: Hashes) -> np.ndarray:
  """uint32[BANDS * ROWS, documents]; equal values of two documents have the share of their Jaccard similarity.

  A document without a shingle has the highest number everywhere.
  """
  result = np.full((BANDS * ROWS, len(shingles.first) - 1), np.iinfo(np.uint32).max, np.uint32)
  filled = np.flatnonzero(np.diff(shingles.first))
  if len(filled):
    short = (shingles.hashes >> np.uint64(32)).astype(np.uint32)
    starts, row = shingles.first[filled], np.empty_like(short)
    for i, (factor, term) in enumerate(zip(_FACTORS, _TERMS)):
      np.multiply(short, factor, out=row)
      np.add(row, term, out=row)
      result[i, filled] = np.minimum.reduceat(row, starts)
  return result


def bands(signature: np.ndarray) -> np.ndarray:
  """uint64[BANDS, documents]: one hash of each band's rows."""
  rows = signature.reshape(BANDS, ROWS, -1).astype(np.uint64)
  found = np.zeros((BANDS, rows.shape[-1]), np.uint64)
  for i in range(ROWS):
    found = mixed(found * _ROW_BASE + rows[:, i] + np.uint64(1))
  return found


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
  """Of two sets of hashes, each sorted and without repetition."""
  both = len(np.intersect1d(one, other, assume_unique=True))
  return both / (len(one) + len(other) - both)
