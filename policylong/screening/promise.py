"""How much a row promises before it is scored: the chance that a chunk passes at some anchor of a root.

A logistic model on what the host knows for nothing, fitted to the verdicts of the round so far. What it begins with
it leaves as verdicts come in. What tells most, on planted facts as in source code, is whether the chunk spells the
anchor's token behind the same tokens as the root does, and how many of these.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from policylong.records import Candidate

# Each about 0 to 1. "Own" anchors are those that retrieved the chunk; an anchor's repeat is how many tokens stand in
# the chunk as they do in the root up to and with the anchor's (`repeats`), 0 where the chunk does not hold that.
FEATURES = (
    "one",
    "rank",  # 1 / (1 + best rank at an own anchor)
    "similarity",  # the highest, as the index gives it
    "own",  # share of the root's anchors that are own ones
    "token",  # whether the repeat of an own anchor is 1 or longer,
    "pair",  # 2,
    "triple",  # 3
    "tokens",  # share of all anchors whose token the chunk holds
    "repeated",  # whether the repeat of any anchor is 2 or longer
    "longest",  # longest repeat behind its second token, in six
    "pairs",  # anchors whose repeat is 2 or longer, in four,
    "triples",  # 3
    "known",  # whether the root itself holds the longest repeat before its anchor
    "rare",  # share of the rare tokens around an own anchor that it holds, weighed by their rarity; the highest
    "entropy",  # of an own anchor, the highest, in tens of nats
    "length",  # tokens of the chunk, in a thousand
    "surest",  # rank and pair at once
)
# Longer repeats are not told apart.
LONGEST = 8
# What holds in general: acceptance falls with the rank, and a chunk that spells what stands at an anchor passes sooner.
# At first 4% of the rows at rank 0 and 2% at rank 3 are thought to pass, of those that repeat a pair 23% and 12%.
_FIRST = {"one": -4.2, "rank": 1.0, "repeated": 1.5, "pairs": 2.0, "triples": 1.0, "longest": 1.0}
# Precision of the prior, for weights of features of order 1.
_PRECISION = 1.0
_STEPS = 30


@dataclasses.dataclass(frozen=True)
class Promise:
  """weights: float64[F], of `FEATURES`."""
  weights: np.ndarray

  @classmethod
  def first(cls) -> "Promise":
    """What is believed before any verdict."""
    return cls(np.array([_FIRST.get(name, 0.0) for name in FEATURES]))

  @classmethod
  def from_json(cls, weights: Mapping[str, float]) -> "Promise":
    """What `to_json` gave."""
    return cls(np.array([weights.get(name, 0.0) for name in FEATURES]))

  def to_json(self) -> dict[str, float]:
    """The weight of each feature, numbers that read back as they are."""
    return dict(zip(FEATURES, self.weights.tolist()))

  def __call__(self, features: np.ndarray) -> np.ndarray:
    """The chance of each row to pass, float64[n]; of features float[n, F]."""
    return 1 / (1 + np.exp(-np.clip(features.astype(np.float64) @ self.weights, -30, 30)))

  def fitted(self, features: np.ndarray, passed: np.ndarray) -> "Promise":
    """The most likely weights after verdicts, believing in these before: Newton's method in float64.

    Args:
      features: float[n, F] of scored rows.
      passed: bool[n], whether an anchor of the row accepted.
    """
    x, y = features.astype(np.float64), passed.astype(np.float64)
    weights = self.weights.copy()
    for _ in range(_STEPS):
      p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
      gradient = x.T @ (y - p) - _PRECISION * (weights - self.weights)
      curvature = (x * (p * (1 - p))[:, None]).T @ x + _PRECISION * np.eye(x.shape[1])
      step = np.linalg.solve(curvature, gradient)
      weights += step / max(1.0, np.abs(step).max())  # no step longer than 1: far from the top Newton's are too long
      if np.abs(step).max() < 1e-10:
        break
    return Promise(weights)


def features(root: np.ndarray, positions: np.ndarray, entropy: np.ndarray, window: int,
             proposals: Sequence[tuple[np.ndarray, Mapping[int, Candidate]]], rarity: np.ndarray
             ) -> tuple[np.ndarray, np.ndarray]:
  """What the host knows of a root's rows, float32[n, F], and int64[n], how many anchors a row needs to read.

  A row reads the anchors up to the last that retrieved its chunk or that has a repeat of 2 in it. Elsewhere a chunk
  seldom passes (docs/screening.md), and the features are of what it reads.

  Args:
    root: int32[T] tokens.
    positions: int[A] its anchors, in order.
    entropy: float[A] at these.
    window: w; around an anchor t are the tokens [t - w, t + w).
    proposals: (int32[C] tokens of the chunk, {position of an own anchor: its candidate}) of each row.
    rarity: float[V], the weight of a token of the vocabulary.
  """
  around, place = np.unique(
      np.concatenate([root[max(0, t - window):t + window] for t in positions]), return_inverse=True)
  owner = np.repeat(np.arange(len(positions)), [min(len(root), t + window) - max(0, t - window) for t in positions])
  weight = np.zeros((len(positions), len(around)), np.float32)
  weight[owner, place] = rarity[around[place]]
  weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-9)
  number = {int(t): i for i, t in enumerate(positions)}
  result = np.zeros((len(proposals), len(FEATURES)), np.float32)
  needs = np.zeros(len(proposals), np.int64)
  for i, (chunk, own) in enumerate(proposals):
    mine = np.array([number[t] for t in own], int)
    repeat = repeats(root, positions, chunk)
    needs[i] = 1 + max(mine.max(), np.flatnonzero(repeat >= 2).max(initial=0))
    mine_repeat, repeat = repeat[mine].max(), repeat[:needs[i]]
    best = repeat.argmax()
    known = repeat[best] and repeats(root, positions[best:best + 1], root[:positions[best]])[0] >= repeat[best]
    rank = 1 / (1 + min(candidate.rank for candidate in own.values()))
    rare = weight[mine] @ np.isin(around, chunk)
    result[i] = (
        1, rank, max(candidate.similarity for candidate in own.values()), len(mine) / len(positions),
        mine_repeat >= 1, mine_repeat >= 2, mine_repeat >= 3, np.mean(repeat >= 1), repeat[best] >= 2,
        max(0, repeat[best] - 2) / (LONGEST - 2), min(1, np.sum(repeat >= 2) / 4), min(1, np.sum(repeat >= 3) / 4),
        known, rare.max(), entropy[mine].max() / 10, len(chunk) / 1000, rank * (mine_repeat >= 2))
  return result, needs


def repeats(root: np.ndarray, positions: np.ndarray, chunk: np.ndarray) -> np.ndarray:
  """int64[A]: the most tokens of the root, the last of them at the position, that stand in the chunk in the same order.

  Up to `LONGEST`; 0 where the chunk does not hold the token at the position.

  Args:
    root: int32[T].
    positions: int[A] in it.
    chunk: int32[C].
  """
  here = chunk[None] == root[positions][:, None]  # [A, C]: whether a repeat of the length so far ends there
  length = here.any(axis=1).astype(np.int64)
  for back in range(1, LONGEST):
    going = np.flatnonzero((length == back) & (positions >= back))
    if not len(going):
      break
    here[going, back:] &= chunk[None, :-back] == root[positions[going] - back][:, None]
    length[going] += here[going, back:].any(axis=1)
  return length


def token_rarity(chunks: Sequence[np.ndarray], size: int) -> np.ndarray:
  """float32[size]: log(n / number of these n chunks that hold a token), 0 for tokens that none holds."""
  held = np.zeros(size, np.int64)
  for tokens in chunks:
    held[np.unique(tokens)] += 1
  return np.where(held > 0, np.log(max(1, len(chunks)) / np.maximum(held, 1)), 0).astype(np.float32)
