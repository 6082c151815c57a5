"""Does a chunk in front of the root really lower the entropy at its anchors, and the loss of the tokens there?

The unit is a pair (chunk, root), never (chunk, anchor): one pass of [chunk ; root] reads all anchors of
the root, so a root's candidates are scored against all its anchors for the price of the diagonal. What was
before comes from the same program as what is after: the root alone is one more row of every
bucket that its pairs fall into, on the same left context.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

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


class Reading(NamedTuple):
  """A pair at its anchors, f32[len(positions)] each, in nats: without the chunk in front, and with it.

  The entropy is that of the prediction of the anchor's token, the nll that of the token itself.
  """
  entropy_before: np.ndarray
  entropy_after: np.ndarray
  nll_before: np.ndarray
  nll_after: np.ndarray


def verify(scorer: Scorer, pairs: Sequence[Pair], most_positions: int,
           progress: Callable[[int], None] = lambda tokens: None) -> list[Reading]:
  """What each pair's chunk does at the root's anchors.

  Args:
    scorer: the policy.
    pairs: any order; pairs of one root_key must name the same root, and of its positions the first ones, as many as
      each wants.
    most_positions: the static number A of positions a row reads at most.
    progress: called with the number of tokens done since the last call.

  Returns:
    A reading for each pair.
  """
  rows: list[Row] = []
  longest: dict[tuple[str, int], Pair] = {}  # of a root in a bucket
  for pair in pairs:
    window, shift = pair.window, len(pair.chunk)
    bucket = scorer.bucket(shift + len(window))
    rows.append(Row(np.concatenate([pair.chunk, window]), pair.positions + shift, bucket))
    known = longest.setdefault((pair.root_key, bucket), pair)
    if len(pair.positions) > len(known.positions):
      longest[pair.root_key, bucket] = pair
  alone = {key: len(rows) + i for i, key in enumerate(longest)}
  rows += [Row(pair.window, pair.positions, bucket) for (_, bucket), pair in longest.items()]
  scores = scorer.likelihoods(rows, most_positions, progress)
  result = []
  for pair, row, (entropy, nll) in zip(pairs, rows, scores):
    entropy_before, nll_before = scores[alone[pair.root_key, row.bucket]]
    read = slice(len(pair.positions))
    result.append(Reading(entropy_before[read], entropy, nll_before[read], nll))
  return result


def planned_tokens(pairs: Sequence[Pair]) -> int:
  """Tokens in the pairs' rows, for a progress bar (the roots alone are a few more)."""
  return sum(len(pair.chunk) + len(pair.window) for pair in pairs)
