"""Packed sequences hold every example, and every document of a method's sequence, whole, once and apart."""

import numpy as np
import pytest

from policylong.records import LongSequence, Span
from policylong.synthesis import packing


def unpacked(rows):
  """(tokens, learnt) of every example in packed rows, found by the segments alone."""
  found = []
  for tokens, segments, learnt in rows:
    for segment in range(1, segments.max() + 1):
      (at,) = np.nonzero(segments == segment)
      assert at.tolist() == list(range(at[0], at[-1] + 1))  # in one piece
      found.append((tokens[at].tolist(), learnt[at].tolist()))
    (rest,) = np.nonzero(segments == 0)
    assert rest.tolist() == list(range(len(tokens) - len(rest), len(tokens)))  # only the end is filled up
    assert not tokens[rest].any() and not learnt[rest].any()
  return found


@pytest.mark.parametrize("count, longest", [(1, 5), (40, 64), (3000, 64), (500, 12)])
def test_every_example_is_there_whole_and_once(count, longest):
  rng = np.random.default_rng(count)
  examples = [(rng.integers(0, 1000, n), rng.random(n) < 0.5) for n in rng.integers(2, longest + 1, count)]
  rows = list(packing.pack(iter(examples), 64))
  assert all(row.shape == (3, 64) and row.dtype == np.int32 for row in rows)
  assert sorted(unpacked(rows)) == sorted((tokens.tolist(), learnt.tolist()) for tokens, learnt in examples)


def test_little_room_is_wasted():
  rng = np.random.default_rng(0)
  examples = [(np.ones(n, int), np.ones(n, bool)) for n in rng.integers(20, 700, 5000)]
  rows = list(packing.pack(examples, 1024))
  assert sum((row[1] > 0).sum() for row in rows) / (1024 * len(rows)) > 0.97


def test_the_fullest_sequence_with_room_takes_an_example():
  sizes = [6, 4, 3, 4, 1]
  rows = list(packing.pack(((np.full(n, n), np.ones(n, bool)) for n in sizes), 10))
  assert [row[0].tolist() for row in rows] == [[6] * 6 + [4] * 4, [3] * 3 + [4] * 4 + [1] + [0] * 2]


def test_nothing_gives_nothing():
  assert list(packing.pack([], 8)) == []


def test_a_root_and_its_contexts_are_one_document_and_a_new_root_begins_the_next():
  spans = [(0, 2, "positive", "r", "c#0-9"), (2, 3, "negative", "r", "d#0-9"), (3, 5, "root", "r", ""),
           (5, 6, "filler", "s", "e#0-9"), (6, 9, "root", "s", ""), (9, 10, "root", "r", "")]
  sequence = LongSequence(np.arange(20, 30, dtype=np.int32), tuple(
      Span(*span, position=-1, gain=float("nan"), rank=-1, policy_step=0) for span in spans))
  packed = packing.by_document(sequence)
  assert packed.dtype == np.int32 and packed.tolist() == [
      list(range(20, 30)), [1, 1, 1, 1, 1, 2, 2, 2, 2, 3], [1] * 10]
