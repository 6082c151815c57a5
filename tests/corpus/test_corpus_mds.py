"""MDS shards that the streaming package wrote (tests/reference/make_mds_references.py) give back what was put in."""

import hashlib
import json
import pathlib
import shutil

import numpy as np
import pytest
import xxhash

from policylong.corpus import mds, sources
from policylong.corpus.sources import read_source
from policylong.corpus.store import open_corpus
from policylong.errors import UserError
from tests.reference import make_mds_references as written

SHARDS = pathlib.Path(written.__file__).parent / "mds"


def documents(readings):
  return [(r.document.id, r.document.text) for r in readings if r.document]


EXPECTED = [(f"s/{row['id']}", row["text"]) for row in map(written.text, range(written.TEXTS))]


@pytest.mark.parametrize("compression", ["raw", "zstd", "gz", "bz2", "br", "snappy"])
def test_texts_come_back_from_every_compression(source, compression):
  assert documents(read_source(source("mds", SHARDS / f"texts_{compression}"))) == EXPECTED


def test_numbers_are_ids_and_json_has_inner_fields(source):
  found = documents(read_source(source("mds", SHARDS / "texts_raw", id_field="number", text_field="meta.text")))
  assert found == [(f"s/{i}", f"inner {i}") for i in range(written.TEXTS)]
  # Without an id a row is named by its shard, as a line is by its file.
  found = documents(read_source(source("mds", SHARDS / "texts_raw", id_field="")))
  assert found[0][0] == "s/shard.00000.mds:row-1" and len(set(found)) == written.TEXTS


@pytest.mark.parametrize("name", ["dynamic", "uint32", "fixed"])
def test_arrays_of_every_form(name):
  shards = mds.find_shards(str(SHARDS / f"tokens_{name}"), "path")
  rows = [row for shard in shards for _, _, row in mds.rows(shard, ["input_ids", "indices"])]
  for i, row in enumerate(rows):
    np.testing.assert_array_equal(row["input_ids"], written.tokens(i))
    np.testing.assert_array_equal(row["indices"], written.boundaries(i))
  assert len(rows) == written.SEQUENCES


def test_a_folder_of_folders_and_a_glob(source, tmp_path):
  for name in ("b", "a"):
    shutil.copytree(SHARDS / "texts_zstd", tmp_path / "set" / name)
  for path in (tmp_path / "set", tmp_path / "set" / "*", tmp_path / "set" / "*" / "index.json"):
    readings = list(read_source(source("mds", path, id_field="")))
    assert documents(readings)[0][0] == "s/a/shard.00000.mds.zstd:row-1"
    assert [text for _, text in documents(readings)] == [text for _, text in EXPECTED] * 2


def test_the_same_ids_in_two_folders_carry_the_shard(make_config, source, tmp_path):
  for name in "ab":
    shutil.copytree(SHARDS / "texts_gz", tmp_path / "set" / name)
  corpus = open_corpus(make_config(source("mds", tmp_path / "set")))
  assert corpus.num_documents == 2 * written.TEXTS and not corpus.bad_records
  assert corpus.document_id(0) == "s/a/shard.00000.mds.gz:doc-0"


def test_a_raw_shard_that_looks_like_gzip_is_raw(source, tmp_path):
  """1f 8b is gzip's mark and 35,615 samples."""
  count, record = 0x8b1f, b"x"
  offsets = 4 + 4 * (count + 1) + np.arange(count + 1) * (4 + len(record))
  data = (np.uint32(count).tobytes() + offsets.astype("<u4").tobytes()
          + (np.uint32(len(record)).tobytes() + record) * count)
  (tmp_path / "shard.00000.mds").write_bytes(data)
  entry = {"format": "mds", "version": 2, "samples": count, "compression": None, "zip_data": None,
           "column_names": ["text"], "column_encodings": ["str"], "column_sizes": [None],
           "raw_data": {"basename": "shard.00000.mds", "bytes": len(data), "hashes": {}}}
  (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": [entry]}))
  assert len(documents(read_source(source("mds", tmp_path, id_field="")))) == count


def test_pickled_columns_are_refused_and_others_beside_them_read(source):
  with pytest.raises(UserError, match="'text' in the encoding 'pkl', which is not read"):
    list(read_source(source("mds", SHARDS / "pickled")))
  assert documents(read_source(source("mds", SHARDS / "pickled", text_field="id", id_field=""))) == [
      ("s/row-1", "0"), ("s/row-2", "1")]


def test_missing_and_damaged_shards_are_counted(make_config, source, tmp_path):
  shutil.copytree(SHARDS / "texts_raw", tmp_path / "set")
  names = sorted(path.name for path in (tmp_path / "set").glob("*.mds"))
  (tmp_path / "set" / names[0]).unlink()
  broken = tmp_path / "set" / names[1]
  broken.write_bytes(broken.read_bytes()[:-7])
  corpus = open_corpus(make_config(source("mds", tmp_path / "set")))
  assert corpus.bad_records == {"a shard that does not exist": 1, mds.NOT_MDS: 1} and corpus.num_documents > 0


@pytest.mark.parametrize("compression", ["raw", "zstd", "gz", "bz2", "br", "snappy"])
def test_a_flipped_byte_of_a_shard_is_found_or_changes_nothing(source, tmp_path, compression):
  shutil.copytree(SHARDS / f"texts_{compression}", tmp_path / "set")
  path, rng = sorted((tmp_path / "set").glob("*.mds*"))[0], np.random.default_rng(0)
  whole, found = path.read_bytes(), 0
  for at in rng.choice(len(whole), 60, replace=False).tolist():
    data = bytearray(whole)
    data[at] ^= int(rng.integers(1, 256))
    path.write_bytes(data)
    readings = list(read_source(source("mds", tmp_path / "set")))
    damaged = [reading.reason for reading in readings if reading.document is None]
    assert (damaged and damaged[0].startswith("not a whole ")) or documents(readings) == EXPECTED
    found += bool(damaged)
  assert found == 60 if compression == "raw" else found > 40  # compressions have bytes that say nothing


def with_hashes(folder, **hashes):
  """The folder with these hashes of its first shard in the place of streaming's."""
  index = json.loads((folder / "index.json").read_text())
  index["shards"][0]["raw_data"]["hashes"] = hashes
  (folder / "index.json").write_text(json.dumps(index))
  return folder


def test_every_hash_that_can_be_computed_is_checked_and_others_are_told(source, tmp_path, caplog):
  shutil.copytree(SHARDS / "texts_raw", tmp_path / "set")
  data = (tmp_path / "set" / "shard.00000.mds").read_bytes()
  right = {"md5": hashlib.md5(data).hexdigest(), "blake2b": hashlib.blake2b(data).hexdigest().upper(),
           "xxh3_128": xxhash.xxh3_128(data).hexdigest(), "xxh64": xxhash.xxh64(data).hexdigest()}
  for name, digits in right.items():
    assert documents(read_source(source("mds", with_hashes(tmp_path / "set", **{name: digits})))) == EXPECTED
    wrong = digits[:-1] + ("0" if digits[-1] != "0" else "1")
    readings = list(read_source(source("mds", with_hashes(tmp_path / "set", **{name: wrong}))))
    assert [reading.reason for reading in readings if reading.document is None] == [mds.NOT_MDS], name
  for hashes in ({}, {"xxh999": "00"}, {"shake_128": "00"}):
    assert documents(read_source(source("mds", with_hashes(tmp_path / "set", **hashes)))) == EXPECTED
  assert "the hash xxh999, which cannot be computed here (pip install xxhash)" in caplog.text
  with pytest.raises(UserError, match="not the index of MDS shards"):
    list(read_source(source("mds", with_hashes(tmp_path / "set", sha1=5))))


def test_sequences_of_a_changed_shard_are_refused(source, tmp_path):
  shutil.copytree(SHARDS / "tokens_dynamic", tmp_path / "set")
  (shard,) = mds.find_shards(str(tmp_path / "set"), "path")
  assert len(list(mds.rows(shard, ["input_ids"], [0]))) == 1
  data = bytearray(shard.path.read_bytes())
  data[-1] ^= 1
  shard.path.write_bytes(data)
  with pytest.raises(mds.Unreadable, match="its sha1 is not the one in its index"):
    list(mds.rows(shard, ["input_ids"], [0]))


def test_what_is_no_mds_is_one_sentence(source, tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "junk").mkdir()
  (tmp_path / "junk" / "index.json").write_text("[1]")
  (tmp_path / "csv").mkdir()
  (tmp_path / "csv" / "index.json").write_text(json.dumps({"version": 2, "shards": [{"format": "csv", "version": 2}]}))
  for path, fields, wanted in (
      ("none", {}, "no folder"), ("empty", {}, "no index.json"), ("junk", {}, "not the index of MDS shards"),
      ("csv", {}, "format csv 2; mds 2 is read"), ("*.none", {}, "no index.json")):
    with pytest.raises(UserError, match=wanted) as caught:
      list(read_source(source("mds", tmp_path / path, **fields)))
    assert "\n" not in str(caught.value)
  with pytest.raises(UserError, match=r"no column 'body'; its columns are id, meta, number, text"):
    list(read_source(source("mds", SHARDS / "texts_raw", text_field="body")))


def test_a_command_knows_mds_and_parquet_by_what_lies_there(tmp_path):
  assert sources.source_at("x", str(SHARDS / "texts_br")).kind == "mds"
  assert sources.source_at("x", str(SHARDS / "texts_br" / "index.json")).kind == "mds"
  (tmp_path / "a.jsonl").write_text("{}")
  assert sources.source_at("x", str(tmp_path / "a.jsonl")).kind == "jsonl"
