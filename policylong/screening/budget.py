"""Which rows a round scores when it may not score all of them, and what share of the positives that finds.

A row is a chunk in front of a root. Rows that promise most for their tokens come first (`promise`). A shard of roots
takes those that are worth their price: the tokens that they score, for each token that they are expected to fill of
the round's sequences, may not exceed a rate; what the round has spent and filled so far sets the rate of the shards
that come next.

Of some roots, the probe, every row is scored. What the rule would have chosen there says without bias what share of
all positives the budget found.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from policylong.synthesis.filling import Filling
from policylong.synthesis.pieces import due


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of a shard's roots, arrays of n of them but for `root_tokens` and `fixed`, which are of the roots.

  root: which root, in order. tokens: that the row scores. chunk_tokens: of its chunk. promise: its chance to pass.
  paid: whether it is scored whatever is chosen, as of the probe.
  root_tokens: of each root. fixed: tokens that are scored of each root whatever is chosen, those of paid rows included.
  """
  root: np.ndarray
  tokens: np.ndarray
  chunk_tokens: np.ndarray
  promise: np.ndarray
  paid: np.ndarray
  root_tokens: np.ndarray
  fixed: np.ndarray


def is_probe(number: int, share: float) -> bool:
  """Whether the round's `number`-th document, from 0, is of the probe; the first one is, the others spread evenly."""
  return share > 0 and (number == 0 or due(number - 1, share))


def choose(rows: Rows, rate: float, filling: Filling) -> np.ndarray:
  """bool[n]: the most promising rows, as many as are worth `rate` tokens scored for each token that they fill.

  That is as many as make rate * (tokens expected to be filled) - (tokens scored) largest. Where that is negative,
  since no choice pays what is fixed: the choice with the least scored for each token expected.
  """
  if not len(rows.tokens):
    return np.zeros(0, bool)
  gives = rows.promise * rows.chunk_tokens
  order = np.argsort(-gives / rows.tokens, kind="stable")
  none, positives = _of_roots(rows, rows.paid)
  scored = float(rows.fixed.sum())
  expected = sum(_expected(filling, *root) for root in zip(rows.root_tokens, positives, none))
  best, cheapest = (0.0, 0), (math.inf, 0)
  for place, row in enumerate(order, start=1):
    root = rows.root[row]
    if not rows.paid[row]:
      expected -= _expected(filling, rows.root_tokens[root], positives[root], none[root])
      none[root] *= 1 - rows.promise[row]
      positives[root] += gives[row]
      expected += _expected(filling, rows.root_tokens[root], positives[root], none[root])
      scored += rows.tokens[row]
    best = max(best, (rate * expected - scored, place))
    cheapest = min(cheapest, (scored / max(expected, 1e-9), place))
  chosen = np.zeros(len(rows.tokens), bool)
  chosen[order[:best[1] or cheapest[1]]] = True
  return chosen


def _of_roots(rows: Rows, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of each root the chance that none of its rows passes, and the tokens of positives that are expected."""
  none, positives = np.ones(len(rows.root_tokens)), np.zeros(len(rows.root_tokens))
  np.multiply.at(none, rows.root[taken], 1 - rows.promise[taken])
  np.add.at(positives, rows.root[taken], (rows.promise * rows.chunk_tokens)[taken])
  return none, positives


def _expected(filling: Filling, root: int, positives: float, none: float) -> float:
  """Tokens of the round's sequences that a root is expected to fill."""
  some = 1 - none
  return some * filling.block(root, [positives / some]) if some > 1e-12 else 0.0


def found_share(found: Sequence[int], there: Sequence[int], confidence: float = 0.95) -> tuple[float, float, float]:
  """(share, low, high): what share of the positives a rule finds, from roots where all are known.

  Args:
    found: positives that the rule finds, of each root of the probe.
    there: all positives of the same roots.
    confidence: of the interval, which is Clopper and Pearson's. Positives of one root are not independent: it takes
      them as one draw, so that n roots with the same number of positives are n draws.
  """
  counts = np.asarray(there, np.float64)
  total, hits = counts.sum(), float(np.sum(found))
  if not total:
    return math.nan, 0.0, 1.0
  draws = total**2 / np.sum(counts**2)
  share, tail = hits / total, (1 - confidence) / 2
  low = stats.beta.ppf(tail, share * draws, (1 - share) * draws + 1) if share > 0 else 0.0
  high = stats.beta.ppf(1 - tail, share * draws + 1, (1 - share) * draws) if share < 1 else 1.0
  return share, float(low), float(high)
