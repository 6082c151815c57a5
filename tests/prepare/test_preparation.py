"""The pipeline's steps against brute force, the builder, and itself after kills."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policylong import config as config_lib
from policylong import loop
from policylong.corpus.store import open_corpus
from policylong.errors import UserError
from policylong.prepare import benchmarks, duplicates, reading, writing
from policylong.storage import lock
from tests.bucket_stand_in import buckets
from tests.prepare import brute_force
from tests.prepare.conftest import changed, make_texts, write_jsonl


def dirty_texts(count, seed):
  """Texts of which some are equal to an earlier one, or nearly, or nearly to one that is nearly equal to a third."""
  rng = np.random.default_rng(seed)
  texts = make_texts(count, seed)
  for i in range(10, count):
    if i % 4 == 1:
      texts[i] = changed(texts[int(rng.integers(0, i))], int(rng.integers(1, 5)), rng)
    elif i % 16 == 2:
      texts[i] = texts[int(rng.integers(0, i))]
  return texts


def files(directory):
  return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


def documents(corpus):
  return [corpus.document(i) for i in range(corpus.num_documents)]


@pytest.fixture
def small_pieces(monkeypatch):
  """Several shards, ranges and parts of what would be one."""
  monkeypatch.setattr(reading, "SHARD_CHARACTERS", 12_000)
  monkeypatch.setattr(reading, "BATCH_ROWS", 7)
  monkeypatch.setattr(writing, "OUTPUT_CHARACTERS", 40_000)
  monkeypatch.setattr(duplicates, "RANGE", 100)
  monkeypatch.setattr(duplicates, "PART", 16)


@pytest.fixture
def dirty(tmp_path, source):
  """Two sources of several files, with duplicates within and across them, and bad lines."""
  texts = dirty_texts(300, seed=0)
  for i in range(3):
    write_jsonl(tmp_path / "a" / f"{i}.jsonl", texts[i * 70:(i + 1) * 70], i * 70)
    with open(tmp_path / "a" / f"{i}.jsonl", "a") as file:
      file.write('{"id": 5}\n{broken\n{"id": "e", "text": "\\u0007"}\n')
  write_jsonl(tmp_path / "b.jsonl", texts[210:], 210)
  return texts, (source("jsonl", tmp_path / "a" / "*.jsonl", name="a"), source("jsonl", tmp_path / "b.jsonl", name="b"))


@pytest.mark.parametrize("threshold", [0.7, 0.8])
def test_what_stays_is_what_all_pairs_say(prepare, corpus, dirty, small_pieces, threshold):
  texts, sources = dirty
  manifest = prepare(corpus(*sources), near_duplicates=threshold)
  kept = brute_force.kept(texts, threshold)
  found = open_corpus(corpus(*sources))
  assert [one.id.split("/d")[1] for one in documents(found)] == [str(i) for i in kept]
  assert [one.text for one in documents(found)] == [texts[i] for i in kept]
  exact = len(texts) - len(set(texts))
  assert {reason: row["count"] for reason, row in manifest["removed"].items()} == {
      "exact duplicate": exact, "near-duplicate": len(texts) - exact - len(kept)}
  assert {reason: row["count"] for reason, row in manifest["bad_records"].items()} == {
      "text missing": 3, "not JSON": 3, "empty text": 3}
  assert manifest["records"] == 300 + 9 and manifest["documents"] == len(kept) and exact > 5
  assert len(manifest["shards"]) > 1 and 20 < len(texts) - exact - len(kept) < 100


def test_what_is_removed_names_what_stands_for_it(prepare, corpus, dirty, small_pieces, tmp_path):
  texts, sources = dirty
  prepare(corpus(*sources))
  found = open_corpus(corpus(*sources))
  removed = [json.loads(line) for line in (tmp_path / "prepared" / "removed.jsonl").read_text().splitlines()]
  assert len(removed) == 300 - found.num_documents
  for row in removed:
    text, standing = texts[int(row["id"].split("/d")[1])], found.document(row["kept_row"])
    assert int(standing.id.split("/d")[1]) < int(row["id"].split("/d")[1])
    if row["reason"] == "near-duplicate":  # by way of others it may be less
      assert brute_force.jaccard(brute_force.runs(text, 5), brute_force.runs(standing.text, 5)) > 0.4
  letters = [json.loads(line) for line in (tmp_path / "prepared" / "bad_records.jsonl").read_text().splitlines()]
  assert letters[:3] == [{"source": "a", "place": "0.jsonl:71", "reason": "text missing"},
                         {"source": "a", "place": "0.jsonl:72", "reason": "not JSON"},
                         {"source": "a", "place": "0.jsonl:73", "reason": "empty text"}]


def test_every_kind_of_source_as_the_builder_reads_it(prepare, corpus, source, tmp_path):
  """Without duplicates the corpus is the builder's: documents, chunks, ids made up, bad records."""
  texts = make_texts(60, seed=3)
  write_jsonl(tmp_path / "lines" / "a.jsonl", texts[:5])
  write_jsonl(tmp_path / "lines" / "b.jsonl", texts[5:10])  # the same ids
  (tmp_path / "lines" / "c.jsonl").write_text('{"text": "no id here"}\n\n[]\n{"id": "d0", "text": 5}\n')
  pq.write_table(pa.table({"id": [1, 2, 2, 4], "text": [texts[11], "Grüße, 世界.\n\n" + texts[12], texts[13], " "]}),
                 tmp_path / "rows.parquet")
  for i in range(14, 20):
    (tmp_path / "folder" / f"{i % 2}").mkdir(parents=True, exist_ok=True)
    (tmp_path / "folder" / f"{i % 2}" / f"{i}.txt").write_text(texts[i])
  sources = (source("jsonl", tmp_path / "lines" / "*.jsonl", name="z lines"),
             source("parquet", tmp_path / "rows.parquet", name="rows"),
             source("text", tmp_path / "folder", name="texts"))
  config = corpus(*sources)
  prepare(config)
  found, built = open_corpus(config), open_corpus(dataclasses.replace(config, prepared=None))
  assert documents(found) == documents(built) and found.num_documents == 10 + 1 + 2 + 6
  assert {one.id for one in documents(found)} >= {"z lines/a.jsonl:d0", "z lines/b.jsonl:d0", "z lines/c.jsonl:line-1",
                                                  "rows/2"}
  assert [found.chunk(row) for row in range(found.num_chunks)] == [built.chunk(row) for row in range(built.num_chunks)]
  assert [found.chunk_text(row) for row in range(found.num_chunks)] == [
      built.chunk_text(row) for row in range(built.num_chunks)]
  for corpus_ in (found, built):
    assert all(corpus_.document_index(one.id) == i for i, one in enumerate(documents(corpus_)))
    assert all(corpus_.chunk_row(corpus_.chunk(row).id) == row for row in range(corpus_.num_chunks))
  mine, theirs = found.summary(), built.summary()
  assert mine["bad_records"] == theirs["bad_records"] and mine["made_up_ids"] == theirs["made_up_ids"] == 1
  assert {name: {key: counts[key] for key in theirs["sources"][name]} for name, counts in mine["sources"].items()
          } == theirs["sources"]
  assert [found.source_rows(name) for name in ("z lines", "rows", "texts")] == [
      built.source_rows(name) for name in ("z lines", "rows", "texts")]


def test_texts_are_cleaned_before_they_are_compared(prepare, corpus, source, tmp_path):
  texts = ["one\r\ntwo\x00 three\ufeff caf\u0065\u0301", "one\ntwo three caf\u00e9", "soft\u00adhyphen\u2028line"]
  write_jsonl(tmp_path / "a.jsonl", texts)
  manifest = prepare(corpus(source("jsonl", tmp_path / "a.jsonl")), near_duplicates=0.0)
  assert manifest["removed"]["exact duplicate"]["count"] == 1
  found = open_corpus(corpus(source("jsonl", tmp_path / "a.jsonl")))
  assert [one.text for one in documents(found)] == [texts[1], "softhyphen\nline"]


def test_contaminated_documents_go_first_and_are_counted_by_benchmark(prepare, corpus, source, tmp_path):
  texts = make_texts(40, seed=6)
  asked = [" ".join(texts[i].split()[10:25]) for i in (3, 8)]
  (tmp_path / "one.txt").write_text(asked[0])
  (tmp_path / "two.txt").write_text("\n\n".join(asked))
  texts[12] = changed(texts[3], 1, np.random.default_rng(1))  # nearly the contaminated one
  texts[20] = texts[8]
  write_jsonl(tmp_path / "a.jsonl", texts)
  manifest = prepare(corpus(source("jsonl", tmp_path / "a.jsonl")),
                     benchmarks=[str(tmp_path / "one.txt"), str(tmp_path / "two.txt")])
  expected = {i for i, text in enumerate(texts) if brute_force.contaminated(text, asked)}
  assert expected >= {3, 8, 20}
  both = sum(brute_force.contaminated(text, asked[:1]) for text in texts)
  assert {reason: row["count"] for reason, row in manifest["removed"].items()} == {
      "contaminated by one.txt and two.txt": both, "contaminated by two.txt": len(expected) - both}
  assert manifest["settings"]["benchmarks"] == ["one.txt", "two.txt"]


def test_order_of_units_and_kills_in_every_stage_leave_the_same_bytes(
    prepare, corpus, dirty, small_pieces, monkeypatch, tmp_path):
  _, sources = dirty
  monkeypatch.setattr("policylong.prepare.plan.UNIT_BYTES", 1)
  prepare(corpus(*sources, name="whole"))
  seen = set()

  class Killed(Exception):
    pass

  def kill(name, number):  # before the second unit of each stage, once
    if number == 1 and name not in seen:
      seen.add(name)
      raise Killed

  def killed_after(step):
    def once(*arguments):
      result = step(*arguments)
      if step not in seen:
        seen.add(step)
        raise Killed
      return result
    return once

  config = corpus(*sources, name="killed")
  steps = {(duplicates, "groups"), (writing, "decide"), (writing, "finish")}
  for module, name in steps:
    monkeypatch.setattr(module, name, killed_after(getattr(module, name)))
  for _ in range(20):
    try:
      prepare(config, order=lambda units: sorted(units, reverse=len(seen) % 2), do=kill)
      break
    except Killed:
      pass
  assert {name for name in seen if isinstance(name, str)} == {
      "read", "sign", "exact", "candidates", "shingles", "verify", "write"} and len(seen) == 7 + len(steps)
  whole, killed = files(tmp_path / "whole"), files(tmp_path / "killed")
  assert whole.keys() == killed.keys() and all(whole[name] == killed[name] for name in whole)
  assert not (tmp_path / "killed" / "work").exists()
  before = (tmp_path / "killed" / "DONE.json").stat().st_mtime_ns
  prepare(config)
  assert (tmp_path / "killed" / "DONE.json").stat().st_mtime_ns == before


def test_the_size_of_the_pieces_changes_no_document(prepare, corpus, dirty, monkeypatch):
  _, sources = dirty
  prepare(corpus(*sources, name="one"))
  monkeypatch.setattr(reading, "SHARD_CHARACTERS", 5_000)
  monkeypatch.setattr(duplicates, "RANGE", 50)
  monkeypatch.setattr(duplicates, "PART", 4)
  prepare(corpus(*sources, name="other"))
  one, other = (open_corpus(corpus(*sources, name=name)) for name in ("one", "other"))
  assert documents(one) == documents(other)
  assert {**one.summary(), "version": ""} == {**other.summary(), "version": "", "shards": one.summary()["shards"]}


def test_a_flipped_byte_of_unfinished_work_is_made_again_to_the_same_bytes(
    prepare, corpus, dirty, monkeypatch, tmp_path, caplog):
  """One of each kind of file, when the stage behind the one that wrote it begins."""
  _, sources = dirty
  prepare(corpus(*sources, name="whole"))
  whole, config = files(tmp_path / "whole"), corpus(*sources, name="flipped")
  kinds, rng = set(), np.random.default_rng(0)

  class Stopped(Exception):
    pass

  def stopping(stage):
    def stop(name, number):
      if name == stage:
        raise Stopped
    return stop

  def finish(*_):
    raise Stopped
  for stage in ("sign", "exact", "candidates", "shingles", "verify", "write", "finish"):
    shutil.rmtree(tmp_path / "stopped", ignore_errors=True)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
      if stage == "finish":
        patch.setattr(writing, "finish", finish)
      prepare(corpus(*sources, name="stopped"), do=stopping(stage))
    for path in sorted((tmp_path / "stopped").rglob("*.*")):
      place = path.relative_to(tmp_path / "stopped")
      kind = (place.parent, path.suffix, path.stem.rpartition("-")[2].strip("0123456789"))
      if kind in kinds or place.parts[0] not in ("work", "documents-00000.arrow") or "benchmarks" in place.parts:
        continue
      kinds.add(kind)
      shutil.rmtree(tmp_path / "flipped", ignore_errors=True)
      shutil.copytree(tmp_path / "stopped", tmp_path / "flipped")
      data = bytearray(path.read_bytes())
      data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
      (tmp_path / "flipped" / place).write_bytes(data)
      caplog.clear()
      prepare(config)
      assert files(tmp_path / "flipped") == whole, place
      # Markers whose counts nobody asks for, and what only an earlier stage asks for, are not read again.
      assert f"{place.name} is damaged" in caplog.text or path.suffix in (".json", ".npy"), place
  assert len(kinds) > 20


def test_damage_that_comes_back_and_missing_files_of_unfinished_work(prepare, corpus, source, tmp_path, monkeypatch):
  write_jsonl(tmp_path / "a.jsonl", make_texts(20, seed=1))
  config = corpus(source("jsonl", tmp_path / "a.jsonl"))
  work = tmp_path / "prepared" / "work"

  def lose(name, number):
    if name == "write":
      for path in (work / "decided").glob("*.npy"):
        path.unlink()
  with pytest.raises(UserError, match=r"decided/000000-0000\.npy cannot be read, as it is damaged \(it is missing\)"):
    prepare(config, do=lose)
  assert prepare(config)["documents"] == 20


def test_a_bucket_of_a_template_stays_linear_and_is_found(prepare, corpus, source, tmp_path, monkeypatch):
  monkeypatch.setattr(duplicates, "REACH", 4)
  rng = np.random.default_rng(2)
  text = make_texts(1, seed=7)[0]
  write_jsonl(tmp_path / "a.jsonl", [text, *(changed(text, 2, rng) for _ in range(59)), *make_texts(5, seed=8)])
  manifest = prepare(corpus(source("jsonl", tmp_path / "a.jsonl")))
  assert manifest["documents"] == 6 and manifest["removed"]["near-duplicate"]["count"] == 59


def test_a_bucket_is_read_and_written_as_a_disk(prepare, corpus, dirty, source, small_pieces, monkeypatch, tmp_path):
  """Also the sources, of each kind that is files; what lies there is copied to a disk to be opened."""
  _, (a, b) = dirty
  texts = make_texts(4, seed=5)
  pq.write_table(pa.table({"id": ["1", "2"], "text": texts[:2]}), tmp_path / "rows.parquet")
  (tmp_path / "folder" / "inner").mkdir(parents=True)
  (tmp_path / "folder" / "x.txt").write_text(texts[2])
  (tmp_path / "folder" / "inner" / "y.txt").write_text(texts[3])
  sources = (a, b, source("parquet", tmp_path / "rows.parquet", name="rows"),
             source("text", tmp_path / "folder", name="t"))
  prepare(corpus(*sources, name="here"))
  with buckets(tmp_path.parent):
    bucket = f"gs://{tmp_path.name}"
    remote = [dataclasses.replace(each, path=each.path.replace(str(tmp_path), bucket)) for each in sources]
    config = dataclasses.replace(corpus(*remote), prepared=f"{bucket}/there/prepared")
    prepare(config)
    prepare(config)  # which finds it
  here, there = files(tmp_path / "here"), files(tmp_path / "there" / "prepared")
  assert {name: data for name, data in there.items() if name != "settings.json"} == {
      name: data for name, data in here.items() if name != "settings.json"}
  assert open_corpus(corpus(*sources, name="there/prepared")).num_documents > 200


@pytest.mark.parametrize("change", ["near_duplicates", "benchmarks", "chunk_chars", "file"])
def test_a_folder_begun_otherwise_is_refused(prepare, corpus, source, tmp_path, change):
  write_jsonl(tmp_path / "a.jsonl", make_texts(5, seed=1))
  (tmp_path / "asked.txt").write_text(" ".join(map(str, range(20))))
  config, options = corpus(source("jsonl", tmp_path / "a.jsonl")), {}
  prepare(config)
  if change == "chunk_chars":
    config = dataclasses.replace(config, chunk_chars=300)
  elif change == "file":
    write_jsonl(tmp_path / "a.jsonl", make_texts(6, seed=1))
  else:
    options = {change: 0.5 if change == "near_duplicates" else [str(tmp_path / "asked.txt")]}
  with pytest.raises(UserError, match="begun, otherwise"):
    prepare(config, **options)


def test_mistakes_are_sentences(prepare, corpus, source, tmp_path):
  with pytest.raises(UserError, match="no such file"):
    prepare(corpus(source("jsonl", tmp_path / "absent.jsonl"), name="p1"))
  (tmp_path / "bad.jsonl").write_text("{\n[1]\n")
  with pytest.raises(UserError, match=r"nothing is left.*2 records, 0 documents kept, 1 not JSON, 1 not a JSON"):
    prepare(corpus(source("jsonl", tmp_path / "bad.jsonl"), name="p2"))
  write_jsonl(tmp_path / "good.jsonl", make_texts(2, seed=0))
  prepare(corpus(source("jsonl", tmp_path / "good.jsonl"), name="p2"))  # the folder is free for what is right
  (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00")
  with pytest.raises(UserError, match="not a whole gzip file"):
    prepare(corpus(source("jsonl", tmp_path / "cut.jsonl.gz"), name="p3"))
  prepare(corpus(source("jsonl", tmp_path / "good.jsonl"), name="p3"))
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "thesis.tex").write_text("")
  with pytest.raises(UserError, match="not empty"):
    prepare(corpus(source("jsonl", tmp_path / "bad.jsonl"), name="other"))
  with lock.held(tmp_path / "p4" / "lock", "p4"), pytest.raises(UserError, match="is held by process"):
    prepare(corpus(source("jsonl", tmp_path / "good.jsonl"), name="p4"))
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    prepare(corpus(source("jsonl", tmp_path / "bad.jsonl"), name="file"))


def test_the_loop_refuses_what_is_not_there_or_of_other_sources(prepare, corpus, source, tmp_path):
  write_jsonl(tmp_path / "a.jsonl", make_texts(5, seed=1))
  config = corpus(source("jsonl", tmp_path / "a.jsonl"))
  with pytest.raises(UserError, match=r"no prepared corpus lies: make it with `python -m policylong.prepare"):
    open_corpus(config)
  prepare(config)
  shutil.move(tmp_path / "a.jsonl", tmp_path / "gone.jsonl")  # the sources are not needed any more
  assert open_corpus(config).num_documents == 5
  with pytest.raises(UserError, match=r"corpus.chunk_chars = 200, and the config has 300"):
    open_corpus(dataclasses.replace(config, chunk_chars=300))
  with pytest.raises(UserError, match=r"corpus.sources = \['s'\]"):
    open_corpus(dataclasses.replace(config, sources=(source("jsonl", tmp_path / "a.jsonl", name="t"),)))


def test_a_damaged_block_of_a_shard_is_told_with_the_command_that_makes_it_again(prepare, corpus, source, tmp_path):
  write_jsonl(tmp_path / "a.jsonl", make_texts(5, seed=1))
  config = corpus(source("jsonl", tmp_path / "a.jsonl"))
  prepare(config)
  whole = files(tmp_path / "prepared")
  for name in ("documents-00000.arrow", "chunk_start.npy", "BLOCKS", "summary.json"):
    data = bytearray(whole[name])
    data[len(data) // 2] ^= 1
    (tmp_path / "prepared" / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name} cannot be read.*or delete .*/prepared and make it again with `python "
                                        r"-m policylong\.prepare --config=\.\.\.`, as the settings in its manifest"):
      found = open_corpus(config)
      documents(found), [found.chunk(row) for row in range(found.num_chunks)]
    (tmp_path / "prepared" / name).write_bytes(whole[name])
  assert len(documents(open_corpus(config))) == 5


def test_a_run_reads_it_and_its_page_counts_what_was_removed(prepare, tmp_path, material):
  from tests.small_run import make_small_run, small_config
  make_small_run(tmp_path, material)
  talks = tmp_path / "talks.jsonl"
  first = json.loads(talks.read_text().splitlines()[0])
  talks.write_text(talks.read_text() + json.dumps({**first, "id": "copy"}) + "\n{\n")
  values = small_config(tmp_path)
  values.corpus.prepared = str(tmp_path / "prepared")
  values.update({"rounds": 1, "method": "standard"})
  values.mesh.update({"data": 2, "fsdp": 1, "context": 4})  # the 8 simulated devices
  values.eval.tasks = ()
  config = config_lib.parse(values)
  prepare(config.corpus)
  os.rename(talks, tmp_path / "elsewhere.jsonl")
  page = loop.run(config, tmp_path / "run").read_text()
  summary = json.loads((tmp_path / "run" / "corpus.json").read_text())
  assert summary["documents"] == 24 and summary["records"] == 26
  assert summary["removed"]["exact duplicate"] == {"count": 1, "examples": [{"source": "talks", "place": "talks/copy"}]}
  assert "exact duplicate" in page and "talks/copy" in page and "not JSON" in page


def test_names_of_benchmarks_are_given_once(prepare, corpus, source, tmp_path):
  write_jsonl(tmp_path / "a.jsonl", make_texts(2, seed=1))
  with pytest.raises(UserError, match="--benchmark is ruler more than once"):
    prepare(corpus(source("jsonl", tmp_path / "a.jsonl")), benchmarks=["ruler=/x", "ruler=/y"])
  assert benchmarks.MOST < 64
