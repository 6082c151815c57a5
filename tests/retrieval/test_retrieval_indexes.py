"""Exact search and ScaNN against float64 numpy, and a guard for each of ScaNN's traps."""

import json
import pickle

import numpy as np
import pytest

from policylong.errors import Damaged, UserError
from policylong.retrieval import scann_index
from policylong.retrieval.exact import ExactIndex
from policylong.retrieval.pieces import PiecedIndex
from policylong.retrieval.scann_index import ScannIndex, recall_of
from policylong.storage import manifest


def clustered(rows: int, dim: int, seed: int = 0) -> np.ndarray:
  """float32[rows, dim] of length 1 around 200 centres."""
  rng = np.random.default_rng(seed)
  centres = np.random.default_rng(99).standard_normal((200, dim))
  points = centres[rng.integers(200, size=rows)] + 0.6 * rng.standard_normal((rows, dim))
  return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def brute_force(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows and scores in float64, lower rows first among equals."""
  scores = queries.astype(np.float64) @ rows.astype(np.float64).T
  order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return order, np.take_along_axis(scores, order, axis=1)


@pytest.fixture(scope="module")
def tree():
  """(rows, queries, a tree over them); enough rows for a tree to be made without being asked for."""
  rows, queries = clustered(scann_index.BRUTE_FORCE_BELOW + 500, 48), clustered(300, 48, seed=1)
  return rows, queries, ScannIndex.build(rows, leaves=None, target_recall=0.95, queries=queries)


def build(kind: str, rows: np.ndarray):
  """One of the three ways to search."""
  if kind == "exact":
    return ExactIndex(rows)
  return ScannIndex.build(rows, leaves=20 if kind == "tree" else None, target_recall=0.9, queries=rows[:50])


KINDS = ("exact", "brute force", "tree")


@pytest.mark.parametrize("rows,k", [(1, 1), (70, 10), (5000, 10), (9000, 33)])
def test_exact_search_finds_what_float64_finds(rows, k):
  data, queries = clustered(rows, 48), clustered(130, 48, seed=1)  # no multiple of the batch of 64
  found, scores = ExactIndex(data).search(queries, k)
  wanted, wanted_scores = brute_force(data, queries, k)
  np.testing.assert_allclose(scores, wanted_scores, atol=1e-6)  # float32 sums of 48 terms
  # where two scores are that close, either row may come first
  swapped = found != wanted
  assert swapped.mean() < 1e-3
  assert recall_of(found, wanted) > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_gets_the_same_bits_whatever_is_asked_with_it(kind):
  data, queries = clustered(1000, 64), clustered(300, 64, seed=1)
  index = build(kind, data)
  found, scores = index.search(queries, 10)
  for count in (1, 2, 9, 33, 65, 257):  # ScaNN cuts a batch into 256s, and has another kernel for a few queries
    again, again_scores = index.search(queries[:count], 10)
    np.testing.assert_array_equal(again, found[:count])
    np.testing.assert_array_equal(again_scores, scores[:count])


def test_of_equal_rows_the_lower_one_comes_first():
  rows = np.repeat(np.eye(4, 8, dtype=np.float32), 2500, axis=0)  # equal rows lie on both sides of a block's end
  found, scores = ExactIndex(rows).search(np.eye(4, 8, dtype=np.float32), 7)
  np.testing.assert_array_equal(found, np.arange(4)[:, None] * 2500 + np.arange(7))
  assert (scores == 1).all()
  few = np.repeat(np.eye(2, 8, dtype=np.float32), 3, axis=0)
  found, _ = ScannIndex.build(few, leaves=None, target_recall=0.9, queries=few[:0]).search(few[:1], 6)
  np.testing.assert_array_equal(found, [[0, 1, 2, 3, 4, 5]])


def test_scann_by_brute_force_finds_what_float64_finds():
  data, queries = clustered(3000, 48), clustered(100, 48, seed=1)
  index = ScannIndex.build(data, leaves=None, target_recall=0.95, queries=queries[:0])
  found, scores = index.search(queries, 10)
  wanted, wanted_scores = brute_force(data, queries, 10)
  assert index.leaves == 0 and index.curve == []
  assert recall_of(found, wanted) > 0.999
  np.testing.assert_allclose(scores, wanted_scores, atol=1e-6)


def test_a_tree_reaches_its_recall_with_few_leaves(tree):
  rows, queries, index = tree
  assert index.leaves == round(len(rows) ** 0.5)
  found, scores = index.search(queries, 10)
  wanted, _ = brute_force(rows, queries, 10)
  assert recall_of(found, wanted) >= 0.95
  assert index.leaves_to_search < index.leaves / 4
  # the best are computed again from bfloat16, with 8 bits of mantissa
  np.testing.assert_allclose(scores, np.einsum("nd,nkd->nk", queries, rows[found]), atol=4e-3)


def test_the_curve_holds_the_recall_of_each_number_of_leaves(tree):
  rows, queries, index = tree
  wanted, _ = brute_force(rows, queries, 10)
  chosen, best = index.leaves_to_search, 0.0
  for point in index.curve:
    index.leaves_to_search = point["leaves"]
    assert recall_of(index.search(queries, 10)[0], wanted) == pytest.approx(point["recall"], abs=1e-3)
    assert point["queries_per_second"] > 0
    if point["leaves"] < chosen:
      assert point["recall"] < 0.95
    best = max(best, point["recall"])
  index.leaves_to_search = chosen
  assert best > 0.97


def test_an_unreachable_recall_takes_the_best_and_says_so(caplog):
  rng = np.random.default_rng(0)
  rows = rng.standard_normal((8000, 128)).astype(np.float32)  # no structure: quantised scores confuse some
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  index = ScannIndex.build(rows, leaves=40, target_recall=1.0, queries=rng.standard_normal((100, 128)))
  best = max(point["recall"] for point in index.curve)
  assert best < 1.0 and "no number of leaves reaches recall@10 1.000" in caplog.text
  assert next(p for p in index.curve if p["leaves"] == index.leaves_to_search)["recall"] == best


def test_two_builds_answer_alike_in_every_bit(tree):
  rows, queries, index = tree
  again = ScannIndex.build(rows, leaves=None, target_recall=0.95, queries=queries)
  assert again.leaves_to_search == index.leaves_to_search
  for one, other in zip(index.search(queries, 20), again.search(queries, 20)):
    np.testing.assert_array_equal(one, other)


def test_a_tree_over_copies_of_a_few_texts_can_be_built():
  rows = np.repeat(clustered(3, 48), 100, axis=0)
  found, scores = ScannIndex.build(rows, leaves=20, target_recall=0.9, queries=rows[:50]).search(rows[::100], 5)
  np.testing.assert_array_equal(found // 100, np.arange(3)[:, None] + np.zeros(5, int))
  np.testing.assert_allclose(scores, 1, atol=4e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_nearest_neighbour_is_found(kind):
  rows = clustered(2000, 48)
  planted = rows[1234] * 0.98 + np.roll(rows[77], 5) * 0.1
  rows[1717] = planted / np.linalg.norm(planted)
  found, scores = build(kind, rows).search(rows[1717:1718], 3)
  assert found[0, 0] == 1717 and scores[0, 0] == pytest.approx(1, abs=4e-3)
  assert 1234 in found[0]


@pytest.mark.parametrize("kind", KINDS)
def test_missing_hits_are_row_minus_one_and_never_row_zero(kind):
  rows = clustered(30, 48)
  found, scores = build(kind, rows).search(rows[:4], 50)
  assert found.dtype == np.int32 and found.shape == scores.shape == (4, 50)
  assert (found[:, 30:] == -1).all() and (scores[:, 30:] == -np.inf).all()
  for row, score in zip(found, scores):
    real = row[row >= 0]
    assert len(set(real.tolist())) == len(real)  # row 0 is there once
    assert np.isfinite(score[row >= 0]).all() and np.isneginf(score[row < 0]).all()


def test_leaves_that_hold_too_little_leave_places_empty(tree):
  _, queries, index = tree
  chosen, index.leaves_to_search = index.leaves_to_search, 1
  found, scores = index.search(queries[:20], 2000)
  index.leaves_to_search = chosen
  assert ((found == -1) == np.isneginf(scores)).all() and (found == -1).any(axis=1).all()
  assert (np.sum(found == 0, axis=1) <= 1).all()
  assert (np.diff(np.where(np.isneginf(scores), -9, scores), axis=1) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_query_gives_no_answer(kind):
  index = build(kind, clustered(100, 48))
  for empty in (np.zeros((0, 48), np.float32), np.zeros((0, 1))):
    rows, scores = index.search(empty, 5)
    assert rows.shape == scores.shape == (0, 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_before_native_code_sees_them(kind, bad):
  rows = clustered(100, 48)
  index = build(kind, rows)
  queries = rows[:8].copy()
  queries[5, 3] = bad
  with pytest.raises(UserError, match="query 5 of 8 holds NaN or infinity"):
    index.search(queries, 5)
  rows[42, 7] = bad
  with pytest.raises(UserError, match="row 42 of 100 holds NaN or infinity"):
    build(kind, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_queries_of_another_dimension_are_refused(kind):
  with pytest.raises(UserError, match=r"\[3, 12\], wanted \[n, 48\]"):
    build(kind, clustered(100, 48)).search(np.ones((3, 12)), 5)


def test_more_leaves_than_rows_and_too_few_rows_are_refused_with_both_numbers():
  rows = clustered(100, 48)
  with pytest.raises(UserError, match=r"retrieval.leaves is 101, more than the 100 chunks"):
    ScannIndex.build(rows, leaves=101, target_recall=0.9, queries=rows)
  with pytest.raises(UserError, match=r"needs at least 16 chunks and the corpus has 9"):
    ScannIndex.build(rows[:9], leaves=3, target_recall=0.9, queries=rows)
  with pytest.raises(UserError, match="0 rows"):
    ScannIndex.build(rows[:0], leaves=None, target_recall=0.9, queries=rows)


def test_the_smallest_corpora_have_an_index():
  for n in (1, 2, 15):
    rows = clustered(n, 48)
    found, _ = ScannIndex.build(rows, leaves=None, target_recall=0.9, queries=rows[:0]).search(rows, 1)
    np.testing.assert_array_equal(found[:, 0], np.arange(n))
  rows = clustered(16, 48)
  assert ScannIndex.build(rows, leaves=4, target_recall=0.9, queries=rows).search(rows, 1)[0].shape == (16, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_half_precision_are_searched_as_the_numbers_they_are(kind):
  half = clustered(2000, 48).astype(np.float16)
  queries = clustered(100, 48, seed=1)
  found, scores = build(kind, half).search(queries, 10)
  again, again_scores = build(kind, half.astype(np.float32)).search(queries, 10)
  np.testing.assert_array_equal(found, again)
  np.testing.assert_array_equal(scores, again_scores)


def test_exact_pieces_answer_as_one_index_does():
  rows, queries = clustered(500, 48), clustered(70, 48, seed=1)
  rows[400] = rows[3]  # a tie across pieces
  whole = ExactIndex(rows)
  pieces = PiecedIndex([ExactIndex(part, of_rows=500) for part in (rows[:30], rows[30:31], rows[31:])])
  assert (pieces.num_rows, pieces.dim) == (500, 48)
  for k in (1, 7, 40, 501):  # also more than a piece, and more than all pieces, have
    for one, other in zip(pieces.search(queries, k), whole.search(queries, k)):
      np.testing.assert_array_equal(one, other)
  found, scores = pieces.search(rows[3:4], 2)
  assert found.tolist() == [[3, 400]] and scores[0, 0] == scores[0, 1]
  assert pieces.search(queries[:0], 3)[0].shape == (0, 3)


def test_a_saved_index_answers_the_same_wherever_it_is_moved(tree, tmp_path):
  rows, queries, index = tree
  index.save(tmp_path / "first", "the rows")
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "first").rename(tmp_path / "elsewhere" / "second")
  assert str(tmp_path) not in (tmp_path / "elsewhere" / "second" / "scann_assets.pbtxt").read_text()
  loaded = ScannIndex.load(tmp_path / "elsewhere" / "second", "the rows")
  for before, after in zip(index.search(queries, 20), loaded.search(queries, 20)):
    np.testing.assert_array_equal(before, after)
  assert (loaded.num_rows, loaded.dim, loaded.curve) == (len(rows), 48, index.curve)
  stored = json.loads((tmp_path / "elsewhere" / "second" / "curve.json").read_text())
  assert stored["curve"] == index.curve and stored["leaves_to_search"] == index.leaves_to_search


class Bomb:
  """What an index folder from elsewhere might hold: pickle runs it."""

  def __reduce__(self):
    return (pytest.fail, ("a pickle was loaded",))


def test_a_folder_that_is_not_as_it_was_written_is_never_loaded(tmp_path):
  rows = clustered(200, 48)
  index = build("tree", rows)

  def saved(name):
    index.save(tmp_path / name, "the rows")
    return tmp_path / name

  folder = saved("docids")
  (folder / "scann_docids.pkl").write_bytes(pickle.dumps(Bomb()))
  with pytest.raises(Damaged, match=r"scann_docids.pkl.*MANIFEST.json lists"):
    ScannIndex.load(folder, "the rows")
  manifest.write(folder, of="the rows")
  with pytest.raises(Damaged, match=r"scann_docids.pkl.*build the index again"):  # not even if the manifest lists it
    ScannIndex.load(folder, "the rows")

  folder = saved("changed")
  data = bytearray((folder / "hashed_dataset.npy").read_bytes())
  data[-1] ^= 1
  (folder / "hashed_dataset.npy").write_bytes(data)
  with pytest.raises(UserError, match=r"hashed_dataset.npy cannot be read.*its bytes are not those of MANIFEST"):
    ScannIndex.load(folder, "the rows")

  folder = saved("lacking")
  (folder / "ah_codebook.pb").unlink()
  with pytest.raises(UserError, match=r"MANIFEST.json lists ah_codebook.pb"):
    ScannIndex.load(folder, "the rows")

  folder = saved("without manifest")
  (folder / "MANIFEST.json").unlink()
  with pytest.raises(Damaged, match=r"it has no MANIFEST.json"):
    ScannIndex.load(folder, "the rows")

  with pytest.raises(Damaged, match=r"it is the index of the rows, wanted other rows"):
    ScannIndex.load(saved("other"), "other rows")
