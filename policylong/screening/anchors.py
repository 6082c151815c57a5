"""Where the policy cannot predict: anchors, and the text that asks the index about them."""

import numpy as np


def entropy_threshold(entropy: np.ndarray, alpha: float) -> float:
  """mean(H) + alpha * std(H) over a root's known entropies, in nats; of f32[T], NaN at 0 if nothing predicts it."""
  known = entropy[int(np.isnan(entropy[0])):].astype(np.float64)
  return float(known.mean() + alpha * known.std())


def find_anchors(entropy: np.ndarray, *, alpha: float, skip_tokens: int, most: int) -> tuple[np.ndarray, float]:
  """Tokens with H_t > mean(H) + alpha * std(H) over the root (EntropyLong, kept by PolicyLong).

  Args:
    entropy: f32[T] of the root, nats; NaN at position 0 where the model's texts begin with no token of their own.
    alpha: standard deviations above the mean.
    skip_tokens: positions before it are never anchors: with little left context every token is uncertain,
      and their query windows would be short. They do count in mean and std.
    most: keep at most so many, the most uncertain ones.

  Returns:
    Positions in order, and the threshold in nats.
  """
  threshold = entropy_threshold(entropy, alpha)
  positions = np.flatnonzero(entropy > threshold)  # NaN is never above
  positions = positions[positions >= skip_tokens]
  strongest = positions[np.argsort(-entropy[positions], kind="stable")[:most]]
  return np.sort(strongest), threshold


def query_span(position: int, length: int, window: int) -> slice:
  """Tokens [t - w, t + w) of the root, clipped to it."""
  return slice(max(0, position - window), min(length, position + window))


def ngrams(tokens: np.ndarray, n: int) -> set[bytes]:
  """All runs of n tokens, as bytes."""
  tokens = np.ascontiguousarray(tokens, np.int32)
  return {tokens[i:i + n].tobytes() for i in range(len(tokens) - n + 1)}
