"""How much a row promises before it is scored: the chance that a chunk passes at some anchor of a root.

A logistic model on what the host knows for nothing, fitted to the verdicts of the round so far. It begins with what
holds wherever there is something to find, that acceptance falls with the rank, and leaves that as verdicts come in.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from policylong.records import Candidate

# Each about 0 to 1. "Own" anchors are those that retrieved the chunk.
FEATURES = (
    "one",
    "rank",  # 1 / (1 + best rank at an own anchor)
    "similarity",  # the highest, as the index gives it
    "own",  # share of the root's anchors that are own ones
    "token",  # whether the chunk holds the token of an own anchor
    "pair",  # whether it holds that token behind the one that stands before it in the root
    "tokens",  # share of all anchors whose token it holds
    "pairs",  # share of all anchors whose token it holds behind the one before it
    "rare",  # share of the rare tokens around an own anchor that it holds, weighed by their rarity; the highest
    "entropy",  # of an own anchor, the highest, in tens of nats
    "length",  # tokens of the chunk, in a thousand
    "surest",  # rank and pair at once
)
# The rank alone says something at first: about 10% at rank 0, 4% at rank 3.
_FIRST = {"one": -3.6, "rank": 1.4}
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
             proposals: Sequence[tuple[np.ndarray, Mapping[int, Candidate]]], rarity: np.ndarray) -> np.ndarray:
  """What the host knows of a root's rows, float32[n, F].

  Args:
    root: int32[T] tokens.
    positions: int[A] its anchors, in order.
    entropy: float[A] at these.
    window: w; around an anchor t are the tokens [t - w, t + w).
    proposals: (int32[C] tokens of the chunk, {position of an own anchor: its candidate}) of each row.
    rarity: float[V], the weight of a token of the vocabulary.
  """
  anchors = root[positions]
  before = root[positions - 1]
  around, place = np.unique(
      np.concatenate([root[max(0, t - window):t + window] for t in positions]), return_inverse=True)
  owner = np.repeat(np.arange(len(positions)), [min(len(root), t + window) - max(0, t - window) for t in positions])
  weight = np.zeros((len(positions), len(around)), np.float32)
  weight[owner, place] = rarity[around[place]]
  weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-9)
  number = {int(t): i for i, t in enumerate(positions)}
  result = np.zeros((len(proposals), len(FEATURES)), np.float32)
  for row, (chunk, own) in zip(result, proposals):
    mine = np.array([number[t] for t in own], int)
    holds = np.isin(anchors, chunk)
    pair = np.isin(_pairs(before, anchors), _pairs(chunk[:-1], chunk[1:]))
    rare = weight @ np.isin(around, chunk)
    rank = 1 / (1 + min(candidate.rank for candidate in own.values()))
    row[:] = (1, rank, max(candidate.similarity for candidate in own.values()), len(mine) / len(positions),
              holds[mine].any(), pair[mine].any(), holds.mean(), pair.mean(), rare[mine].max(),
              entropy[mine].max() / 10, len(chunk) / 1000, rank * pair[mine].any())
  return result


def token_rarity(chunks: Sequence[np.ndarray], size: int) -> np.ndarray:
  """float32[size]: log(n / number of these n chunks that hold a token), 0 for tokens that none holds."""
  held = np.zeros(size, np.int64)
  for tokens in chunks:
    held[np.unique(tokens)] += 1
  return np.where(held > 0, np.log(max(1, len(chunks)) / np.maximum(held, 1)), 0).astype(np.float32)


def _pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Two tokens as one number."""
  return (first.astype(np.int64) << 32) | second.astype(np.int64)
