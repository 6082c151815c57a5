"""A long sequence holds what the rules say, to the token, whatever the round brought."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from policylong.errors import UserError
from policylong.records import Negative, Positive, Root
from policylong.synthesis.method import Screened
from policylong.synthesis.policylong import synthesize

NAN = float("nan")


class World:
  """A corpus of numbered chunks; every token says which chunk it is of, so spans can be checked by eye."""

  def __init__(self, sizes, separator=()):
    self.tokens = {f"c{i}#0-{size}": 1000 * (i + 1) + np.arange(size, dtype=np.int32)
                   for i, size in enumerate(sizes)}
    self.ids = list(self.tokens)
    self.separator = np.asarray(separator, np.int32)

  def filler(self, doc_id, n):
    order = np.random.default_rng(sum(doc_id.encode())).permutation(len(self.ids))
    return [self.ids[i] for i in order if not self.ids[i].startswith(doc_id + "#")][:n]

  def synthesize(self, roots, positives, negatives, length, seed=0, round_index=1, policy_step=17,
                 negatives_per_positive=None):
    screened = Screened(roots, positives, negatives, _Tokens(self.tokens), self.filler, negatives_per_positive)
    return list(synthesize(screened, separator=self.separator, length=length, seed=seed, round_index=round_index,
                           policy_step=policy_step))


class _Tokens:
  """Tokens of chunks by their ids."""

  def __init__(self, tokens):
    self._tokens = tokens

  def prepare(self, chunk_ids):
    assert all(chunk_id in self._tokens for chunk_id in chunk_ids)

  def __call__(self, chunk_id):
    return self._tokens[chunk_id]


def root(name, size):
  return Root(name, 0, size, -1 - np.arange(size, dtype=np.int32), ("x",) * size)


def roles(sequence):
  return [(span.role, span.chunk_id, span.end - span.start) for span in sequence.spans]


def by_role(sequence, role):
  return [span for span in sequence.spans if span.role == role]


def test_one_root_by_hand():
  world = World([10] * 8)
  a, b, c, d, e, f, g, _ = world.ids
  positives = [Positive("r", b, 5, 0.5), Positive("r", a, 3, 0.9)]
  negatives = [Negative("r", c, a, 0.8, 0), Negative("r", d, a, 0.7, 1), Negative("r", e, a, 0.6, 2),
               Negative("r", f, b, 0.8, 0), Negative("r", d, b, 0.5, 1), Negative("r", g, b, 0.4, 2)]
  (sequence,) = world.synthesize([root("r", 20)], positives, negatives, 20 + 65)
  # positives a, b; in turn c (of a), f (of b), d (of a), g (of b, whose second is d again); at last e of a, cut
  assert {(s.role, s.chunk_id, s.end - s.start, s.rank) for s in sequence.spans} == {
      ("positive", a, 10, 0), ("positive", b, 10, 1), ("negative", c, 10, 0), ("negative", f, 10, 0),
      ("negative", d, 10, 1), ("negative", g, 10, 2), ("negative", e, 5, 2), ("root", "", 20, -1)}
  assert {(s.chunk_id, s.position, s.gain) for s in by_role(sequence, "positive")} == {(a, 3, 0.9), (b, 5, 0.5)}
  assert sequence.spans[-1].role == "root" and {s.policy_step for s in sequence.spans} == {17}
  assert {s.doc_id for s in sequence.spans} == {"r"} and sequence.tokens.dtype == np.int32


def test_the_last_positive_is_cut_when_the_positives_alone_are_too_long():
  world = World([10] * 4)
  a, b, c, d = world.ids
  positives = [Positive("r", chunk, 1, gain) for chunk, gain in ((a, 0.5), (b, 0.9), (c, 0.7), (d, 0.6))]
  (sequence,) = world.synthesize([root("r", 20)], positives, [Negative("r", a, b, 0.9, 0)], 45)
  assert sorted(roles(sequence)) == sorted(
      [("positive", b, 10), ("positive", c, 10), ("positive", d, 5), ("root", "", 20)])


def test_short_blocks_are_joined_behind_a_separator():
  world = World([10] * 9, separator=[7, 7])
  a, b, c = world.ids[:3]
  positives = [Positive("r", a, 1, 0.5), Positive("s", b, 1, 0.5), Positive("t", c, 1, 0.5)]
  (sequence,) = world.synthesize([root("r", 20), root("none", 9), root("s", 18), root("t", 30)], positives, [], 102)
  assert roles(sequence) == [("positive", a, 10), ("root", "", 22), ("positive", b, 10), ("root", "", 20),
                             ("positive", c, 10), ("root", "", 30)]
  assert sequence.tokens[30:32].tolist() == [7, 7] == sequence.tokens[60:62].tolist()
  assert [s.doc_id for s in sequence.spans] == ["r", "r", "s", "s", "t", "t"]


def test_random_chunks_complete_a_sequence_that_no_root_can_join():
  world = World([10] * 9, separator=[7, 7])
  a, b = world.ids[:2]
  positives = [Positive("r", a, 1, 0.5), Positive("s", b, 1, 0.5)]
  # room behind r: 62 - 30 - 2 = 30; s needs 21 + 10
  first, second = world.synthesize([root("r", 20), root("s", 21)], positives, [], 62)
  for sequence, name, own in ((first, "r", a), (second, "s", b)):
    assert sum(s.end - s.start for s in by_role(sequence, "filler")) == 62 - 10 - (20 if name == "r" else 21)
    assert sequence.spans[-1].role == "root" and {s.doc_id for s in sequence.spans} == {name}
    assert [s.chunk_id for s in by_role(sequence, "positive")] == [own]
  # one token more, and s joins
  (both,) = world.synthesize([root("r", 20), root("s", 21)], positives, [], 63)
  assert roles(both) == [("positive", a, 10), ("root", "", 22), ("positive", b, 10), ("root", "", 21)]


def test_no_text_stands_twice_in_a_sequence_even_when_it_is_joined():
  world = World([10] * 12)
  a, b = world.ids[:2]
  # s's best context is r's too; and c1 is the document of chunk b, which already stands before s
  positives = [Positive("r", a, 1, 0.5), Positive("s", a, 1, 0.9), Positive("s", b, 1, 0.5),
               Positive("c1", world.ids[3], 1, 0.5)]
  first, second = world.synthesize([root("r", 20), root("s", 20), root("c1", 20)], positives, [], 110)
  assert [s.chunk_id for s in by_role(first, "positive")] == [a, b]
  assert [s.doc_id for s in by_role(first, "root")] == ["r", "s"]
  assert [s.doc_id for s in by_role(second, "root")] == ["c1"]
  assert not any(s.chunk_id == b for s in second.spans)  # the chunk of c1's own document is no filler either


def test_a_chunk_of_an_earlier_root_is_no_context_of_a_later_one():
  world = World([10] * 12)
  a, b, c = world.ids[:3]
  positives = [Positive("c1", a, 1, 0.5), Positive("s", b, 1, 0.9), Positive("s", c, 1, 0.5)]
  (sequence,) = world.synthesize([root("c1", 20), root("s", 20)], positives, [], 90)
  assert [s.chunk_id for s in by_role(sequence, "positive")] == [a, c]
  assert len(by_role(sequence, "filler")) == 3 and not any(s.chunk_id == b for s in sequence.spans)


def random_round(seed):
  """A world, roots, positives and negatives of random sizes: starved, rich and everything between."""
  rng = np.random.default_rng(seed)
  world = World(rng.integers(1, 40, size=400), separator=[5] * int(rng.integers(0, 4)))
  length = int(rng.integers(80, 500))
  roots, positives, negatives = [], [], []
  for i in range(int(rng.integers(1, 12))):
    name = f"root{i}" if rng.random() < 0.7 else f"c{400 - 1 - i}"  # some roots are documents of the corpus
    roots.append(root(name, int(rng.integers(10, 70))))
    pool = [c for c in world.ids[-80:] if not c.startswith(f"{name}#")]  # small, so that roots compete for chunks
    chosen = rng.choice(pool, size=rng.integers(0, 7), replace=False).tolist()
    positives += [Positive(name, c, int(rng.integers(10)), float(rng.random())) for c in chosen]
    for positive in chosen:
      near = [c for c in rng.choice(pool, size=rng.integers(0, 6), replace=False).tolist() if c not in chosen]
      negatives += [Negative(name, c, positive, 0.5, rank) for rank, c in enumerate(near)]
  negatives = [negatives[i] for i in rng.permutation(len(negatives))]
  return world, roots, positives, negatives, length


@pytest.mark.parametrize("seed", range(150))
def test_whatever_comes_a_sequence_is_whole(seed):
  world, roots, positives, negatives, length = random_round(seed)
  sequences = world.synthesize(roots, positives, negatives, length, seed=seed)
  root_tokens = {r.doc_id: r.tokens for r in roots}
  for sequence in sequences:
    assert len(sequence.tokens) == length
    assert [s.start for s in sequence.spans] == [0, *(s.end for s in sequence.spans[:-1])]
    assert sequence.spans[-1].end == length and all(s.end > s.start for s in sequence.spans)
    chunks = [s.chunk_id for s in sequence.spans if s.role != "root"]
    assert len(set(chunks)) == len(chunks)
    assert not {c.split("#")[0] for c in chunks} & {s.doc_id for s in by_role(sequence, "root")}
    cut = 0
    for span in sequence.spans:
      found = sequence.tokens[span.start:span.end]
      if span.role == "root":
        last = span.end == length
        wanted = root_tokens[span.doc_id] if last else [*root_tokens[span.doc_id], *world.separator]
        assert found.tolist() == list(wanted)
      else:
        assert found.tolist() == world.tokens[span.chunk_id][:len(found)].tolist()
        cut += len(found) < len(world.tokens[span.chunk_id])
    assert cut <= 1
    fillers = by_role(sequence, "filler")
    assert {s.doc_id for s in fillers} <= {sequence.spans[-1].doc_id}
    for doc_id, block in itertools.groupby(sequence.spans, key=lambda span: span.doc_id):
      check_block(list(block), doc_id, positives, negatives, sequence, world)
  used = [s.doc_id for sequence in sequences for s in by_role(sequence, "root")]
  with_positives = {p.doc_id for p in positives}
  assert used == [r.doc_id for r in roots if r.doc_id in with_positives]


def check_block(block, doc_id, positives, negatives, sequence, world):
  """The contexts of a block are a prefix of the order that the rules give."""
  assert [s.role for s in block].count("root") == 1 and block[-1].role == "root"
  spans = {s.chunk_id: s for s in block[:-1] if s.role != "filler"}
  own = sorted((p for p in positives if p.doc_id == doc_id), key=lambda p: -p.gain)
  queues = {p.chunk_id: collections.deque(sorted((n for n in negatives if (n.doc_id, n.of_chunk) == (
      doc_id, p.chunk_id)), key=lambda n: n.rank)) for p in own}
  order = [p.chunk_id for p in own]
  while any(queues.values()):  # by the letter: a turn around the positives, each gives its next new one
    for queue in queues.values():
      while queue and queue[0].chunk_id in order:
        queue.popleft()
      if queue:
        order.append(queue.popleft().chunk_id)
  before = [s for s in sequence.spans if s.end <= block[0].start]
  banned = {s.chunk_id for s in before} | {f"{s.doc_id}#" for s in before if s.role == "root"} | {f"{doc_id}#"}
  allowed = [c for c in order if c not in banned and c.split("#")[0] + "#" not in banned]
  taken = allowed[:len(spans)]
  assert set(taken) == set(spans)
  assert all(spans[c].end - spans[c].start == len(world.tokens[c]) for c in taken[:-1])  # only the last is cut
  if len(taken) < len(allowed):  # something was left over, so the sequence ended here and nothing is random in it
    assert block[-1].end == len(sequence.tokens) and not by_role(sequence, "filler")
  for rank, positive in enumerate(own):
    if positive.chunk_id in spans:
      span = spans[positive.chunk_id]
      assert (span.role, span.position, span.gain, span.rank) == (
          "positive", positive.position, positive.gain, rank)


def test_every_sequence_but_for_conflicts_and_room_is_filled_from_roots_first():
  """Filler appears only where the next root does not fit or there is none."""
  for seed in range(150):
    world, roots, positives, negatives, length = random_round(seed)
    sequences = world.synthesize(roots, positives, negatives, length)
    for sequence, after in itertools.pairwise(sequences):
      filler = sum(s.end - s.start for s in by_role(sequence, "filler"))
      if filler:
        following = by_role(after, "root")[0]
        best = next(s for s in after.spans if s.role == "positive" and s.rank == 0)
        size = next(len(r.tokens) for r in roots if r.doc_id == following.doc_id)
        documents = {s.chunk_id.split("#")[0] for s in sequence.spans if s.role not in ("root", "filler")}
        shared = {s.chunk_id for s in sequence.spans} & {p.chunk_id for p in positives
                                                         if p.doc_id == following.doc_id}
        rooted = {s.doc_id for s in by_role(sequence, "root")}
        blocked = following.doc_id in documents or shared or best.chunk_id.split("#")[0] in rooted
        assert blocked or filler - len(world.separator) < size + len(world.tokens[best.chunk_id])


def test_the_order_of_the_inputs_does_not_matter_and_seed_and_round_do():
  world, roots, positives, negatives, length = random_round(3)
  one = world.synthesize(roots, positives, negatives, length)
  two = world.synthesize(roots, positives[::-1], negatives[::-1], length)
  assert [s.spans for s in map(without_nan, one)] == [s.spans for s in map(without_nan, two)]
  assert all((a.tokens == b.tokens).all() for a, b in zip(one, two))
  for other in (world.synthesize(roots, positives, negatives, length, seed=1),
                world.synthesize(roots, positives, negatives, length, round_index=2)):
    assert [sorted(roles(s)) for s in other] == [sorted(roles(s)) for s in one]
    assert [roles(s) for s in other] != [roles(s) for s in one]


def without_nan(sequence):
  return dataclasses.replace(sequence, spans=tuple(
      dataclasses.replace(s, gain=None if s.gain != s.gain else s.gain) for s in sequence.spans))


def test_the_shuffle_gives_every_role_every_place():
  world = World([10] * 40)
  a, b, *near = world.ids[:8]
  places = collections.Counter()
  for seed in range(600):
    positives = [Positive("r", a, 1, 0.5), Positive("r", b, 1, 0.6)]
    negatives = [Negative("r", c, a, 0.5, rank) for rank, c in enumerate(near)]
    (sequence,) = world.synthesize([root("r", 20)], positives, negatives, 100, seed=seed)
    for place, span in enumerate(sequence.spans[:-1]):
      places[span.chunk_id, place] += 1
  counts = np.array([places[chunk, place] for chunk in world.ids[:8] for place in range(8)])
  # Binomial(600, 1/8): mean 75, standard deviation 8.1; 5 of them for the worst of 64
  assert abs(counts - 75).max() < 5 * 8.1


def test_entropylong_is_the_same_without_negatives():
  world = World([10] * 40)
  positives = [Positive(f"r{i}", world.ids[i], 1, 0.5) for i in range(6)]
  (sequence,) = world.synthesize([root(f"r{i}", 20) for i in range(6)], positives, [], 180)
  assert [s.role for s in sequence.spans] == ["positive", "root"] * 6


def test_negatives_of_a_rejected_candidate_come_after_those_of_the_positives_in_each_turn():
  world = World([10] * 9)
  a, b, c, d, e, f = world.ids[:6]
  negatives = [Negative("r", c, b, 0.9, 0), Negative("r", d, b, 0.9, 1), Negative("r", e, a, 0.9, 0),
               Negative("r", f, a, 0.9, 1)]
  (sequence,) = world.synthesize([root("r", 20)], [Positive("r", a, 1, 0.5)], negatives, 60)
  assert {s.chunk_id for s in by_role(sequence, "negative")} == {e, c, f}


def test_a_root_without_positives_makes_no_sequence():
  assert World([10]).synthesize([root("r", 20)], [], [Negative("r", "c0#0-10", "x", 0.9, 0)], 60) == []


def test_a_corpus_that_cannot_fill_the_sequence_says_how_much_is_missing():
  world = World([10] * 4)
  with pytest.raises(UserError, match="lacks 40 of 100 tokens"):
    world.synthesize([root("r", 20)], [Positive("r", world.ids[0], 1, 0.5)], [], 100)


def test_a_root_as_long_as_the_sequence_is_refused():
  world = World([10] * 4)
  with pytest.raises(UserError, match=r"100 tokens and synthesis\.sequence_length is 100"):
    world.synthesize([root("r", 100)], [Positive("r", world.ids[0], 1, 0.5)], [], 100)
