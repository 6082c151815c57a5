"""Token sequences of every form are read as they were written; each round has its part; others are refused."""

import itertools
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.demo import get_config
from policylong import config as config_lib
from policylong.corpus.given import GivenSequences
from policylong.errors import UserError
from policylong.synthesis.storage import write_records
from tests.reference import make_mds_references as written

SHARDS = pathlib.Path(written.__file__).parent / "mds"
ROWS = [written.tokens(i) for i in range(written.SEQUENCES)]


def given(*sources, rounds=1, boundaries="", vocab_size=500, seed=0):
  """Of (kind, path, field)."""
  values = get_config()
  values.update({"method": "given", "rounds": rounds, "seed": seed})
  values.method_options.given_boundaries = boundaries
  values.corpus.update({"root_sources": (), "sources": tuple(
      {"name": f"s{i}", "kind": kind, "path": str(path), "id_field": "", "text_field": name, "split": ""}
      for i, (kind, path, name) in enumerate(sources))})
  return GivenSequences(config_lib.parse(values), vocab_size)


def by_row(sequences):
  return [each.tokens.tolist() for each in sorted(sequences, key=lambda each: int(each.id.rpartition("-")[2]))]


def parquet(path, kind=None, rows=ROWS, **more):
  pq.write_table(pa.table({"input_ids": pa.array(rows, kind or pa.list_(pa.int32())), **more}), path, row_group_size=4)
  return path


@pytest.mark.parametrize("name", ["dynamic", "uint32", "fixed"])
def test_mds_with_its_documents(name):
  sequences = list(given(("mds", SHARDS / f"tokens_{name}", "input_ids"), boundaries="indices").sequences(1, 4))
  assert by_row(sequences) == ROWS and all(each.tokens.dtype == np.int32 for each in sequences)
  for each in sequences:
    i = ROWS.index(each.tokens.tolist())
    assert each.cuts == (0, 5 + i, 20 + i, 40)


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.list_(pa.int64()), pa.large_list(pa.uint16()),
                                  pa.list_(pa.uint32(), 40)])
def test_parquet_lists(tmp_path, kind):
  path = parquet(tmp_path / "x.parquet", kind, indices=[written.boundaries(i) for i in range(6)],
                 starts=[[start for start, _ in written.boundaries(i)] for i in range(6)])
  for boundaries in ("indices", "starts"):
    sequences = list(given(("parquet", path, "input_ids"), boundaries=boundaries).sequences(1, 2))
    assert by_row(sequences) == ROWS
    assert {each.cuts for each in sequences} == {(0, 5 + i, 20 + i, 40) for i in range(6)}
  assert {each.cuts for each in given(("parquet", path, "input_ids")).sequences(1, 9)} == {(0, 40)}


def test_array_record_as_a_run_writes_it(tmp_path):
  write_records([np.asarray(row, np.int32) for row in ROWS], tmp_path)
  assert by_row(given(("array_record", tmp_path / "part-*.array_record", "")).sequences(1, 3)) == ROWS


@pytest.mark.parametrize("rounds", [1, 2, 3, 5])
def test_each_round_has_its_part_and_none_is_in_two(tmp_path, rounds):
  parquet(tmp_path / "a.parquet")
  parquet(tmp_path / "b.parquet", rows=[[400 + i] * 3 for i in range(7)])
  found = given(("parquet", tmp_path / "*.parquet", "input_ids"), ("mds", SHARDS / "tokens_fixed", "input_ids"),
                rounds=rounds)
  parts = [[each.id for each in found.sequences(r, 4)] for r in range(1, rounds + 1)]
  assert sorted(itertools.chain(*parts)) == sorted({*(f"s0/a.parquet:row-{n}" for n in range(1, 7)),
                                           *(f"s0/b.parquet:row-{n}" for n in range(1, 8)),
                                           *(f"s1/shard.00000.mds:row-{n}" for n in range(1, 7))})
  assert max(map(len, parts)) - min(map(len, parts)) <= 1
  again = given(("parquet", tmp_path / "*.parquet", "input_ids"), ("mds", SHARDS / "tokens_fixed", "input_ids"),
                rounds=rounds)
  assert [[each.id for each in again.sequences(r, 4)] for r in range(1, rounds + 1)] == parts


def test_the_version_follows_the_bytes_and_not_the_place(tmp_path):
  versions = []
  for folder, rows in (("a", ROWS), ("b", ROWS), ("c", [*ROWS[:-1], ROWS[0]])):
    (tmp_path / folder).mkdir()
    versions.append(given(("parquet", parquet(tmp_path / folder / "x", rows=rows), "input_ids")).summary()["version"])
  assert versions[0] == versions[1] != versions[2]


def test_what_does_not_fit_is_one_sentence(tmp_path):
  flat = parquet(tmp_path / "flat.parquet", indices=[[[0, 50]]] * 6)
  texts = tmp_path / "texts.parquet"
  none = pa.array([None, None], pa.list_(pa.int32()))
  pq.write_table(pa.table({"input_ids": ["a", "b"], "floats": [[1.5], [2.5]], "none": none}), texts)
  negative = parquet(tmp_path / "negative.parquet", rows=[[1, -1]])
  packed, odd = tmp_path / "packed", tmp_path / "odd"
  write_records([np.stack([np.arange(9), [1, 1, 1, 2, 2, 2, 2, 0, 0], [1] * 7 + [0] * 2]).astype(np.int32)], packed)
  odd.write_bytes(b"no array_record at all" * 9)
  mds = SHARDS / "tokens_fixed"
  for source, options, wanted in (
      (("parquet", flat, "input_ids"), {"vocab_size": 100}, r"token ids from \d+ to \d+; the model has 0 to 99"),
      (("mds", mds, "input_ids"), {"vocab_size": 100}, "of another tokenizer"),
      (("parquet", negative, "input_ids"), {}, "token ids from -1 to 1"),
      (("parquet", flat, "input_ids"), {"rounds": 7}, "hold 6 sequences, and each of 7 rounds"),
      (("parquet", flat, "tokens"), {}, "no column 'tokens'; its columns are input_ids, indices"),
      (("mds", mds, "tokens"), {}, "no column 'tokens'"), (("mds", SHARDS / "pickled", "text"), {}, "encoding 'pkl'"),
      (("parquet", flat, "input_ids"), {"boundaries": "indices"}, r"boundaries \[0, 50\] .* from 0 to 40"),
      (("parquet", texts, "input_ids"), {}, "no row of token ids in 'input_ids'"),
      (("parquet", texts, "floats"), {}, "no row of token ids"),
      (("parquet", texts, "none"), {}, "no row of token ids"),
      (("array_record", packed / "*", ""), {}, "packed sequences"), (("array_record", odd, ""), {}, "as array_record"),
      (("array_record", packed / "*", "input_ids"), {}, "token ids alone"),
      (("parquet", tmp_path / "none", "input_ids"), {}, "no such file")):
    with pytest.raises(UserError, match=wanted) as caught:
      list(given(source, **options).sequences(1, 2))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_among_others_is_counted_and_one_that_breaks_later_refused(tmp_path, caplog):
  caplog.set_level("INFO", "policylong")
  whole = parquet(tmp_path / "a.parquet")
  (tmp_path / "b.parquet").write_bytes(whole.read_bytes()[:-9])
  (tmp_path / "c.parquet").mkdir()
  found = given(("parquet", tmp_path / "*", "input_ids"))
  assert "6 sequences in 1 files (not read: 1 a folder, 1 not whole Parquet)" in caplog.text
  assert {reason: bad["count"] for reason, bad in found.summary()["bad_records"].items()} == {
      "a folder": 1, "not whole Parquet": 1}
  shutil.copytree(SHARDS / "tokens_fixed", tmp_path / "mds")
  found = given(("mds", tmp_path / "mds", "input_ids"))
  (path,) = (tmp_path / "mds").glob("*.mds")
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(UserError, match="not a whole MDS shard"):
    list(found.sequences(1, 2))
