"""An index whose rows are spread over processes answers as one index over all rows does."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from policylong.devices import hosts
from policylong.retrieval import rows as rows_lib
from policylong.retrieval import store
from policylong.retrieval.exact import ExactIndex
from policylong.retrieval.index import merge
from policylong.retrieval.scann_index import ScannIndex
from policylong.retrieval.sharded import ShardedIndex
from tests.retrieval.test_retrieval_store import CONFIG, Counting, FakeCorpus, in_pieces_of


@pytest.fixture
def together(monkeypatch):
  """Runs a function in P threads that take each other for processes; returns their results."""
  mine = threading.local()

  def run(function, count):
    meeting, given = threading.Barrier(count), {}

    def all_gather(array):
      meeting.wait(60)
      given[mine.index] = np.ascontiguousarray(array)
      meeting.wait(60)
      return [given[i] for i in range(count)]

    def process(index):
      mine.index = index
      return function(index)

    monkeypatch.setattr(hosts, "count", lambda: count)
    monkeypatch.setattr(hosts, "index", lambda: mine.index)
    monkeypatch.setattr(hosts, "all_gather", all_gather)
    monkeypatch.setattr(hosts, "barrier", lambda name: meeting.wait(60))
    with ThreadPoolExecutor(count) as threads:
      return list(threads.map(process, range(count)))
  return run


def vectors(count, dim=16, seed=0):
  x = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def brute_force(rows, queries, k):
  """The k best rows by a float64 product, of equal scores the lower row first."""
  scores = queries.astype(np.float64) @ rows.T.astype(np.float64)
  return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("kind", ["exact", "scann"])
@pytest.mark.parametrize("ends", [(150, 300), (64, 64, 200, 300), (300,)])
def test_every_process_gets_the_answers_of_one_index_to_its_own_queries(together, kind, ends):
  rows, k = vectors(300), 20
  rows[250] = rows[40]  # a tie across parts
  queries = [vectors(5 * i, seed=i + 1) for i in range(len(ends))]  # the first has none
  queries[-1] = np.concatenate([queries[-1], rows[40:41]])
  whole = ExactIndex(rows) if kind == "exact" else ScannIndex.build(
      rows, leaves=None, target_recall=0.9, queries=rows[:0])
  bounds = [0, *ends]

  def process(i):
    part = rows[bounds[i]:bounds[i + 1]]
    if not len(part):
      index = None
    elif kind == "exact":
      index = ExactIndex(part, of_rows=len(rows))
    else:
      index = ScannIndex.build(part, leaves=None, target_recall=0.9, queries=rows[:0])
    return ShardedIndex(index, bounds[i], len(rows), rows.shape[1]).search(queries[i], k)

  for i, (found, scores) in enumerate(together(process, len(ends))):
    wanted, wanted_scores = whole.search(queries[i], k)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(scores, wanted_scores)  # the same bits
    np.testing.assert_array_equal(found, brute_force(rows, queries[i], k))


def test_many_queries_are_answered_in_groups(together, monkeypatch):
  monkeypatch.setattr("policylong.retrieval.sharded._QUERIES", 8)
  rows, queries = vectors(40), [vectors(13, seed=1), vectors(6, seed=2), vectors(0), vectors(1, seed=3)]

  def process(i):
    return ShardedIndex(ExactIndex(rows[10 * i:10 * i + 10], of_rows=40), 10 * i, 40, 16).search(queries[i], 3)

  for mine, (found, _) in zip(queries, together(process, 4)):
    np.testing.assert_array_equal(found, brute_force(rows, mine, 3).reshape(len(mine), 3))


def test_more_hits_than_rows_end_with_none(together):
  rows = vectors(5)

  def process(i):
    return ShardedIndex(ExactIndex(rows[:3] if i == 0 else rows[3:], of_rows=5), 3 * i, 5, 16).search(rows[:2], 7)

  for found, scores in together(process, 2):
    assert (found[:, 5:] == -1).all() and np.isneginf(scores[:, 5:]).all()
    np.testing.assert_array_equal(np.sort(found[:, :5]), np.tile(np.arange(5), (2, 1)))


def test_merging_takes_the_best_scores_and_of_equal_ones_the_lower_rows():
  rows, scores = merge(np.array([[7, 2, -1, 5]], np.int32), np.array([[1, 1, -np.inf, 2]], np.float32), 3)
  assert rows.tolist() == [[5, 2, 7]] and scores.tolist() == [[2, 1, 1]]


@pytest.mark.parametrize("config", [
    CONFIG, dataclasses.replace(CONFIG, index="exact"), dataclasses.replace(CONFIG, leaves=12), in_pieces_of(128),
    in_pieces_of(128, leaves=24), in_pieces_of(64, leaves=24)],
    ids=["brute force", "exact", "a tree", "three pieces", "three trees", "five trees"])
@pytest.mark.parametrize("count", [2, 3, 7])  # of seven, some have nothing
def test_an_index_is_the_same_for_any_number_of_processes(together, tmp_path, monkeypatch, config, count):
  monkeypatch.setattr(rows_lib, "SHARD_ROWS", 64)
  corpus = FakeCorpus(300)  # five files
  queries = Counting().embed_queries([corpus.chunk_text(row) for row in range(0, 300, 11)])
  alone = store.open_index(corpus, Counting(), config, tmp_path / "alone", seed=0).search(queries, 5)
  embedders = [Counting() for _ in range(count)]

  def process(i):
    return store.open_index(corpus, embedders[i], config, tmp_path / "many", seed=0).search(queries, 5)

  for answer in together(process, count):
    for one, other in zip(answer, alone):
      np.testing.assert_array_equal(one, other)  # the same bits
  # Each embedded its share of the files; and the queries that trees are tuned on, where it has a tree.
  files = [64 * (5 * (i + 1) // count - 5 * i // count) for i in range(count)]
  files[-1] -= 20  # the last file has 44
  assert [embedder.embedded - mine in (0, 300) for embedder, mine in zip(embedders, files)] == [True] * count
  assert len(list((tmp_path / "many").glob("rows-*/*.npz"))) == 5
  embedders[:] = [Counting() for _ in range(count)]
  together(process, count)
  assert [embedder.embedded for embedder in embedders] == [0] * count
  # One process goes on with what several have left.
  monkeypatch.undo()
  monkeypatch.setattr(rows_lib, "SHARD_ROWS", 64)
  again = Counting()
  found, _ = store.open_index(corpus, again, config, tmp_path / "many", seed=0).search(queries, 5)
  np.testing.assert_array_equal(found, alone[0])
  assert again.embedded == 0


def test_processes_that_share_no_folder_embed_what_their_pieces_need(together, tmp_path, monkeypatch):
  monkeypatch.setattr(rows_lib, "SHARD_ROWS", 64)
  corpus, config = FakeCorpus(300), in_pieces_of(128, leaves=24)
  queries = Counting().embed_queries([corpus.chunk_text(row) for row in (3, 130, 299)])
  wanted = store.open_index(corpus, Counting(), config, tmp_path / "alone", seed=0).search(queries, 5)
  answers = together(lambda i: store.open_index(corpus, Counting(), config, tmp_path / str(i), 0).search(queries, 5), 2)
  for answer in answers:
    np.testing.assert_array_equal(answer[0], wanted[0])
    np.testing.assert_array_equal(answer[1], wanted[1])
