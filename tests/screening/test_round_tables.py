"""What a screened round keeps: every verdict of a small one, of a large one what it needs; negatives for its room."""

import dataclasses
import itertools
import types

import numpy as np
import pyarrow as pa
import pytest

from policylong.config import Synthesis
from policylong.records import Anchor, Candidate, EntropyTrace, Negative, Positive, Root, Verdict
from policylong.retrieval.exact import ExactIndex
from policylong.screening import judge, readings, screen
from policylong.screening.ledger import Ledger, Plan
from policylong.screening.promise import Promise
from policylong.screening.retrieve import Retriever
from policylong.screening.rows import choose_rows
from policylong.screening.summary import summarise
from policylong.screening.verify import Pair, Reading
from policylong.storage import tables
from policylong.storage.workdir import Workdir, read_json, write_json
from policylong.synthesis.filling import Filling
from tests.training.tiny_training import whole_config

SCREENING = dataclasses.replace(whole_config().screening, control_chunks=2)
ROOTS_OF_SHARD, SHARDS = 3, 3


def scored_shard(number, rng):
  """Roots, anchors, and the entropies of all their chunks: (rows of roots, anchors, pairs, proposals, scores)."""
  roots, anchors, pairs, proposals, scores = [], [], [], {}, []
  for i in range(ROOTS_OF_SHARD):
    doc_id = f"letters/{number}-{i}"
    places = np.sort(rng.choice(np.arange(1, 40), rng.integers(0, 5), replace=False))
    roots.append((ROOTS_OF_SHARD * number + i, doc_id, "letters", 0, 9, [1] * 40, ["a"] * 40,
                  [np.nan, *rng.random(39)], [1.0] * 40, 0.5, 7))
    anchors += [Anchor(doc_id, int(t), "a", "a", 3.0, 0.5, 0, 0, 7) for t in places]
    own = [(f"entries/{number}-{i}#{c}-9", int(t), rank) for rank, t in itertools.product(range(2), places)
           for c in rng.integers(0, 6, 1)]
    chunks = {chunk: {t: Candidate(doc_id, t, chunk, "retrieved", rank, 0.5) for c, t, rank in own if c == chunk}
              for chunk, _, _ in own}
    chunks |= {f"real/{number}-{i}#{c}-9": {} for c in range(2)} if len(places) else {}
    for chunk, candidates in chunks.items():
      pairs.append(Pair(doc_id, np.ones(40, np.int32), places.astype(np.int32), np.full(3, 2, np.int32)))
      proposals[doc_id, chunk] = candidates
      before = 3 + rng.random(len(places), np.float32)
      nll = 4 + rng.random(len(places), np.float32)
      scores.append(Reading(before, before * rng.uniform(0.4, 1.1, len(places)).astype(np.float32), nll,
                            nll + rng.uniform(-3, 1, len(places)).astype(np.float32)))
  return roots, anchors, pairs, list(proposals.items()), scores


@pytest.fixture
def judged(tmp_path, monkeypatch):
  """most verdicts -> (the round's folder with its tables, its summary)."""
  def judge_round(most, **settings):
    monkeypatch.setattr(screen, "MOST_VERDICTS", most)
    round_, rng = Workdir(tmp_path / f"{most}-{settings}").round(1), np.random.default_rng(0)
    config = dataclasses.replace(SCREENING, **{"epsilon": 0.4, "epsilon_from_control": None, **settings})
    filling = Filling(64, 0, None)
    account = Ledger(config, filling, 64, 64, Promise.first())
    for number in range(SHARDS):
      roots, anchors, pairs, proposals, scores = scored_shard(number, rng)
      shard = {"scan": pa.table([list(column) for column in zip(*roots)], schema=readings.ROOTS)}
      plan = None if config.budget is None else Plan(Promise.from_json({"one": 1.0, "rank": 1.0}), 2.0)
      shard["rows"] = choose_rows(config, shard["scan"], anchors, pairs, proposals, plan, filling)
      read = [(i, n) for i, (scored, n) in enumerate(zip(*(
          shard["rows"][name].to_pylist() for name in ("scored", "anchors")))) if scored]
      shard["verify"] = readings.verdicts(
          [dataclasses.replace(pairs[i], positions=pairs[i].positions[:n]) for i, n in read],
          [proposals[i] for i, _ in read], [Reading(*(values[:n] for values in scores[i])) for i, n in read], 7)
      for stage, table in shard.items():
        tables.write(round_.shard(stage, number), table)
      tables.write(round_.shard("anchors", number), tables.from_records(Anchor, anchors))
      account.enter(shard["scan"], shard["rows"], shard["verify"])
    ground = screen.Ground(config, None, 64, 64, 0, (), *[None] * 4)
    screen.Screener(ground, None)._judge(round_, 1, account)
    tables.write(round_.table("negatives"), tables.from_records(Negative, []))
    return round_, summarise(config, round_, None)
  return judge_round


def test_the_verdicts_of_a_shard_are_those_of_its_entropies():
  _, _, pairs, proposals, scores = scored_shard(0, np.random.default_rng(1))
  rows = iter(readings.verdicts(pairs, proposals, scores, 7).to_pylist())
  for pair, ((doc_id, chunk_id), own), reading in zip(pairs, proposals, scores, strict=True):
    for t, h0, h1, l0, l1 in zip(pair.positions.tolist(), *(values.tolist() for values in reading), strict=True):
      row, mine = next(rows), own.get(t)
      assert (row["doc_id"], row["chunk_id"], row["position"]) == (doc_id, chunk_id, t)
      assert row["kind"] == ("retrieved" if own else "control") and row["rank"] == (mine.rank if mine else -1)
      assert row["similarity"] == 0.5 if mine else np.isnan(row["similarity"])
      assert (row["entropy_before"], row["entropy_after"], row["gain"]) == (h0, h1, (h0 - h1) / h0)
      assert (row["nll_before"], row["nll_after"]) == (l0, l1)
      assert row["accepted"] is False and row["policy_step"] == 7
  assert next(rows, None) is None
  assert readings.verdicts([], [], [], 7).schema == tables.from_records(Verdict, []).schema


BUDGET = {"budget": 9.0, "probe_share": 0.4}


@pytest.mark.parametrize("settings", [{}, {"control_margin": 0.1}, {"epsilon": None, "epsilon_from_control": 0.1},
                                      BUDGET])
def test_a_large_round_keeps_own_control_and_accepted_verdicts_and_says_the_same(judged, settings):
  whole, all_said = judged(10**9, **settings)
  thin, said = judged(10, **settings)
  rows = tables.read(whole.table("verdicts")).to_pylist()
  wanted = [row for row in rows if row["kind"] == "control" or row["rank"] >= 0 or row["accepted"]]
  assert 10 < len(wanted) < len(rows)
  assert str(tables.read(thin.table("verdicts")).to_pylist()) == str(wanted)  # as text, since NaN is not NaN
  assert tables.read(thin.table("positives")) == tables.read(whole.table("positives"))
  assert said == all_said
  others = [row for row in rows if row["kind"] == "retrieved" and row["rank"] < 0]
  assert said["acceptance"]["other"]["pairs"] == len(others) > said["acceptance"]["other"]["accepted"]
  assert said["acceptance"]["retrieved"]["pairs"] == sum(row["kind"] == "retrieved" for row in rows)
  assert said["acceptance"]["control"]["pairs"] == sum(row["kind"] == "control" for row in rows)


def test_within_a_budget_a_pair_is_an_anchor_that_a_scored_row_read(judged):
  round_, said = judged(10**9, **BUDGET)
  rows = tables.read(round_.table("verdicts")).to_pylist()
  anchors = [row["doc_id"] for row in tables.read(round_.table("anchors")).to_pylist()]
  chunks = {(row["doc_id"], row["chunk_id"]) for row in rows if row["kind"] == "retrieved"}
  every = sum(anchors.count(doc_id) for doc_id, _ in chunks)  # if each row read all anchors of its root
  assert said["acceptance"]["retrieved"]["pairs"] == sum(row["kind"] == "retrieved" for row in rows) < every
  assert said["rows"]["scored"] < said["rows"]["proposed"]


def test_what_was_judged_before_pairs_were_counted_is_judged_again(judged):
  round_, _ = judged(10**9)
  assert screen._is_judged(round_, 1) and not screen._is_judged(round_, 2)
  write_json(round_.judged_path, {name: value for name, value in read_json(round_.judged_path).items()
                                  if name != "verified"})
  assert not screen._is_judged(round_, 1)


def test_each_accepted_chunk_is_a_positive_of_its_root_once_where_it_gains_most(judged):
  round_, said = judged(10**9)
  best = {}
  for row in tables.read(round_.table("verdicts")).to_pylist():
    assert row["accepted"] == (row["gain"] > 0.4)
    key = row["doc_id"], row["chunk_id"]
    if row["accepted"] and row["kind"] == "retrieved" and row["gain"] > best.get(key, (0, 0))[1]:
      best[key] = row["position"], row["gain"]
  found = tables.to_records(Positive, tables.read(round_.table("positives")))
  assert {(p.doc_id, p.chunk_id): (p.position, p.gain) for p in found} == best and said["positives"] == len(best) > 3
  keys = [(p.doc_id, -p.gain) for p in found]
  assert keys == sorted(keys)  # root after root, best first


def sequences_of(length, negatives=None):
  return Synthesis(sequence_length=length, separator="", negatives_per_positive=negatives)


CHUNK, DOCUMENTS, SIZE = 10, 60, 4  # tokens of a chunk; documents, and chunks of each


@pytest.fixture
def library():
  """A corpus of chunks with random vectors: (corpus, vectors)."""
  rng = np.random.default_rng(3)
  vectors = rng.standard_normal((DOCUMENTS * SIZE, 16)).astype(np.float32)
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  corpus = types.SimpleNamespace(
      num_chunks=len(vectors), chunk_document=np.repeat(np.arange(DOCUMENTS), SIZE),
      chunk=lambda row: types.SimpleNamespace(id=f"d{row // SIZE}#{row}-9"), chunk_text=lambda row: str(row),
      chunk_row=lambda chunk_id: int(chunk_id.split("#")[1].split("-")[0]), document_index=lambda name: int(name[1:]))
  return corpus, vectors


class Tokens:
  """Chunks as the policy reads them: tokens of each row."""

  def __init__(self, of_rows):
    self.row = of_rows.__getitem__

  def prepare_rows(self, rows):
    pass


def test_a_candidate_is_never_a_near_copy_and_twelve_tokens_are_none(library):
  corpus, vectors = library
  rng, own, start = np.random.default_rng(4), 3, 30 - 16
  root = Root(f"d{own}", 0, 9, rng.integers(0, 10**6, 60).astype(np.int32), ("a",) * 60)
  entropy = np.where(np.arange(60) == 30, 9.0, 1.0).astype(np.float32)  # its only anchor, whose window begins at 14
  query = vectors[own * SIZE + 1]  # nearest to a chunk of the root's own document
  near = np.argsort(-(vectors.astype(np.float64) @ query.astype(np.float64)), kind="stable").tolist()
  strangers = [row for row in near if row // SIZE != own]
  of_rows = rng.integers(10**6, 2 * 10**6, (len(vectors), 40)).astype(np.int32)
  copies = {strangers[0], strangers[3], *strangers[12::2]}
  for row in copies:
    of_rows[row, 5:18] = root.tokens[start + row % 20:][:13]
  of_rows[strangers[1], 5:17] = root.tokens[start:start + 12]
  of_rows[strangers[2], 5:18] = root.tokens[start - 1:start + 12]  # the first of its thirteen lies before the window

  config = dataclasses.replace(SCREENING, alpha=1.0, skip_tokens=2, query_window=16, near_copy_ngram=13, top_k=4)
  embedder = types.SimpleNamespace(embed_queries=lambda texts: np.stack([query] * len(texts)))
  retriever = Retriever(config, 0, corpus, embedder, ExactIndex(vectors), Tokens(of_rows))
  (anchor,), found = retriever.candidates(1, [root], [EntropyTrace(root.doc_id, entropy, entropy, 7)])
  retrieved, control = ([corpus.chunk_row(c.chunk_id) for c in found if c.kind == kind]
                        for kind in ("retrieved", "control"))
  wanted = [row for row in strangers if row not in copies][:4]
  assert retrieved == wanted and wanted[:2] == strangers[1:3] and anchor.position == 30
  before = near[:near.index(wanted[-1])]
  assert anchor.near_copy == len(copies.intersection(before)) == 2
  assert anchor.same_document == sum(row // SIZE == own for row in before) > 0
  assert len(control) == 2 and not {*control} & {*copies, *retrieved} and own not in [row // SIZE for row in control]


@pytest.mark.parametrize("cap", [3, 1000])
def test_a_root_gets_the_chunks_nearest_to_its_positives_several_times_its_room(library, cap, monkeypatch):
  corpus, vectors = library
  config = dataclasses.replace(SCREENING, negatives="positives")
  monkeypatch.setattr("policylong.screening.retrieve._MOST", cap)
  embedder = types.SimpleNamespace(embed_documents=lambda texts: vectors[[int(text) for text in texts]])
  retriever = Retriever(config, 0, corpus, embedder, ExactIndex(vectors), lambda chunk_id: np.zeros(CHUNK, np.int32))
  roots = [Root(f"d{i}", 0, 9, np.zeros(20, np.int32), ("a",) * 20) for i in (5, 2, 9)]
  rows = {"d5": [100], "d2": [50, 51, 70, 110, 130], "d9": list(range(100, 120))}  # the last fill the sequence
  positives = [Positive(doc_id, f"d{row // SIZE}#{row}-9", 3, 0.5) for doc_id, own in rows.items() for row in own]
  monkeypatch.setattr("policylong.screening.retrieve._BLOCK", 2)
  found = retriever.negatives(roots, positives, [], sequences_of(200))
  # (200 - 20 - 10) tokens of room are 17 chunks, 130 are 13; four times that, over the positives
  wanted = {"d5": min(cap, 68), "d2": min(cap, 11), "d9": 0}
  expected = []
  for positive in positives:
    row, doc_id = corpus.chunk_row(positive.chunk_id), positive.doc_id
    near = np.argsort(-(vectors.astype(np.float64) @ vectors[row].astype(np.float64)), kind="stable")
    near = [int(n) for n in near if n // SIZE != int(doc_id[1:]) and n not in rows[doc_id]][:wanted[doc_id]]
    expected += [(doc_id, f"d{n // SIZE}#{n}-9", positive.chunk_id, rank) for rank, n in enumerate(near)]
  assert [(n.doc_id, n.chunk_id, n.of_chunk, n.rank) for n in found] == expected
  assert len(expected) == wanted["d5"] + 5 * wanted["d2"]


def test_refused_candidates_are_dealt_out_behind_the_similar_chunks(library, monkeypatch):
  corpus, vectors = library
  config = dataclasses.replace(SCREENING, negatives="both")
  monkeypatch.setattr("policylong.screening.retrieve._MOST", 2)
  embedder = types.SimpleNamespace(embed_documents=lambda texts: vectors[[int(text) for text in texts]])
  retriever = Retriever(config, 0, corpus, embedder, ExactIndex(vectors), lambda chunk_id: np.zeros(CHUNK, np.int32))
  roots = [Root(f"d{i}", 0, 9, np.zeros(20, np.int32), ("a",) * 20) for i in (5, 2)]
  positives = [Positive(doc_id, f"d25#{row}-9", 3, 0.5) for doc_id, row in (("d5", 100), ("d5", 101), ("d2", 102))]
  rejected = [("d2", "d30#120-9"), *(("d5", f"d31#{row}-9") for row in range(124, 130))]
  found = retriever.negatives(roots, positives, rejected, sequences_of(200))
  assert [n.doc_id for n in found] == ["d5"] * 8 + ["d2"] * 3
  dealt = [(n.chunk_id, n.of_chunk, n.rank) for n in found if np.isnan(n.similarity)]
  assert dealt == [("d31#124-9", "d25#100-9", 2), ("d31#125-9", "d25#101-9", 2), ("d31#126-9", "d25#100-9", 3),
                   ("d31#127-9", "d25#101-9", 3), ("d30#120-9", "d25#102-9", 2)]


@pytest.mark.parametrize("most", [10, 10**9])
def test_rejected_is_what_no_anchor_accepted_also_of_a_large_round(judged, most):
  whole, _ = judged(10**8)
  accepted = {}
  for row in tables.read(whole.table("verdicts")).to_pylist():
    if row["kind"] == "retrieved":
      accepted.setdefault((row["doc_id"], row["chunk_id"]), []).append(row["gain"] > 0.4)
  round_, _ = judged(most)
  found = judge.rejected(tables.read(round_.table("verdicts")))
  assert sorted(found) == sorted(pair for pair, passed in accepted.items() if not any(passed)) and len(found) > 3
