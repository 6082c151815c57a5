"""Does a chunk in front of the root really lower the entropy at its anchors?

The unit is a pair (chunk, root), never (chunk, anchor): one pass of [chunk ; root] reads all anchors of
the root, so a root's candidates are scored against all its anchors for the price of the diagonal. The
entropy before comes from the same program as the entropy after: the root alone is one more row of every
bucket that its pairs fall into, on the same window of the root.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from policylong.screening.scorer import Row, Scorer


@dataclasses.dataclass(frozen=True)
class Pair:
  """A chunk to be put in front of a root.

  root: int32[T] tokens; root_key tells roots apart; positions: int32[<= A] anchors in the root, at least
  one; chunk: int32[C] tokens.
  """
  root_key: str
  root: np.ndarray
  positions: np.ndarray
  chunk: np.ndarray

  @property
  def window(self) -> np.ndarray:
    """The root up to its last anchor: what follows cannot change an entropy and is not computed."""
    return self.root[:int(self.positions.max()) + 1]


def verify(scorer: Scorer, pairs: Sequence[Pair], most_positions: int,
           progress: Callable[[int], None] = lambda tokens: None) -> list[tuple[np.ndarray, np.ndarray]]:
  """Entropy before and after at each pair's anchors, in nats.

  Args:
    scorer: the policy.
    pairs: any order; pairs of one root_key must name the same root and positions.
    most_positions: the static number A of positions a row reads at most.
    progress: called with the number of tokens done since the last call.

  Returns:
    For each pair (before f32[len(positions)], after f32[len(positions)]).
  """
  rows: list[Row] = []
  alone: dict[tuple[str, int], int] = {}  # (root, bucket) -> row
  for pair in pairs:
    window, shift = pair.window, len(pair.chunk)
    bucket = scorer.bucket(shift + len(window))
    rows.append(Row(np.concatenate([pair.chunk, window]), pair.positions + shift, bucket))
    alone.setdefault((pair.root_key, bucket), -1)
  first_of = {pair.root_key: pair for pair in pairs}
  for key, bucket in alone:
    alone[key, bucket] = len(rows)
    rows.append(Row(first_of[key].window, first_of[key].positions, bucket))
  entropies = scorer.entropies(rows, most_positions, progress)
  return [(entropies[alone[pair.root_key, row.bucket]], entropies[i])
          for i, (pair, row) in enumerate(zip(pairs, rows))]


def planned_tokens(pairs: Sequence[Pair]) -> int:
  """Tokens in the pairs' rows, for a progress bar (the roots alone are a few more)."""
  return sum(len(pair.chunk) + len(pair.window) for pair in pairs)
