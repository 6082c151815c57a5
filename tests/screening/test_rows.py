"""What a row of a budget reads: up to which anchor, and what is counted of it; each by hand."""

import contextlib
import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from policylong import loop
from policylong.records import Anchor, Candidate
from policylong.screening import costs, readings
from policylong.screening.ledger import Ledger, Plan
from policylong.screening.promise import Promise
from policylong.screening.rows import choose_rows
from policylong.screening.verify import Pair
from policylong.storage.workdir import Workdir
from policylong.synthesis.filling import Filling
from tests.training.tiny_training import whole_config

PLACES = np.array([3, 10, 30], np.int32)
OWN = {"early": [3], "both": [10, 3], "late": [30], "random": []}  # the anchors that retrieved a chunk of 5 tokens
OTHERS = np.arange(50, 55, dtype=np.int32)
REPEATS = np.array([90, 9, 10, 91, 30], np.int32)  # two tokens up to the second anchor, one of the third
CONFIG = dataclasses.replace(whole_config().screening, probe_share=0.4, budget=9.0, bucket_multiple=16)


def shard(plan, documents=("a", "b"), tokens=OTHERS):
  """The rows of two roots of 40 tokens, the first of the probe, and chunks of these tokens."""
  roots = pa.table([list(column) for column in zip(*(
      (number, doc_id, "letters", 0, 9, list(range(40)), ["a"] * 40, [1.0] * 40, [1.0] * 40, 0.5, 7)
      for number, doc_id in enumerate(documents)))], schema=readings.ROOTS)
  pairs, proposals = [], []
  for doc_id in documents:
    for chunk, own in OWN.items():
      pairs.append(Pair(doc_id, np.arange(40, dtype=np.int32), PLACES, tokens))
      proposals.append(((doc_id, chunk), {t: Candidate(doc_id, t, chunk, "retrieved", 0, 0.5) for t in own}))
  anchors = [Anchor(doc_id, int(t), "a", "a", 3.0, 0.5, 0, 0, 7) for doc_id in documents for t in PLACES]
  return roots, choose_rows(CONFIG, roots, anchors, pairs, proposals, plan, Filling(400, 1, 1))


def test_a_row_ends_at_the_last_anchor_that_retrieved_its_chunk_or_that_it_repeats_but_in_the_probe():
  _, rows = shard(Plan(Promise.first(), 1e9))
  assert rows["probe"].to_pylist() == [True] * 4 + [False] * 4
  assert rows["anchors"].to_pylist() == [3, 3, 3, 3, 1, 2, 3, 3]
  assert rows["within"].to_pylist() == [1, 2, 3, 3, 1, 2, 3, 3]
  assert rows["tokens"].to_pylist() == [36, 36, 36, 36, 9, 16, 36, 36]
  assert rows["padded"].to_pylist() == [48, 48, 48, 48, 16, 16, 48, 48]
  _, rows = shard(Plan(Promise.first(), 1e9), tokens=REPEATS)
  assert rows["within"].to_pylist() == [2, 2, 3, 3, 2, 2, 3, 3]
  assert rows["anchors"].to_pylist() == [3, 3, 3, 3, 2, 2, 3, 3]


def test_without_a_budget_every_row_reads_every_anchor():
  _, rows = shard(None)
  assert rows["anchors"].to_pylist() == [3] * 8 and rows["tokens"].to_pylist() == [36] * 8
  assert all(rows["scored"].to_pylist())


def test_a_shorter_row_is_chosen_sooner_in_the_probe_as_elsewhere():
  _, rows = shard(Plan(Promise.first(), 0.0))  # nothing keeps such a rate: the choice that comes nearest
  chosen = dict(zip(zip(rows["doc_id"].to_pylist(), rows["chunk_id"].to_pylist()), rows["chosen"].to_pylist()))
  assert chosen["b", "early"] >= chosen["b", "late"] and chosen["a", "early"] == chosen["b", "early"]


@pytest.mark.parametrize("anchor, there, found", [(0, 1, 1), (1, 1, 0)])
def test_the_probe_knows_what_lies_beyond_the_end_of_a_row(anchor, there, found):
  roots, rows = shard(Plan(Promise.first(), 1e9))
  counts = rows.filter(rows["scored"])["anchors"].to_numpy()
  accepted = np.zeros(counts.sum(), bool)
  accepted[anchor] = True  # of the first row, of the probe: its chunk was retrieved by the first anchor alone
  verdicts = pa.table({"gain": np.full(counts.sum(), 0.5)})
  assert costs.best_gains(rows, verdicts, accepted).tolist() == [0.5] + [0.0] * 7
  assert costs.best_gains(rows, verdicts, accepted, within=True)[0] == 0.5 * found
  account = costs.Costs(budgeted=True)
  account.enter(roots, rows, verdicts, accepted)
  told = account.summary()["probe"]
  assert (told["positives"], told["found"]) == (there, found)


@pytest.mark.parametrize("spent, filled, rate", [
    (0, 0, 9.0), (1800, 200, 9.0),
    (900, 200, 9.0),  # what was saved is kept
    (2800, 300, 8.0),  # 3600 may be spent for 400 tokens; 100 are left to fill
    (4000, 300, 0.0)])
def test_a_token_is_worth_what_the_budget_says_or_less_if_too_much_was_spent(spent, filled, rate):
  account = Ledger(CONFIG, Filling(400, 1, 0), 400, 400, Promise.first())
  account.spent = spent
  if filled:
    account.filling.add(filled - 10, [10])
  assert account.plan().rate == pytest.approx(rate)


@pytest.mark.parametrize("spent, filled, rate", [
    (0, 0, 1.6),  # a fifth of what is filled is trained on, at 8 tokens for each
    (8_000, 10, 1.6),  # what was saved is kept
    (40_000, 10, 1.0),  # 40,000 are left for 40 sequences of 1,000 tokens
    (79_000, 19, 1_000 / 31_000), (80_000, 40, 0.0)])
def test_where_training_takes_a_share_the_price_is_of_all_that_must_be_filled(spent, filled, rate):
  config = dataclasses.replace(CONFIG, budget=8.0)
  account = Ledger(config, Filling(1_000, 1, 0), 10_000, 50_000, Promise.first())
  account.spent = spent
  for _ in range(filled):
    account.filling.add(900, [100])
  assert account.filling.sequences == filled
  assert account.plan().rate == pytest.approx(rate)


@pytest.mark.parametrize("share, sequences", [(None, 24), (0.3, 80)])
def test_a_round_fills_what_training_chooses_from_and_pays_for_what_it_reads(share, sequences, tmp_path):
  config = whole_config(longfilter_share=share)  # 6 steps of 4 sequences
  stages = loop._Stages(config, Workdir(tmp_path), contextlib.ExitStack())
  # What a corpus and a model would be read for.
  stages.__dict__ |= dict.fromkeys(("searched", "corpus", "tokenizer", "chunk_tokens"), (None, None))
  length = config.synthesis.sequence_length
  assert (stages.ground.trained_tokens, stages.ground.filled_tokens) == (24 * length, sequences * length)
