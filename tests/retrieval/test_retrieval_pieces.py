"""Where an index is cut, and what it is said to take of memory and disk."""

import dataclasses
import itertools
import json

import pytest

from policylong.retrieval import memory
from policylong.retrieval.pieces import index_memory, piece_leaves, piece_ranges
from policylong.retrieval.rows import SHARD_ROWS
from tests.retrieval.test_retrieval_store import CONFIG
from tests.test_resume import REPOSITORY

MEASURED = json.loads((REPOSITORY / "docs/index_memory.json").read_text())["sizes"]


@pytest.mark.parametrize("num_rows,dim,gib", [(1, 64, 1.0), (2048, 64, 1.0), (2049, 64, 1e-9), (10 ** 7, 1024, 16.0),
                                              (10 ** 7 + 1, 256, 3.0), (644_000_000, 1024, 16.0), (300_000, 384, 1.0)])
def test_pieces_are_whole_files_as_many_as_memory_allows_in_the_order_of_the_rows(num_rows, dim, gib):
  pieces = piece_ranges(num_rows, dim, gib)
  assert pieces[0].start == 0 and pieces[-1].stop == num_rows
  assert all(one.stop == other.start for one, other in itertools.pairwise(pieces))
  assert all(piece.start % SHARD_ROWS == 0 and len(piece) for piece in pieces)
  files = [-(-len(piece) // SHARD_ROWS) for piece in pieces]
  assert max(files) - min(files) <= 1
  # No piece takes more than it may, but for one file, which is never cut; and one fewer would.
  assert max(files) == 1 or memory.build_bytes(max(map(len, pieces)), dim, 1) <= gib * 2 ** 30 * 1.001
  if len(pieces) > 1:
    larger = -(-sum(files) // (len(pieces) - 1))
    assert memory.build_bytes(larger * SHARD_ROWS, dim, 1) > gib * 2 ** 30 * 0.999


def test_leaves_are_shared_out_by_rows():
  assert piece_leaves(1000, 1000, 30) == 30 and piece_leaves(500, 1000, 30) == 15
  assert piece_leaves(500, 1000, None) is None
  assert piece_leaves(15, 1000, 30) is None and piece_leaves(16, 1000, 30) == 1  # a tree needs 16 rows


@pytest.mark.parametrize("size", MEASURED, ids=lambda size: f"{size['rows']} x {size['dim']}")
def test_what_is_said_is_what_was_measured(size):
  rows, dim, leaves = size["rows"], size["dim"], size["leaves"]
  # 21 MB of a build and 5 MB of a search do not grow with it.
  assert 1 <= (memory.build_bytes(rows, dim, leaves) + 21e6) / size["build_bytes"] < 1.06
  assert 1 <= (memory.search_bytes(rows, dim, leaves) + 5.2e6) / size["search_bytes"] < 1.26
  assert memory.rows_of_build(memory.build_bytes(rows, dim, leaves), dim) == rows


def test_ten_million_chunks_by_hand():
  config = dataclasses.replace(CONFIG, piece_gib=16.0)
  whole = index_memory(config, 10 ** 7, 1024)
  # Ten pieces of about a million; each is built in 15.5 bytes a number and 8 more of 100,000 rows.
  assert len(piece_ranges(10 ** 7, 1024, 16.0)) == 10
  assert whole.build == pytest.approx(1024 * (15.5 * 1e6 + 8e5), rel=2e-3)
  assert whole.search == pytest.approx(1e7 * (2.82 * 1024 + 8), rel=1e-6)
  assert whole.disk == pytest.approx(1e7 * (2 * 1024 + 2.82 * 1024 + 8), rel=1e-6)
  shared = index_memory(config, 10 ** 7, 1024, processes=4)
  assert shared.search == pytest.approx(0.3 * whole.search, rel=2e-3)  # 3 of ten pieces, as 4 do not divide 10
  assert index_memory(config, 10 ** 7, 512, 1).search < 0.51 * whole.search
  exact = index_memory(dataclasses.replace(config, index="exact"), 10 ** 7, 1024, processes=16)
  assert exact.search == pytest.approx(2 * 1024 * 1e7 / 16, rel=5e-3) and exact.disk == 2 * 1024 * 10 ** 7


def test_a_small_corpus_is_one_piece_that_is_compared_whole():
  found = index_memory(CONFIG, 1000, 64, processes=3)
  assert found.search == 4 * 64 * 1000 and found.build == 2 * found.search
