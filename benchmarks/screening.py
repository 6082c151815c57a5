"""What a budget buys: tokens scored for what training reads, against the screening that verifies everything.

  python -m benchmarks.screening [--worlds=planted,code,speeches] [--workdir=runs/screening]

Each world's roots are verified in full once, every row, by the real programs; what was read is kept in the work
directory, and all that follows chooses among these readings with the real `Screener`. A right positive is a chunk
that passes by entropy and loss at some anchor of its root.

  before: every row of every root that the round may ask for, positives by entropy alone, each root filled up with as
          many negatives as fit, of which training reads the first sequences: how this project screened at first.
  after:  rounds that stop when they are fed, within a budget, by entropy and loss, one negative a positive.

Then the same roots in ten orders, with the budget that scores three rows in ten: what share of the right positives of
the roots that it screened the budget found, and whether the probe's interval holds that share. Where the truth is
known, what share of the positives holds it.

Hardware: 2 CPU cores; ten minutes for the planted world or a corpus of the demo, most of it the full verification.
"""

import argparse
import contextlib
import dataclasses
import itertools
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import screening_worlds
from policylong.errors import UserError
from policylong.padding import bucket
from policylong.records import Negative, Positive
from policylong.screening import judge, screen
from policylong.screening.promise import LONGEST, Promise, repeats
from policylong.screening.readings import read_roots
from policylong.screening.scorer import Policy
from policylong.storage import tables
from policylong.storage.workdir import Workdir, read_json
from policylong.synthesis.method import Screened
from policylong.synthesis.policylong import synthesize

MANY = 10**9
ROWS = 0.3  # the share of its rows that a cheap round scores


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--worlds", default=",".join(screening_worlds.WORLDS))
  parser.add_argument("--workdir", default="runs/screening", type=pathlib.Path)
  options = parser.parse_args()
  for name in options.worlds.split(","):
    world = screening_worlds.WORLDS[name](options.workdir)
    known = Known(world, options.workdir / name)
    print(f"\n{name}: {known.describe()}", flush=True)
    known.print_repeats()
    known.print_bought()
    known.print_truth()
    known.print_found(orders=10)


@dataclasses.dataclass(frozen=True)
class Bought:
  """A round: what it scored, and the tokens of its sequences that training reads, and of right positives in them."""
  scored: int
  roots: int
  sequences: int
  positives: int
  right: int
  trained: int

  @property
  def price(self) -> float:
    """Tokens scored for each token of a right positive."""
    return self.scored / max(1, self.right)

  def __str__(self) -> str:
    return (f"{self.scored:,} tokens scored of {self.roots} roots, {self.scored / self.trained:.1f} for each token "
            f"that training reads; {self.sequences} sequences, positives {self.positives / self.trained:.0%} of their "
            f"tokens, right ones {self.right / self.trained:.0%}; {self.price:.1f} scored for each token of such")


@dataclasses.dataclass(frozen=True)
class Found:
  """What a budget found. rows: share that it scored; share: of the positives of its roots; low, high: the probe's.

  The last three are none where nothing passed.
  """
  rows: float
  share: float = np.nan
  low: float = np.nan
  high: float = np.nan


class InOrder(screen.Screener):
  """Screens the round's roots in another order."""

  def __init__(self, ground: screen.Ground, policy: Policy, order: int):
    super().__init__(ground, policy)
    self._order = order

  def _shards(self, round_index: int) -> list[list[int]]:
    shards = super()._shards(round_index)
    documents = np.random.default_rng(self._order).permutation(np.concatenate(shards)).tolist()
    return [documents[i:i + len(shards[0])] for i in range(0, len(documents), len(shards[0]))]


class KnownScorer:
  """Answers what a round has read already, by the tokens of a row."""

  def __init__(self, bucket):
    self.bucket, self._traces, self._rows = bucket, {}, {}

  def learn(self, roots, verdicts, chunk_tokens) -> None:
    """The rows of a shard."""
    of_root = {}
    for root, trace in zip(*read_roots(roots)):
      self._traces[root.tokens.tobytes()] = trace.entropy, trace.nll
      of_root[root.doc_id] = root.tokens
    names = ("entropy_before", "entropy_after", "nll_before", "nll_after")
    read = np.stack([verdicts[name].to_numpy().astype(np.float32) for name in names])
    positions = verdicts["position"].to_numpy()
    for (doc_id, chunk_id), rows in rows_of(verdicts).items():
      for count, position in enumerate(positions[rows], start=1):  # a row may end at any anchor
        window, of = of_root[doc_id][:position + 1], slice(rows.start, rows.start + count)
        self._rows[window.tobytes()] = read[0, of], read[2, of]
        self._rows[np.concatenate([chunk_tokens(chunk_id), window]).tobytes()] = read[1, of], read[3, of]

  def traces(self, rows, progress):
    """As `Scorer`'s."""
    return [self._traces[np.asarray(row, np.int32).tobytes()] for row in rows]

  def likelihoods(self, rows, most_positions, progress):
    """As `Scorer`'s."""
    return [self._rows[row.tokens.tobytes()] for row in rows]


def rows_of(verdicts) -> dict[tuple[str, str], slice]:
  """{(doc id, chunk id): its verdicts}, which stand together."""
  keys = list(zip(verdicts["doc_id"].to_pylist(), verdicts["chunk_id"].to_pylist()))
  starts = [i for i in range(len(keys)) if not i or keys[i] != keys[i - 1]]
  return {keys[start]: slice(start, end) for start, end in zip(starts, [*starts[1:], len(keys)])}


def _keys(rows: pa.Table) -> set[tuple[str, str]]:
  """The (root, chunk) pairs of a table."""
  return set(zip(rows["doc_id"].to_pylist(), rows["chunk_id"].to_pylist()))


class Known:
  """A world whose rows are all read."""

  def __init__(self, world: screening_worlds.World, folder: pathlib.Path):
    self.world, self.folder = world, folder
    self.whole = Workdir(folder / "whole").round(1)
    self._screen(self.whole, world.policy, {"budget": None}, None, MANY)
    self.judged = read_json(self.whole.judged_path)
    self.limits = judge.Thresholds(**self.judged["thresholds"])
    self.scorer = KnownScorer(lambda length: bucket(length, world.ground.config.bucket_multiple))
    self.verdicts = [tables.read(self.whole.shard("verify", i)) for i in range(self.judged["shards"])]
    for i, verdicts in enumerate(self.verdicts):
      self.scorer.learn(tables.read(self.whole.shard("scan", i)), verdicts, world.ground.chunk_tokens)
    self.right = self._right(self.limits)

  def describe(self) -> str:
    """Roots, rows, and what there is to find."""
    judged = self.judged
    roots = tables.read(self.whole.table("roots")).num_rows
    verdicts = tables.read(self.whole.table("verdicts"))
    kinds, ranks = (verdicts[name].to_numpy(zero_copy_only=False) for name in ("kind", "rank"))
    surer, both = verdicts["gain"].to_numpy() > self.limits.epsilon, verdicts["accepted"].to_numpy()
    groups = {"own": (kinds == "retrieved") & (ranks >= 0), "other": (kinds == "retrieved") & (ranks < 0),
              "control": kinds == "control"}
    told = "; ".join(f"{name} {both[of].mean():.2%} of {of.sum():,} ({surer[of].mean():.2%} by entropy alone)"
                     for name, of in groups.items())
    return (f"{roots} roots, {judged['rows']['proposed']} rows, {judged['tokens']['scored']:,} tokens scored, padding "
            f"{1 - judged['tokens']['scored'] / judged['tokens']['padded']:.0%}; epsilon {self.limits.epsilon:.2f}, "
            f"loss margin {self.limits.loss_margin:.2f} nats; pass by entropy and loss: {told}; {len(self.right)} "
            "right positives")

  def print_repeats(self) -> None:
    """How often a chunk passes at an anchor, by how many tokens it repeats of the root up to and with the anchor's."""
    passes, pairs = (np.zeros(LONGEST + 1, int) for _ in range(2))
    for i, verdicts in enumerate(self.verdicts):
      of_root = {root.doc_id: root.tokens for root in read_roots(tables.read(self.whole.shard("scan", i)))[0]}
      accepted, positions = judge.accepted(verdicts, self.limits), verdicts["position"].to_numpy()
      retrieved = verdicts["kind"].to_numpy(zero_copy_only=False) == "retrieved"
      for (doc_id, chunk_id), rows in rows_of(verdicts).items():
        if retrieved[rows.start]:
          length = repeats(of_root[doc_id], positions[rows], self.world.ground.chunk_tokens(chunk_id))
          np.add.at(pairs, length, 1)
          np.add.at(passes, length, accepted[rows])
    print("  passes at an anchor, by the tokens that the chunk repeats: " + ", ".join(
        f"{n}: {share / count:.1%} of {count:,}" for n, (share, count) in enumerate(zip(passes, pairs)) if count))

  def print_bought(self) -> None:
    """Before and after."""
    before = self.before()
    print(f"  before {before}", flush=True)
    try:
      after = self.after()
    except UserError as error:
      print(f"  after  nothing: {error}", flush=True)
      return
    print(f"  after  {after}\n  {before.price / after.price:.1f} times fewer tokens scored for each token of a right "
          "positive that training reads", flush=True)

  def before(self) -> Bought:
    """As at first: everything is scored, and most of it for sequences that nobody reads."""
    return self._bought(self._round("before", {"budget": None, "evidence": "entropy"}, None, MANY), None)

  def after(self) -> Bought:
    """Within the world's budget, fed and no more."""
    return self._bought(self._round("after", {"budget": self.world.budget}, 1, self.world.sequences), 1)

  def print_truth(self) -> None:
    """What share of the positives of the full verification holds the truth, by either evidence."""
    if self.world.truth is None:
      return
    for evidence, limits in (("entropy", dataclasses.replace(self.limits, loss_margin=None)),
                             ("entropy and loss", self.limits)):
      accepted = [row for verdicts in self.verdicts
                  for row in verdicts.filter(pa.array(judge.accepted(verdicts, limits))).to_pylist()
                  if row["kind"] == "retrieved"]
      print(f"  by {evidence}: {self.world.truth(self.whole, accepted)}", flush=True)

  def print_found(self, orders: int) -> None:
    """What budgets that score three rows in ten find, and whether the probe tells it."""
    low, high = 0.0, self.world.budget * 4
    for _ in range(6):
      budget = (low + high) / 2
      found = [self._found(budget, order) for order in range(orders)]
      low, high = (low, budget) if np.mean([one.rows for one in found]) > ROWS else (budget, high)
    passed = [one for one in found if not np.isnan(one.share)]
    held = sum(one.low <= one.share <= one.high for one in passed)
    print(f"  budget {budget:.1f}: {np.mean([one.rows for one in found]):.0%} of the rows scored; in {len(passed)} of "
          f"{orders} orders something passed: {np.mean([one.share for one in passed]):.0%} of the right positives "
          "found (by order: " + ", ".join(f"{one.share:.0%} told {one.low:.0%}-{one.high:.0%}" for one in passed)
          + f"), in the probe's interval {held} times", flush=True)

  def _found(self, budget: float, order: int) -> Found:
    """Of a round that screens the roots in an order of its own."""
    round_ = Workdir(self.folder / "share").round(1)
    with contextlib.suppress(UserError):  # of a corpus with little to find nothing may pass
      self._round("share", {"budget": budget}, 1, self.world.sequences, order)
    shards = itertools.takewhile(lambda i: round_.shard("verify", i).exists(), itertools.count())
    rows = pa.concat_tables([tables.read(round_.shard("rows", i)) for i in shards])
    rows = rows.filter(pc.invert(rows["control"]))
    taken = rows.filter(rows["scored"])
    share = taken.num_rows / rows.num_rows
    if not round_.judged_path.exists():
      return Found(share)
    judged = read_json(round_.judged_path)
    right = _keys(rows) & self._right(judge.Thresholds(**judged["thresholds"]))
    found = right & _keys(tables.read(round_.table("positives")))  # a row may end before the anchor at which it passes
    return Found(share, len(found) / max(1, len(right)), judged["probe"]["low"], judged["probe"]["high"])

  def _right(self, limits: judge.Thresholds) -> set[tuple[str, str]]:
    """The (root, chunk) pairs that pass these thresholds in the full verification."""
    right = set()
    for verdicts in self.verdicts:
      passed = judge.accepted(verdicts, limits) & (verdicts["kind"].to_numpy(zero_copy_only=False) == "retrieved")
      right |= {key for key, rows in rows_of(verdicts).items() if passed[rows].any()}
    return right

  def _round(self, name: str, changes: dict, negatives: int | None, sequences: int, order: int | None = None):
    """A round that looks its readings up."""
    round_ = Workdir(self.folder / name).round(1)
    shutil.rmtree(round_.directory, ignore_errors=True)
    self._screen(round_, Policy(0, self.scorer), changes, negatives, sequences, order)
    return round_

  def _screen(self, round_, policy, changes: dict, negatives: int | None, sequences: int, order: int | None = None
              ) -> None:
    ground = self.world.ground
    ground = dataclasses.replace(ground, config=dataclasses.replace(ground.config, **changes),
                                 synthesis=dataclasses.replace(ground.synthesis, negatives_per_positive=negatives))
    screener = screen.Screener(ground, policy) if order is None else InOrder(ground, policy, order)
    screener.screen(round_, sequences, Promise.first())

  def _bought(self, round_, negatives: int | None) -> Bought:
    """What training reads of a round."""
    world, scored = self.world, read_json(round_.judged_path)["tokens"]["scored"]
    roots, _ = read_roots(tables.read(round_.table("roots")))
    positives, ranked = (tables.to_records(kind, tables.read(round_.table(name)))
                         for name, kind in (("positives", Positive), ("negatives", Negative)))
    made: list = []
    ground = world.ground
    screened = Screened(roots, positives, ranked, ground.chunk_tokens, ground.retriever.filler(1), negatives)
    for sequence in synthesize(screened, separator=ground.chunk_tokens.separator,
                               length=ground.synthesis.sequence_length, seed=0, round_index=1, policy_step=0):
      made.append(sequence)
      if len(made) == world.sequences:
        break
    spans = [span for sequence in made for span in sequence.spans if span.role == "positive"]
    right = [span for span in spans if (span.doc_id, span.chunk_id) in self.right]
    tokens = [sum(span.end - span.start for span in of) for of in (spans, right)]
    return Bought(scored, len(roots), len(made), *tokens, len(made) * world.ground.synthesis.sequence_length)


if __name__ == "__main__":
  main()
