"""Anchors are the tokens above mean + alpha * std of their own root."""

import numpy as np

from policylong.screening.anchors import find_anchors, ngrams, query_span


def _trace(seed=0, length=400):
  entropy = np.random.default_rng(seed).gamma(2.0, 1.5, length).astype(np.float32)
  entropy[0] = np.nan
  return entropy


def test_anchors_are_exactly_the_tokens_above_the_threshold():
  entropy = _trace()
  positions, threshold = find_anchors(entropy, alpha=1.5, skip_tokens=16, most=1000)
  known = [float(h) for h in entropy[1:]]
  mean = sum(known) / len(known)
  std = (sum((h - mean) ** 2 for h in known) / len(known)) ** 0.5
  assert abs(threshold - (mean + 1.5 * std)) < 1e-9
  assert positions.tolist() == [t for t in range(16, 400) if entropy[t] > threshold]


def test_of_many_anchors_the_most_uncertain_ones_stay_in_order():
  entropy = _trace()
  every, _ = find_anchors(entropy, alpha=0.5, skip_tokens=1, most=1000)
  some, _ = find_anchors(entropy, alpha=0.5, skip_tokens=1, most=10)
  assert some.tolist() == sorted(sorted(every.tolist(), key=lambda t: -entropy[t])[:10])


def test_a_flat_root_has_no_anchor():
  entropy = np.full(100, 2.0, np.float32)
  assert len(find_anchors(entropy, alpha=0.0, skip_tokens=1, most=10)[0]) == 0


def test_the_query_window_is_clipped_to_the_root():
  assert query_span(100, 256, 16) == slice(84, 116)
  assert query_span(5, 256, 16) == slice(0, 21)
  assert query_span(250, 256, 16) == slice(234, 256)


def test_ngrams_are_shared_exactly_when_a_run_of_tokens_is():
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 1000, 60), rng.integers(0, 1000, 60)
  assert not ngrams(a, 13) & ngrams(b, 13)
  b[20:32] = a[3:15]  # 12 tokens are too few
  assert not ngrams(a, 13) & ngrams(b, 13)
  b[20:33] = a[3:16]
  assert len(ngrams(a, 13) & ngrams(b, 13)) == 1
  assert ngrams(a[:12], 13) == set()
