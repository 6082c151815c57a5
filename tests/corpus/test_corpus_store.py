"""The stored corpus gives back what was read, is built once, and is never half there."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from policylong.corpus import builder
from policylong.corpus.chunks import chunk_spans
from policylong.corpus.store import open_corpus
from policylong.errors import UserError
from policylong.storage import blocks


@pytest.fixture
def written(tmp_path):
  """Two JSONL files of random texts, as (id, text) lists that were never through our code."""
  rng = np.random.default_rng(7)
  words = np.array(["plain", "café", "日本語", "🤖", "two\nlines", "end.\n\n", "  "])
  result = {}
  for name, count in (("first", 300), ("second", 120)):
    rows = [(f"{name[0]}{i}", "start " + " ".join(words[rng.integers(len(words), size=rng.integers(1, 200))]))
            for i in range(count)]
    with open(tmp_path / f"{name}.jsonl", "w", encoding="utf-8") as file:
      file.writelines(json.dumps({"id": i, "text": t}) + "\n" for i, t in rows)
    result[name] = rows
  return result


@pytest.fixture
def config(written, make_config, source, tmp_path):
  return make_config(*(source("jsonl", tmp_path / f"{name}.jsonl", name=name) for name in written))


def test_every_document_and_chunk_comes_back(config, written, monkeypatch):
  monkeypatch.setattr(builder, "BATCH_ROWS", 7)  # many batches, so that rows cross them
  corpus = open_corpus(config)
  expected = [(f"{name}/{i}", text, name) for name, rows in written.items() for i, text in rows]
  assert corpus.num_documents == len(expected) == 420
  row = 0
  for index, (doc_id, text, name) in enumerate(expected):
    document = corpus.document(index)
    assert (document.id, document.text, document.source) == (doc_id, text, name)
    assert corpus.document_index(doc_id) == index and corpus.document_id(index) == doc_id
    spans = chunk_spans(text, config.chunk_chars)
    assert corpus.document_rows(index) == range(row, row + len(spans))
    assert corpus.chunk_starts(index).tolist() == [start for start, _ in spans]
    for start, end in spans:
      chunk = corpus.chunk(row)
      assert (chunk.doc_id, chunk.start, chunk.end) == (doc_id, start, end)
      assert chunk.id == f"{doc_id}#{start}-{end}"
      assert corpus.chunk_text(row) == text[start:end]
      assert corpus.chunk_row(chunk.id) == row and corpus.chunk_document[row] == index
      row += 1
  assert row == corpus.num_chunks == len(corpus.chunk_document) and corpus.chunk_document.dtype == np.int32
  assert corpus.source_rows("second") == range(300, 420)


def test_what_is_not_there_is_an_error_and_never_another_row(config):
  corpus = open_corpus(config)
  first = corpus.chunk(0)
  for identifier in ("first/none", "first/f0", f"first/f0#{first.start}-{first.end + 1}",
                     f"first/f0#{first.start + 1}-{first.end}", "first/f0#99999999-100000000"):
    with pytest.raises(KeyError):
      corpus.chunk_row(identifier)
  with pytest.raises(KeyError):
    corpus.document_index("f0")
  for call in (corpus.document, corpus.document_rows, corpus.chunk, corpus.chunk_text):
    for index in (-1, 10**6):
      with pytest.raises(IndexError):
        call(index)


def test_numbers_and_texts_are_mapped_not_loaded(config):
  corpus = open_corpus(config)
  assert isinstance(corpus.chunk_document._values, np.memmap)
  before = pa.total_allocated_bytes()
  texts = [corpus.document(i) for i in range(corpus.num_documents)]
  assert len(texts) == 420 and pa.total_allocated_bytes() == before


def test_a_corpus_is_built_once(config, monkeypatch):
  version = open_corpus(config).version
  monkeypatch.setattr(builder, "build", lambda *_: pytest.fail("built again"))
  assert open_corpus(config).version == version


def test_a_touched_file_is_read_again_and_gives_the_same_version(config, tmp_path):
  version = open_corpus(config).version
  os.utime(tmp_path / "first.jsonl", ns=(1, 1))
  assert open_corpus(config).version == version
  assert len(list((tmp_path / "cache").glob("corpus-[0-9a-f]*"))) == 1


def test_the_version_follows_the_content(config, make_config, tmp_path):
  versions = {open_corpus(config).version, open_corpus(make_config(*config.sources, chunk_chars=100)).version,
              open_corpus(make_config(*config.sources[::-1])).version,
              open_corpus(make_config(config.sources[0])).version}
  path = tmp_path / "first.jsonl"
  whole = path.read_bytes()
  path.write_bytes(whole.replace(b"plain", b"plane", 1))
  versions.add(open_corpus(config).version)
  path.write_bytes(b"{broken\n" + whole)
  versions.add(open_corpus(config).version)
  assert len(versions) == 6


def test_the_version_does_not_follow_the_place(config, make_config, source, tmp_path):
  (tmp_path / "elsewhere").mkdir()
  for name in ("first", "second"):
    (tmp_path / "elsewhere" / f"{name}.jsonl").write_bytes((tmp_path / f"{name}.jsonl").read_bytes())
  moved = make_config(*(source("jsonl", tmp_path / "elsewhere" / f"{n}.jsonl", name=n) for n in ("first", "second")))
  assert open_corpus(config).version == open_corpus(moved).version


def test_bad_records_are_counted_with_examples(make_config, source, tmp_path):
  lines = ['{"id": "a", "text": "good"}', "nonsense", '{"id": "a", "text": "same id"}', '{"text": "no id"}',
           *['{"id": "b"}'] * 9]
  (tmp_path / "x.jsonl").write_text("\n".join(lines))
  (tmp_path / "y.jsonl").write_text('{"id": "a", "text": "same id in another source"}')
  corpus = open_corpus(make_config(source("jsonl", tmp_path / "x.jsonl", name="x"),
                                   source("jsonl", tmp_path / "y.jsonl", name="y")))
  assert corpus.bad_records == {"not JSON": 1, "duplicate id": 1, "text missing": 9}
  assert [corpus.document(i).id for i in range(3)] == ["x/a", "x/line-4", "y/a"]
  summary = corpus.summary()
  assert summary["bad_records"]["text missing"]["examples"] == [
      {"source": "x", "place": f"x.jsonl:{n}"} for n in range(5, 10)]
  assert summary["sources"]["x"] == {"documents": 2, "chunks": 2, "characters": 9, "made_up_ids": 1,
                                     "bad_records": 11}
  assert summary["documents"] == 3 and json.loads(json.dumps(summary)) == summary


def test_ten_times_the_same_ids_are_found_across_the_runs_of_the_set(monkeypatch):
  monkeypatch.setattr(builder.Hashes, "RECENT", 16)
  rng = np.random.default_rng(0)
  seen, reference = builder.Hashes(), set()
  for value in [*rng.integers(0, 1000, size=5000).tolist(), 2**64 - 1, 0, 2**64 - 1]:
    assert seen.add(value) == (value not in reference)
    reference.add(value)


def test_an_empty_corpus_is_one_sentence(make_config, source, tmp_path):
  (tmp_path / "x.jsonl").write_text("nonsense\n[]\n")
  with pytest.raises(UserError, match=r"corpus is empty.*1 not JSON, 1 not a JSON object"):
    open_corpus(make_config(source("jsonl", tmp_path / "x.jsonl")))
  (tmp_path / "x.jsonl").write_text("")
  with pytest.raises(UserError, match="they hold no record"):
    open_corpus(make_config(source("jsonl", tmp_path / "x.jsonl")))
  assert not list((tmp_path / "cache").glob("corpus-building*"))


def everything(corpus):
  """All that a corpus says, by every way of asking."""
  documents = [corpus.document(i) for i in range(corpus.num_documents)]
  chunks = [(corpus.chunk(row), corpus.chunk_text(row), int(corpus.chunk_document[row]))
            for row in range(corpus.num_chunks)]
  return (documents, chunks, [corpus.document_index(document.id) for document in documents],
          [corpus.chunk_row(chunk.id) for chunk, _, _ in chunks],
          [corpus.chunk_starts(i).tolist() for i in range(corpus.num_documents)], corpus.summary())


def test_a_store_that_was_cut_is_made_again(config, tmp_path, caplog):
  wanted = everything(open_corpus(config))
  (path,) = (tmp_path / "cache").glob("corpus-*/documents.arrow")
  path.write_bytes(path.read_bytes()[:-100])
  assert everything(open_corpus(config)) == wanted
  assert re.search(r"documents\.arrow is damaged \(it has \d+ bytes, wanted \d+\): it is made again", caplog.text)


def test_of_a_flipped_byte_anywhere_nothing_is_seen_but_a_line(config, tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(builder, "BATCH_ROWS", 7)
  monkeypatch.setattr(blocks, "SIZE", 512)
  wanted = everything(open_corpus(config))
  (folder,) = (tmp_path / "cache").glob("corpus-*[0-9a-f]/")
  files = sorted(path for path in folder.parent.rglob("*") if path.is_file() and path.suffix != ".lock")
  assert len(files) == 14
  rng = np.random.default_rng(3)
  for path in [*files, *rng.choice([path for path in files if path.stat().st_size > 4096], 12)]:
    whole = path.read_bytes()
    data, at = bytearray(whole), int(rng.integers(len(whole)))
    data[at] ^= int(rng.integers(1, 256))
    path.write_bytes(data)
    caplog.clear()
    assert everything(open_corpus(config)) == wanted, (path, at)
    assert "damaged" in caplog.text or path.read_bytes() == data, (path, at)
    assert path.read_bytes() == whole or json.loads(path.read_bytes()) == json.loads(whole), (path, at)


def test_damage_whose_sources_have_changed_is_one_sentence(config, tmp_path):
  corpus = open_corpus(config)
  (path,) = (tmp_path / "cache").glob("corpus-*/documents.arrow")
  with open(path, "r+b") as file:
    file.seek(3 * blocks.SIZE + 5)  # none of the first block, which opening has looked at
    file.write(b"\0\1\2")
  lines = (tmp_path / "first.jsonl").read_text().splitlines(keepends=True)
  (tmp_path / "first.jsonl").write_text("".join(lines[9:]))
  with pytest.raises(UserError, match=r"documents\.arrow cannot be read, .*bytes 196608 to 262144 .* delete the"):
    everything(corpus)


def test_a_cache_that_cannot_be_a_folder_is_named(config, tmp_path):
  (tmp_path / "cache").write_text("a file")
  with pytest.raises(UserError, match="cache_dir"):
    open_corpus(config)


BUILD_SLOWLY = """
import sys, time
from policylong import config
from policylong.corpus import sources, store
read = sources.read_source
def slowly(source, ids_with_file):
  for number, reading in enumerate(read(source, ids_with_file)):
    if number == 200:
      print("half", flush=True)
      time.sleep(60)
    yield reading
sources.read_source = slowly
store.open_corpus(config.Corpus(sources=tuple(config.Source(*s) for s in {sources!r}), root_sources=(),
                                chunk_chars={chunk_chars}, cache_dir={cache_dir!r}, prepared=None))
"""


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(config, tmp_path):
  code = BUILD_SLOWLY.format(sources=[dataclasses.astuple(s) for s in config.sources],
                             chunk_chars=config.chunk_chars, cache_dir=config.cache_dir)
  process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.DEVNULL, cwd=pathlib.Path(__file__).parents[2])
  assert process.stdout.readline() == "half\n"
  opened = []  # a second process waits for the first, and takes over when it dies
  waiting = threading.Thread(target=lambda: opened.append(open_corpus(config)))
  waiting.start()
  time.sleep(0.3)
  assert not opened
  process.send_signal(signal.SIGKILL)
  process.wait()
  waiting.join(timeout=30)
  assert opened[0].num_documents == 420 and opened[0].document(419).id.startswith("second/")
  assert not list((tmp_path / "cache").glob("corpus-building*"))


def test_threads_may_read_together(config, monkeypatch):
  monkeypatch.setattr(builder, "BATCH_ROWS", 3)
  corpus = open_corpus(config)
  expected = [corpus.chunk_text(row) for row in range(corpus.num_chunks)]
  wrong = []

  def read(seed):
    for row in np.random.default_rng(seed).permutation(corpus.num_chunks):
      if corpus.chunk_text(int(row)) != expected[row]:
        wrong.append(row)
  threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


def test_the_demo_corpus(material, make_config, source):
  corpus = open_corpus(make_config(source("text", material / "sotu", name="sotu"),
                                   source("jsonl", material / "wiki.jsonl", name="wiki"), chunk_chars=2048))
  assert len(corpus.source_rows("sotu")) == 249 and len(corpus.source_rows("wiki")) > 9000
  row = corpus.document_rows(corpus.document_index("sotu/1863-Lincoln-1.txt")).start
  text = (material / "sotu" / "1863-Lincoln-1.txt").read_text()
  assert text.startswith(corpus.chunk_text(row)) and len(corpus.chunk_text(row)) <= 2048
