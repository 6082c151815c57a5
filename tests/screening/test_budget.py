"""Which rows a budget takes, against trying every choice; and what the probe says of the rest, against the truth."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize

from policylong.screening import budget
from policylong.screening.promise import FEATURES, LONGEST, Promise, features, repeats, token_rarity
from policylong.synthesis.filling import Filling


def invented(rng, roots=3, most=4):
  owners = np.concatenate([np.full(rng.integers(0, most), r) for r in range(roots)]).astype(int)
  count = len(owners)
  chunk = rng.integers(5, 30, count)
  return budget.Rows(owners, chunk + rng.integers(10, 20, count), chunk, rng.uniform(0.02, 0.9, count),
                     rng.random(count) < 0.2, rng.integers(20, 40, roots), rng.uniform(20, 60, roots))


def by_hand(rows, order, length, negatives):
  """[(rows taken, tokens scored, tokens expected to be trained on)] for every beginning of the order."""
  result = []
  for taken in range(1, len(order) + 1):
    scored = set(order[:taken]) | set(np.flatnonzero(rows.paid))
    tokens = sum(rows.fixed) + sum(rows.tokens[i] for i in scored if not rows.paid[i])
    expected = 0.0
    for r, root in enumerate(rows.root_tokens):
      own = [i for i in scored if rows.root[i] == r]
      some = 1 - math.prod(1 - rows.promise[i] for i in own)
      if own:
        positives = sum(rows.promise[i] * rows.chunk_tokens[i] for i in own) / some
        block = length if negatives is None else min(length, 3 + root + (1 + negatives) * positives)
        expected += some * block
    result.append((taken, tokens, expected))
  return result


@pytest.mark.parametrize("negatives", [0, 2, None])
@pytest.mark.parametrize("seed", range(20))
def test_as_many_of_the_most_promising_rows_as_are_worth_the_rate(seed, negatives):
  rng = np.random.default_rng(seed)
  rows, filling = invented(rng), Filling(150, 3, negatives)
  order = sorted(range(len(rows.tokens)), key=lambda i: -rows.promise[i] * rows.chunk_tokens[i] / rows.tokens[i])
  choices = by_hand(rows, order, 150, negatives)
  for rate in (0.1, 0.8, 1.5, 3.0, 1e9):
    worth, wanted = max((rate * expected - tokens, taken) for taken, tokens, expected in choices)
    if worth < 0:  # what is fixed costs more than any choice brings
      wanted = min((tokens / expected, taken) for taken, tokens, expected in choices)[1]
    found = set(np.flatnonzero(budget.choose(rows, rate, filling)))
    assert found == set(order[:wanted])
    # No more is spent than the rate allows, where that can be.
    allowed = [taken for taken, tokens, expected in choices if tokens <= rate * expected]
    assert not allowed or wanted in allowed


def test_without_rows_nothing_is_chosen():
  none = np.zeros(0, int)
  rows = budget.Rows(none, none, none, none.astype(float), none.astype(bool), np.array([9]), np.array([9.0]))
  assert budget.choose(rows, 1.0, Filling(50, 0, 1)).shape == (0,)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_the_probe_is_spread_evenly_and_begins_at_once(share):
  members = [number for number in range(400) if budget.is_probe(number, share)]
  assert len(members) == pytest.approx(400 * share, abs=1)
  assert not share or members[0] == 0
  assert all(b - a <= math.ceil(1 / share) for a, b in itertools.pairwise(members))


@pytest.mark.parametrize("truth", [0.3, 0.8, 0.97])
def test_the_probes_interval_holds_the_share_that_a_rule_really_finds(truth):
  """Roots with very different numbers of positives, whose fates hang together."""
  rng, held = np.random.default_rng(0), 0
  for _ in range(300):
    there = rng.geometric(0.3, 25)
    chance = np.clip(truth + (rng.random(25) - 0.5) * min(0.4, 2 * (1 - truth)), 0, 1)
    found = rng.binomial(there, chance)
    share, low, high = budget.found_share(found, there)
    assert low <= share <= high and share == found.sum() / there.sum()
    held += low <= truth <= high
  assert held >= 285


def test_without_positives_in_the_probe_nothing_is_known():
  share, low, high = budget.found_share([0, 0], [0, 0])
  assert math.isnan(share) and (low, high) == (0.0, 1.0)
  assert budget.found_share([3], [3])[1] < 0.1 and budget.found_share([0], [3])[2] > 0.9  # one root is one draw


def test_the_fit_is_the_top_of_the_posterior():
  rng = np.random.default_rng(1)
  x = rng.random((400, len(FEATURES)))
  x[:, 0] = 1
  y = rng.random(400) < 1 / (1 + np.exp(-(x @ rng.normal(0, 2, len(FEATURES)))))
  first = Promise.first()

  def loss(weights):
    z = x @ weights
    return np.sum(np.logaddexp(0, z) - y * z) + 0.5 * np.sum((weights - first.weights)**2)
  wanted = scipy.optimize.minimize(loss, first.weights, method="BFGS", options={"gtol": 1e-8}).x
  np.testing.assert_allclose(first.fitted(x, y).weights, wanted, atol=1e-5)
  none = first.fitted(np.zeros((0, len(FEATURES))), np.zeros(0, bool))
  np.testing.assert_array_equal(none.weights, first.weights)


def test_before_any_verdict_the_rank_decides_and_a_repeat_still_more():
  rows = np.zeros((4, len(FEATURES)))
  rows[:, 0], rows[:, FEATURES.index("rank")] = 1, [1, 1 / 2, 1 / 3, 1 / 4]
  chance = Promise.first()(rows)
  assert (np.diff(chance) < 0).all() and chance[[0, 3]] == pytest.approx([0.04, 0.02], abs=0.003)
  rows[:, FEATURES.index("repeated")], rows[:, FEATURES.index("pairs")] = 1, 1 / 4
  repeating = Promise.first()(rows)
  assert repeating[3] > chance[0] and repeating[[0, 3]] == pytest.approx([0.23, 0.12], abs=0.005)


def test_repeats_against_looking_at_every_place():
  rng = np.random.default_rng(0)
  lengths = set()
  for _ in range(200):
    root, chunk = (rng.integers(0, 2, rng.integers(low, 40)).astype(np.int32) for low in (12, 0))
    positions = np.sort(rng.choice(len(root), 5, replace=False))
    found = repeats(root, positions, chunk).tolist()
    spelled = [tuple(chunk[end - n:end]) for n in range(1, LONGEST + 1) for end in range(n, len(chunk) + 1)]
    wanted = [max((n for n in range(1, min(LONGEST, t + 1) + 1) if tuple(root[t + 1 - n:t + 1]) in spelled), default=0)
              for t in positions]
    assert found == wanted
    lengths |= set(found)
  assert lengths == set(range(LONGEST + 1))


class _Candidate:
  def __init__(self, rank, similarity):
    self.rank, self.similarity = rank, similarity


def test_what_the_host_knows_of_a_row_by_hand():
  root = np.array([5, 6, 7, 8, 9, 10, 11, 12], np.int32)
  positions = np.array([2, 5])  # tokens 7 (behind 6) and 10 (behind 9)
  chunk = np.array([6, 7, 1, 10, 2], np.int32)  # the pair (6, 7), and 10 behind another
  rarity = np.zeros(20)
  rarity[[5, 6, 7, 8]] = [1.0, 2.0, 0.5, 4.0]
  ((row,), needs) = features(root, positions, np.array([4.0, 6.0]), 2, [(chunk, {2: _Candidate(1, 0.7)})], rarity)
  wanted = {"one": 1, "rank": 1 / 2, "similarity": 0.7, "own": 1 / 2, "token": 1, "pair": 1, "triple": 0, "tokens": 1,
            "repeated": 1, "longest": 0, "pairs": 1 / 4, "triples": 0, "known": 0,
            "rare": (2.0 + 0.5) / (1 + 2 + 0.5 + 4), "entropy": 0.4, "length": 5 / 1000, "surest": 1 / 2}
  assert dict(zip(FEATURES, row.tolist())) == pytest.approx(wanted) and needs.tolist() == [1]
  ((row,), _) = features(root, positions, np.array([4.0, 6.0]), 2,
                         [(chunk, {2: _Candidate(3, 0.1), 5: _Candidate(0, 0.2)})], rarity)
  assert row[FEATURES.index("rank")] == 1 and row[FEATURES.index("own")] == 1
  assert row[FEATURES.index("entropy")] == pytest.approx(0.6) and row[FEATURES.index("similarity")] == np.float32(0.2)


def test_what_a_chunk_repeats_of_a_root_that_repeats_itself():
  root = np.array([1, 2, 3, 4, 9, 2, 3, 4, 5, 6, 7], np.int32)
  positions = np.array([3, 7, 10])  # 4 behind (1, 2, 3); 4 behind (9, 2, 3), which the root held before; 7
  chunk = np.array([8, 2, 3, 4, 4, 7], np.int32)
  own = {3: _Candidate(0, 0.5)}
  ((row,), needs) = features(root, positions, np.ones(3), 2, [(chunk, own)], np.ones(10))
  told = dict(zip(FEATURES, row.tolist()))
  assert needs.tolist() == [2]  # the second anchor, where it repeats three tokens; the third's token is held alone
  assert told["triple"] == told["repeated"] == told["tokens"] == 1
  assert told["pairs"] == told["triples"] == 1 / 2 and told["longest"] == pytest.approx(1 / 6)
  assert told["known"] == 0  # of the first of the two, before which the root does not hold them
  ((row,), _) = features(root, positions[1:], np.ones(2), 2, [(chunk, {7: _Candidate(0, 0.5)})], np.ones(10))
  assert row[FEATURES.index("known")] == 1


def test_a_token_is_rare_if_few_chunks_hold_it():
  found = token_rarity([np.array([1, 1, 2]), np.array([1, 3]), np.array([1])], 5)
  np.testing.assert_allclose(found, [0, 0, math.log(3), math.log(3), 0], rtol=1e-6)
