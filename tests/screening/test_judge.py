"""Thresholds and verdicts against brute force."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from policylong.records import Verdict
from policylong.screening import judge
from policylong.storage import tables


@pytest.mark.parametrize("share", [0.0, 0.005, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 7, 200, 1001])
def test_epsilon_from_control_is_the_smallest_that_lets_at_most_the_share_pass(share, count):
  gains = np.random.default_rng(count).normal(0.0, 0.2, count)
  epsilon = judge.smallest_passed_by(gains, share)
  assert (gains > epsilon).mean() <= share
  # Any smaller epsilon >= 0 on the grid of gains lets more pass.
  for smaller in [g for g in gains if 0 <= g < epsilon]:
    assert (gains > smaller).mean() > share or (gains > smaller).sum() == (gains > epsilon).sum()


def test_epsilon_from_control_survives_ties_and_is_never_negative():
  assert judge.smallest_passed_by(np.array([0.3] * 50), 0.02) == 0.3
  assert judge.smallest_passed_by(np.full(50, -0.1), 0.0) == 0.0
  assert judge.smallest_passed_by(np.array([]), 0.005) == 0.0


def _verdicts(rng, roots=3, anchors=4, chunks=6, controls=2):
  rows = []
  for r in range(roots):
    for name in [f"c{i}" for i in range(chunks)] + [f"k{i}" for i in range(controls)]:
      kind = "retrieved" if name.startswith("c") else "control"
      for t in range(anchors):
        gain, drop = float(rng.normal(0.1, 0.3)), float(rng.normal(0.5, 1.0))
        rows.append(Verdict(f"root{r}", t, name, kind, -1, float("nan"), 4.0, 1.0, 5.0, 5.0 - drop, gain, False, 0))
  return rows


@pytest.mark.parametrize("loss_margin", [None, 0.0, 0.7])
@pytest.mark.parametrize("margin", [None, 0.0, 0.1])
def test_acceptance_and_positives_equal_a_plain_loop(margin, loss_margin):
  rows = _verdicts(np.random.default_rng(0))
  epsilon = 0.25
  wanted = []
  for row in rows:
    passes = row.gain > epsilon
    if margin is not None and row.kind == "retrieved":
      rivals = [o.gain for o in rows if o.kind == "control" and (o.doc_id, o.position) == (row.doc_id, row.position)]
      passes = passes and row.gain > max(rivals) + margin
    if loss_margin is not None:
      passes = passes and row.nll_before - row.nll_after > loss_margin
    wanted.append(passes)
  table = tables.from_records(Verdict, rows)
  found = judge.accepted(table, judge.Thresholds(epsilon, loss_margin, margin))
  assert found.tolist() == wanted

  verdicts = table.set_column(table.schema.get_field_index("accepted"), "accepted", pa.array(found))
  kept = judge.positives(verdicts)
  best = {}
  for row, passes in zip(rows, wanted):
    if passes and row.kind == "retrieved":
      best[row.doc_id, row.chunk_id] = max(best.get((row.doc_id, row.chunk_id), -9.0), row.gain)
  assert {(p.doc_id, p.chunk_id): p.gain for p in kept} == best
  assert len(kept) == len(best)
  for first, second in itertools.pairwise(kept):
    assert first.doc_id != second.doc_id or first.gain >= second.gain

  refused = judge.rejected(verdicts)
  everything = {(row.doc_id, row.chunk_id) for row in rows if row.kind == "retrieved"}
  assert set(refused) == everything - set(best)
  lowest_first = [max(row.gain for row in rows if (row.doc_id, row.chunk_id) == key) for key in refused]
  assert lowest_first == sorted(lowest_first)
