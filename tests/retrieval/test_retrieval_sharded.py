"""An index whose rows are spread over processes answers as one index over all rows does."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from policylong.devices import hosts
from policylong.retrieval import store
from policylong.retrieval.exact import ExactIndex
from policylong.retrieval.scann_index import ScannIndex
from policylong.retrieval.sharded import ShardedIndex, merge
from tests.retrieval.test_retrieval_store import CONFIG, Counting, FakeCorpus


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


@pytest.mark.parametrize("leaves", [None, 12])
def test_processes_embed_and_keep_whole_files_of_their_own_rows(together, tmp_path, monkeypatch, leaves):
  monkeypatch.setattr(store, "SHARD_ROWS", 64)
  corpus, config = FakeCorpus(300), dataclasses.replace(CONFIG, leaves=leaves)  # five files
  embedders = [Counting() for _ in range(3)]
  queries = Counting().embed_queries([corpus.chunk_text(row) for row in (3, 130, 299)])

  def process(i):
    return store.open_index(corpus, embedders[i], config, tmp_path, seed=0).search(queries, 5)

  answers = together(process, 3)
  tuning = 300 if leaves else 0
  assert [embedder.embedded - tuning for embedder in embedders] == [64, 128, 108]
  assert len(list(tmp_path.glob("rows-*/*.npy"))) == 5 and len(list(tmp_path.glob("index-*/"))) == 3
  assert len(list(tmp_path.glob("rows-*/*MANIFEST.json"))) == 3
  for found, _ in answers:
    np.testing.assert_array_equal(found[:, 0], [3, 130, 299])
  again = [Counting() for _ in range(3)]
  embedders[:] = again
  together(process, 3)
  assert [embedder.embedded for embedder in again] == [0, 0, 0]
  # One process goes on with the vectors that three have left.
  monkeypatch.undo()
  monkeypatch.setattr(store, "SHARD_ROWS", 64)
  alone = Counting()
  store.open_index(corpus, alone, config, tmp_path, seed=0)
  assert alone.embedded == tuning
