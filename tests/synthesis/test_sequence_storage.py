"""Sequences come back as they were written; a damaged file is a sentence, a killed write is nothing."""

import dataclasses
import errno
import hashlib
import os
import subprocess
import sys

import grain
import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath

from policylong.errors import UserError
from policylong.records import LongSequence, Positive, Span
from policylong.synthesis import storage
from policylong.synthesis.storage import (
    mean_attended_tokens,
    read_spans,
    read_tokens,
    sequence_paths,
    summarise,
    write_sequences,
)

NAN = float("nan")


def make_sequences(count=7, length=64):
  rng = np.random.default_rng(0)
  for i in range(count):
    cut = int(rng.integers(1, length - 1))
    yield LongSequence(rng.integers(0, 150_000, length, dtype=np.int32), (
        Span(0, cut, "positive", f"doc/{i} é", f"c/{i}#0-9", 5, float(rng.random()), 0, 40),
        Span(cut, length, "root", f"doc/{i} é", "", -1, NAN, -1, 40)))


def comparable(spans):
  return [dataclasses.replace(span, gain=None if np.isnan(span.gain) else span.gain) for span in spans]


@pytest.fixture
def several_files(monkeypatch):
  monkeypatch.setattr(storage, "SHARD_BYTES", 3 * 64 * 4)


def test_what_is_written_is_read(tmp_path, several_files):
  wanted = list(make_sequences())
  assert write_sequences(iter(wanted), epath.Path(tmp_path)) == 7
  paths = sequence_paths(tmp_path / "sequences")
  assert [path.name for path in paths] == [f"part-0000{i}.array_record" for i in range(3)]
  tokens = read_tokens(paths)
  assert tokens.dtype == np.int32 and (tokens == np.stack([s.tokens for s in wanted])).all()
  assert (read_tokens(paths[1]) == tokens[3:6]).all()
  found = read_spans(tmp_path / "sequences.parquet", [6, 0])
  assert [comparable(s) for s in found] == [comparable(wanted[i].spans) for i in (6, 0)]


def test_packed_records_hold_the_same_tokens_and_leave_the_table_as_it_is(tmp_path):
  wanted = list(make_sequences())
  # The first two sequences have a second document: another root behind the first one's block.
  for i, size in ((0, 9), (1, 30)):
    *contexts, last = wanted[i].spans
    cut = last.end - size if last.end - size > last.start else last.start + 1
    wanted[i] = dataclasses.replace(wanted[i], spans=(
        *contexts, dataclasses.replace(last, end=cut), dataclasses.replace(last, start=cut, doc_id="other")))
  assert write_sequences(wanted, tmp_path / "packed", packed=True) == write_sequences(wanted, tmp_path / "plain") == 7
  tables = [(tmp_path / name / "sequences.parquet").read_bytes() for name in ("packed", "plain")]
  assert tables[0] == tables[1]
  packed = read_tokens(sequence_paths(tmp_path / "packed" / "sequences")).reshape(7, 3, 64)
  assert (packed[:, 0] == read_tokens(sequence_paths(tmp_path / "plain" / "sequences"))).all()
  assert (packed[:, 2] == 1).all()
  lengths = []
  for sequence, numbers in zip(wanted, packed[:, 1].tolist()):
    names = [next(s.doc_id for s in sequence.spans if s.start <= t < s.end) for t in range(64)]
    assert numbers == [1 + (name == "other") for name in names]
    lengths += [names.count(name) for name in set(names)]
  assert len(lengths) == 9
  by_token = sum(n for n in lengths for _ in range(n)) / (7 * 64)  # of each token, the length of its document
  assert mean_attended_tokens(pq.read_table(tmp_path / "packed" / "sequences.parquet")) == pytest.approx(by_token)


def test_grain_reads_the_records_without_our_help(tmp_path, several_files):
  wanted = list(make_sequences())
  write_sequences(wanted, tmp_path)
  records = grain.sources.ArrayRecordDataSource([os.fspath(p) for p in sequence_paths(tmp_path / "sequences")])
  assert [np.frombuffer(records[i], "<i4").tolist() for i in range(7)] == [s.tokens.tolist() for s in wanted]


def test_the_table_is_for_people(tmp_path):
  write_sequences(make_sequences(), tmp_path)
  table = pq.read_table(tmp_path / "sequences.parquet")
  assert table.column_names == ["sequence", "start", "end", "role", "doc_id", "chunk_id", "position", "gain", "rank",
                                "policy_step"]
  assert table.num_rows == 14 and table["sequence"].to_pylist() == [i // 2 for i in range(14)]


WRITE = ("import sys; sys.path.insert(0, 'tests/synthesis')\n"
         "from test_sequence_storage import make_sequences\n"
         "from policylong.synthesis.storage import write_sequences\n"
         "write_sequences(make_sequences(300, 4096), sys.argv[1])")


def test_the_bytes_are_the_same_in_another_process_and_folder(tmp_path):
  write_sequences(make_sequences(300, 4096), tmp_path / "here")
  subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / "there")], check=True)
  digests = [{str(path.relative_to(tmp_path / folder)): hashlib.sha256(path.read_bytes()).hexdigest()
              for path in (tmp_path / folder).rglob("*") if path.is_file()} for folder in ("here", "there")]
  assert digests[0] == digests[1] and len(digests[0]) == 3


def test_an_interrupted_write_leaves_no_table_and_the_next_one_starts_clean(tmp_path, several_files):
  def broken():
    yield from make_sequences(5)
    raise KeyboardInterrupt

  write_sequences(make_sequences(20), tmp_path)
  with pytest.raises(KeyboardInterrupt):
    write_sequences(broken(), tmp_path)
  assert not (tmp_path / "sequences.parquet").exists()
  assert [p.name for p in sequence_paths(tmp_path / "sequences")] == ["part-00000.array_record"]
  assert write_sequences(make_sequences(4), tmp_path) == 4
  assert sorted(p.name for p in (tmp_path / "sequences").iterdir()) == [
      "MANIFEST.json", "part-00000.array_record", "part-00001.array_record"]


def test_no_sequences_are_no_files(tmp_path):
  assert write_sequences([], tmp_path) == 0
  assert sequence_paths(tmp_path / "sequences") == [] and read_tokens([]).shape == (0, 0)
  assert pq.read_table(tmp_path / "sequences.parquet").num_rows == 0


def damage(data, kind):
  half = len(data) // 2
  return {"empty": b"", "half": data[:half], "one byte short": data[:-1], "junk": os.urandom(len(data)),
          "a flipped bit": data[:half] + bytes([data[half] ^ 1]) + data[half + 1:]}[kind]


@pytest.mark.parametrize("kind", ["empty", "half", "one byte short", "junk", "a flipped bit"])
def test_a_damaged_file_is_one_sentence(tmp_path, kind):
  write_sequences(make_sequences(100, 4096), tmp_path)
  (path,) = sequence_paths(tmp_path / "sequences")
  path.write_bytes(damage(path.read_bytes(), kind))
  with pytest.raises(UserError, match="cannot be read as array_record") as caught:
    read_tokens(path)
  assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_missing_files_and_sequences_are_one_sentence(tmp_path):
  write_sequences(make_sequences(), tmp_path)
  with pytest.raises(UserError, match="No such file"):
    read_tokens(tmp_path / "none.array_record")
  with pytest.raises(UserError, match="has no sequence 99"):
    read_spans(tmp_path / "sequences.parquet", [99])
  (tmp_path / "cut.parquet").write_bytes((tmp_path / "sequences.parquet").read_bytes()[:-30])
  with pytest.raises(UserError, match="cannot be read"):
    read_spans(tmp_path / "cut.parquet", [0])


def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch):
  """/dev/full answers every write as a full disk does; array_record itself only says RuntimeError."""
  shard = storage._Shard(epath.Path(tmp_path / "part-00000.array_record"))
  writer = storage.array_record_module.ArrayRecordWriter("/dev/full", storage._OPTIONS)
  monkeypatch.setattr(shard, "_writer", writer)
  with pytest.raises(OSError) as caught:
    for _ in range(100):
      shard.write(np.arange(4096))
    shard.close()
  assert caught.value.errno == errno.ENOSPC and not (tmp_path / "part-00000.array_record").exists()


def test_the_summary_counts_tokens_by_role_and_what_found_no_room(tmp_path):
  def span(start, end, role, doc_id, chunk_id=""):
    return Span(start, end, role, doc_id, chunk_id, -1, NAN, -1, 0)
  write_sequences([
      LongSequence(np.zeros(100, np.int32), (
          span(0, 10, "positive", "r", "a"), span(10, 40, "root", "r"), span(40, 55, "positive", "s", "b"),
          span(55, 60, "filler", "s", "c"), span(60, 100, "root", "s"))),
      LongSequence(np.zeros(100, np.int32), (
          span(0, 30, "positive", "t", "a"), span(30, 70, "negative", "t", "d"),
          span(70, 100, "root", "t")))], tmp_path)
  positives = [Positive(doc_id, chunk, 1, 0.5) for doc_id, chunk in
               (("r", "a"), ("s", "a"), ("s", "b"), ("t", "a"), ("t", "x"), ("t", "y"), ("unused", "a"))]
  assert summarise(pq.read_table(tmp_path / "sequences.parquet"), positives) == {
      "sequences": 2, "roots": 3, "joined_sequences": 1,
      "tokens": {"root": 100, "positive": 55, "negative": 40, "filler": 5}, "positives_cut_off": 3}
