"""How many sequences fill is reckoned as they do fill."""

import numpy as np
import pytest

from policylong.records import Negative, Positive
from policylong.synthesis.filling import Filling
from tests.synthesis.test_policylong_sequences import World, root


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("seed", range(20))
def test_sequences_are_full_where_every_chunk_has_one_length_and_none_is_lacking(seed, negatives):
  rng, size = np.random.default_rng(seed), 10
  world = World([size] * 3000, separator=[7] * int(rng.integers(0, 3)))
  length, filling = int(rng.integers(100, 300)), None
  filling = Filling(length, len(world.separator), negatives)
  roots, positives, ranked, free = [], [], [], iter(world.ids)
  for i in range(40):
    one = root(f"r{i}", int(rng.integers(10, 60)))
    roots.append(one)
    own = [next(free) for _ in range(int(rng.integers(0, 5)))]
    positives += [Positive(one.doc_id, chunk, 1, 0.5) for chunk in own]
    ranked += [Negative(one.doc_id, next(free), chunk, 0.5, rank) for chunk in own for rank in range(negatives)]
    filling.add(len(one.tokens), [size] * len(own))
  made = world.synthesize(roots, positives, ranked, length, negatives_per_positive=negatives)
  # The last one may be completed by random chunks, where it was not full.
  full = len(made) - (filling.tokens % length > 0)
  assert filling.sequences == full > 3


def test_a_root_fills_a_sequence_where_as_many_negatives_come_as_fit():
  filling = Filling(100, 2, None)
  for positives in ([10], [], [20, 30]):
    filling.add(30, positives)
  assert filling.sequences == 2 and filling.block(30, [1]) == 100 and filling.block(30, []) == 0
