"""Files dealt out to several processes give the corpus of one: the same version and bytes, each file read once."""

import dataclasses
import gzip
import itertools
import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policylong.corpus import dealt, sources, store
from policylong.corpus.store import open_corpus
from tests.threads_as_processes import in_processes


def line(**fields):
  return (json.dumps(fields) + "\n").encode()


@pytest.fixture
def dirty(tmp_path, source):
  """Sources with everything that is decided by what was read before, or in another file."""
  folder = tmp_path / "in"
  (folder / "texts").mkdir(parents=True)
  paragraphs = "\n\n".join(f"Paragraph {i} of many, with é and 中." for i in range(60))
  anew = [line(id=i, text=f"file {name} {i} {paragraphs}") for name in "abc" for i in range(3)]
  for number, name in enumerate("abc"):
    (folder / f"anew-{name}.jsonl").write_bytes(
        b"".join(anew[3 * number:3 * number + 3]) + b"no json\n\n" + line(id=1, text="again") + line(text="no id")
        + line(id=9, text=" ") + line(id="\ud800", text="half a pair") + b"\xff\n")
  (folder / "anew-d.jsonl").write_bytes(gzip.compress(b"".join(anew))[:-20])
  (folder / "anew-e.jsonl").write_bytes(b"")
  for number, name in enumerate("xy"):
    (folder / f"once-{name}.jsonl").write_bytes(b"".join(line(id=f"{number} {i}", text=f"{name}{i}") for i in range(4))
                                                + line(id=f"{number} 2", text="the same id in the same file"))
  for name in "pq":
    pq.write_table(pa.table({"text": [f"row {name}", None, paragraphs]}), folder / f"{name}.parquet")
  for i in range(5):
    (folder / "texts" / f"{i}.txt").write_text(f"text {i}\n\n{paragraphs}")
  (folder / "texts" / "empty.txt").write_text("\n")
  return (source("jsonl", folder / "anew-*.jsonl", name="anew"), source("text", folder / "texts", name="texts"),
          source("jsonl", folder / "once-*.jsonl", name="once"), source("parquet", folder / "?.parquet", id_field=""))


def contents(corpus, cache):
  folder = cache / f"corpus-{corpus.version}"
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("processes", [2, 3, 7, 30])
def test_the_corpus_of_several_processes_has_the_bytes_of_one(make_config, dirty, tmp_path, monkeypatch, processes):
  config = make_config(*dirty)
  one = contents(open_corpus(config), tmp_path / "cache")
  summary = json.loads(one["summary.json"])
  assert {"duplicate id", "not JSON", "invalid UTF-8", "empty text", "text missing"} <= set(summary["bad_records"])
  assert any("gzip" in reason for reason in summary["bad_records"]) and summary["sources"]["anew"]["documents"] > 12
  read, read_source = [], sources.read_source

  def noted(source, ids_with_file=False, only=sources.ALL):
    read.extend((source.name, i) for i in range(len(sources.file_sizes(source)))[only])
    return read_source(source, ids_with_file, only)

  monkeypatch.setattr(sources, "read_source", noted)
  shared = dataclasses.replace(config, cache_dir=str(tmp_path / "shared"))
  corpora = in_processes(processes, monkeypatch, store, lambda: open_corpus(shared))
  assert contents(corpora[0], tmp_path / "shared") == one and len({corpus.version for corpus in corpora}) == 1
  assert sorted(read) == sorted((one.name, i) for one in dirty for i in range(len(sources.file_sizes(one))))
  # Nothing else stays, and the next start reads nothing.
  assert {path.name.split("-")[0] for path in (tmp_path / "shared").iterdir()} == {"corpus"}
  assert len(list((tmp_path / "shared").iterdir())) == 2
  read.clear()
  in_processes(2, monkeypatch, store, lambda: open_corpus(shared))
  assert not read


def test_processes_without_a_common_cache_build_each_their_own(make_config, dirty, tmp_path, monkeypatch):
  config, numbers = make_config(*dirty), iter(range(2))
  monkeypatch.setattr(dealt, "write", lambda *_: pytest.fail("nothing can be dealt out"))
  corpora = in_processes(2, monkeypatch, store, lambda: open_corpus(
      dataclasses.replace(config, cache_dir=str(tmp_path / f"disk{next(numbers)}"))))
  assert [contents(corpora[0], tmp_path / f"disk{i}") == contents(corpora[0], tmp_path / "disk0") for i in (0, 1)] == [
      True, True]


def test_what_a_killed_attempt_left_is_not_taken(make_config, dirty, tmp_path, monkeypatch):
  config = make_config(*dirty)
  left = tmp_path / "cache" / f"corpus-reading-{store.state(config)[0]}"
  left.mkdir(parents=True)
  (left / "000-00001.arrow").write_bytes(b"half")
  (left / "000-00009.arrow").write_bytes(b"of more processes")
  found = contents(in_processes(2, monkeypatch, store, lambda: open_corpus(config))[0], tmp_path / "cache")
  other = dataclasses.replace(config, cache_dir=str(tmp_path / "other"))
  monkeypatch.undo()
  assert found == contents(open_corpus(other), tmp_path / "other") and not left.exists()


@pytest.mark.parametrize("seed", range(20))
def test_files_are_dealt_out_in_order_whole_and_about_evenly(seed):
  rng = np.random.default_rng(seed)
  sizes = [rng.integers(0, 1000, rng.integers(0, 30)).tolist() for _ in range(4)]
  count = int(rng.integers(1, 9))
  dealt_out = [dealt.shares(sizes, index, count) for index in range(count)]
  for number, of_source in enumerate(sizes):
    parts = [list(range(len(of_source)))[own[number]] for own in dealt_out]
    assert [*itertools.chain.from_iterable(parts)] == list(range(len(of_source)))
  loads = [sum(sum(of_source[only]) for of_source, only in zip(sizes, own)) for own in dealt_out]
  # A share is a part of the row of all bytes, whose ends are off by half a file each.
  assert max(loads) <= sum(map(sum, sizes)) / count + 1000


def test_one_process_deals_nothing_out_and_leaves_the_devices_alone(make_config, dirty, monkeypatch, caplog):
  monkeypatch.setattr(store.hosts.jax, "process_count", lambda: pytest.fail("this sets the devices up"))
  monkeypatch.setattr(dealt, "write", lambda *_: pytest.fail("there is nobody else"))
  with caplog.at_level(logging.INFO):
    open_corpus(make_config(*dirty))
  assert "stands in several files" in caplog.text
