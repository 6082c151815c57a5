"""Files are known by their first bytes; what cannot be read is counted and never waited for."""

import bz2
import gzip
import json
import logging
import lzma
import os
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policylong.corpus import files, json_records, sources
from policylong.corpus.conversations import read_conversations
from policylong.corpus.sources import read_source, source_at
from policylong.corpus.store import open_corpus
from policylong.errors import UserError

RECORDS = [("a", "first text é"), ("b", "second text 日本"), ("c", "third " * 5000)]
EXPECTED = [(f"s/{i}", t) for i, t in RECORDS]
LINES = "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in RECORDS).encode()


def documents(readings):
  return [(r.document.id, r.document.text) for r in readings if r.document]


def bad(readings):
  return [(r.place, r.reason) for r in readings if not r.document]


def zstd(data):
  return pa.compress(data, "zstd", asbytes=True)


def zstd_frame(data, window):
  """A frame of raw blocks as RFC 8878 has it, which asks for a window of 2^window bytes (zstd --long=window)."""
  block = 1 << 17
  parts = [data[i:i + block] for i in range(0, len(data), block)]
  return b"\x28\xb5\x2f\xfd" + bytes([0, (window - 10) << 3]) + b"".join(
      (len(part) << 3 | (i == len(parts) - 1)).to_bytes(3, "little") + part for i, part in enumerate(parts))


SKIPPED_FRAME = b"\x5a\x2a\x4d\x18" + struct.pack("<I", 3) + b"abc"
COMPRESSED = {
    "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd, "plain": lambda data: data,
    "gzip, two members": lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:]),
    "bzip2, two streams": lambda data: bz2.compress(data[:50]) + bz2.compress(data[50:]),
    "xz, two streams": lambda data: lzma.compress(data[:50]) + lzma.compress(data[50:]),
    "zstd, two frames": lambda data: zstd(data[:50]) + zstd(data[50:]),
    "zstd behind a skippable frame": lambda data: SKIPPED_FRAME + zstd(data),
    "zstd of 2^28": lambda data: zstd_frame(data, 28), "zstd of 2^31": lambda data: zstd_frame(data, 31),
    "xz, padded": lambda data: lzma.compress(data[:50]) + bytes(8) + lzma.compress(data[50:]) + bytes(4)}


@pytest.mark.parametrize("how", COMPRESSED)
@pytest.mark.parametrize("name", ["x.jsonl", "x.gz", "x.ZST", "x"])
def test_compression_is_known_by_the_bytes_and_not_by_the_name(source, tmp_path, how, name):
  (tmp_path / name).write_bytes(COMPRESSED[how](LINES))
  readings = list(read_source(source("jsonl", tmp_path / name)))
  assert documents(readings) == EXPECTED and not bad(readings)
  assert sum(r.size for r in readings) == (tmp_path / name).stat().st_size  # what the bar counts


@pytest.mark.parametrize("how", COMPRESSED)
def test_texts_and_chats_and_arrays_may_be_compressed_too(source, tmp_path, how):
  (tmp_path / "t.txt").write_bytes(COMPRESSED[how](("\ufeff" + "ein Text é" * 9).encode()))
  assert documents(read_source(source("text", tmp_path / "t.txt"))) == [("s/t.txt", "ein Text é" * 9)]
  chat = {"messages": [{"role": "user", "content": "q" * 99}, {"role": "assistant", "content": "a"}]}
  (tmp_path / "chat").write_bytes(COMPRESSED[how](json.dumps(chat).encode()))
  assert [c.messages for c in read_conversations([tmp_path / "chat"])] == [chat["messages"]]
  (tmp_path / "array").write_bytes(COMPRESSED[how](json.dumps([{"id": i, "text": t} for i, t in RECORDS]).encode()))
  assert documents(read_source(source("jsonl", tmp_path / "array"))) == EXPECTED


def test_a_folder_of_texts_has_its_compressed_ones(source, tmp_path):
  (tmp_path / "a.txt").write_text("plain")
  (tmp_path / "b.txt.zst").write_bytes(zstd(b"packed"))
  assert documents(read_source(source("text", tmp_path))) == [("s/a.txt", "plain"), ("s/b.txt.zst", "packed")]


@pytest.mark.parametrize("how", [name for name in COMPRESSED if name != "plain"])
def test_a_file_cut_short_gives_what_it_has_and_is_counted(source, tmp_path, how):
  lines = b"".join(b'{"text": "%d"}\n' % (i * 7919 % 100003) for i in range(40000))
  (tmp_path / "a").write_bytes(COMPRESSED[how](lines)[:-9])
  codec = how.split(",")[0].split(" ")[0]
  with pytest.raises(UserError, match=f"a is not a whole {codec} file"):
    list(read_source(source("jsonl", tmp_path / "a")))
  (tmp_path / "b").write_bytes(LINES)
  readings = list(read_source(source("jsonl", tmp_path / "*")))
  assert bad(readings) == [("a", f"not a whole {codec} file")] and documents(readings)[-3:] == [
      (f"s/{i}", t) for i, t in RECORDS]
  assert 10000 < len(documents(readings)) <= 40003


@pytest.mark.parametrize("how", ["gzip", "bzip2", "xz", "zstd"])
def test_what_follows_a_stream_and_is_none_is_told(source, tmp_path, how):
  """As where one byte is damaged of the second: the documents behind it are not left out without a word."""
  second = bytearray(COMPRESSED[how](b'{"text": "lost"}\n'))
  second[1] ^= 1
  (tmp_path / "a").write_bytes(COMPRESSED[how](LINES) + second)
  (tmp_path / "b").write_bytes(b'{"text": "other"}')
  readings = list(read_source(source("jsonl", tmp_path / "*")))
  assert [text for _, text in documents(readings)] == [*(text for _, text in RECORDS), "other"]
  assert bad(readings) == [("a", f"not a whole {how} file")]


def unreadable(folder):
  """One file of each kind that cannot be read, and the reason."""
  (folder / "folder").mkdir()
  os.mkfifo(folder / "fifo")
  os.symlink("nowhere", folder / "link")
  os.symlink("/dev/zero", folder / "zero")  # which never ends
  (folder / "cut.gz").write_bytes(gzip.compress(LINES)[:-4])
  pq.write_table(pa.table({"text": ["x"]}), folder / "table.jsonl")
  (folder / "utf16").write_text('{"text": "x"}', encoding="utf-16")
  return {files.A_FOLDER: 1, files.NOT_REGULAR: 2, files.DANGLING: 1, "not a whole gzip file": 1,
          json_records.NOT_TEXT: 2}


def test_whatever_a_glob_finds_is_read_or_counted_by_reason(make_config, source, tmp_path, caplog):
  (tmp_path / "in").mkdir()
  reasons = unreadable(tmp_path / "in")
  (tmp_path / "in" / "good").write_bytes(LINES)
  caplog.set_level(logging.INFO, "policylong")
  config = make_config(source("jsonl", tmp_path / "in" / "g*"), source("jsonl", tmp_path / "in" / "*", name="all"))
  corpus = open_corpus(config)
  # The cut file had its records already, and the ids of "good" are the same.
  assert corpus.bad_records == reasons
  assert {corpus.document_id(i) for i in range(corpus.num_documents)} == {
      *(f"s/{i}" for i, _ in RECORDS), *(f"all/{name}:{i}" for name in ("cut.gz", "good") for i, _ in RECORDS)}
  said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("corpus:")]
  assert said == ["corpus: 9 documents kept, 7 records dropped (1 a folder, 1 a link to a file that does not exist, "
                  "2 not a regular file, 1 not a whole gzip file, 2 not text in UTF-8)"]
  # What cannot be read now and can be later is part of the state.
  (tmp_path / "in" / "fifo").unlink()
  assert open_corpus(config).bad_records[files.NOT_REGULAR] == 1


def test_chats_beside_unreadable_files(tmp_path):
  reasons = unreadable(tmp_path)
  found = [path for path, _ in files.find_files(str(tmp_path / "*"), "jsonl", "data.path")]
  said = [c.reason for c in read_conversations(found)]
  assert all(said.count(reason) == count for reason, count in reasons.items())
  assert sum(map(files.size_of, found)) > 0


@pytest.mark.parametrize("kind", ["jsonl", "text", "parquet"])
def test_what_is_named_itself_and_no_file_is_refused_without_waiting(source, tmp_path, kind):
  os.mkfifo(tmp_path / "fifo")
  for path in (tmp_path / "fifo", "/dev/zero"):
    with pytest.raises(UserError, match="not a regular file"):
      list(read_source(source(kind, path)))
  with pytest.raises(UserError, match="matches no file"):
    list(read_source(source(kind, tmp_path / "*")))


def test_parquet_among_others(source, tmp_path):
  pq.write_table(pa.table({"id": ["a"], "text": ["x"]}), tmp_path / "a")
  pq.write_table(pa.table({"text": ["no id"]}), tmp_path / "b")
  pq.write_table(pa.table({"body": ["x"]}), tmp_path / "c")
  (tmp_path / "d").write_bytes(b"PAR1 junk")
  readings = list(read_source(source("parquet", tmp_path / "*")))
  assert documents(readings) == [("s/a", "x"), ("s/b:row-1", "no id")]
  assert bad(readings) == [("c", "Parquet without a column 'text'"), ("d", "not whole Parquet")]


ARRAYS = {
    "one line": lambda rows: json.dumps(rows), "indented": lambda rows: json.dumps(rows, indent=2),
    "byte order mark": lambda rows: "\ufeff" + json.dumps(rows, ensure_ascii=False),
    "white space": lambda rows: "\n [\n" + ",\n".join(map(json.dumps, rows)) + "\n\n]\n"}


@pytest.mark.parametrize("how", ARRAYS)
def test_json_arrays(source, tmp_path, monkeypatch, how):
  rows = [{"id": i, "text": t, "n": [1.5e-3, {"deep": ["]", '"', "\\"]}]} for i, t in RECORDS]
  (tmp_path / "x.json").write_text(ARRAYS[how](rows), encoding="utf-8")
  for block in (7, 64, 1 << 20):
    monkeypatch.setattr(json_records, "_BLOCK", block)
    readings = list(read_source(source("jsonl", tmp_path / "x.json")))
    assert documents(readings) == EXPECTED and not bad(readings)
  assert [r.place for r in readings] == ["x.json:1", "x.json:2", "x.json:3"]


@pytest.mark.parametrize(("text", "wanted"), [
    (b'[{"text": "a"}, 7, "b", [1], null, {"text": "c"}]', ["a", *[json_records.NOT_AN_OBJECT] * 4, "c"]),
    (b'[{"text": "a"}, {"text": "b', ["a", json_records.NOT_JSON]), (b'[{"text": "a"}', ["a", json_records.NOT_JSON]),
    (b'[{"text": "a"} {"text": "b"}]', ["a", json_records.NOT_JSON]),
    (b'[{"text": "a"}, {nonsense}, {"text": "b"}]', ["a", json_records.NOT_JSON]),
    (b'[{"text": "a"}]\n{"text": "b"}', ["a", json_records.NOT_JSON]),
    (b'[{"text": "caf\xe9"}, {"text": "b"}]', [json_records.INVALID_UTF8, "b"]),
    (b'[{"text": ' + b"[" * 100000, [json_records.NOT_JSON]), (b"[]", []), (b"[\n]\n", []),
    (b'[1, 2]\n{"text": "b"}', [json_records.NOT_AN_OBJECT, "b"])])
def test_arrays_with_something_wrong(source, tmp_path, text, wanted):
  (tmp_path / "x").write_bytes(text)
  assert [r.document.text if r.document else r.reason for r in read_source(source("jsonl", tmp_path / "x"))] == wanted


def test_a_long_array_is_read_piece_by_piece(tmp_path, monkeypatch):
  monkeypatch.setattr(json_records, "_BLOCK", 1000)
  (tmp_path / "x").write_text(json.dumps([{"text": "t" * (i % 300)} for i in range(2000)]))
  held = []
  more = json_records._Text._more
  monkeypatch.setattr(json_records._Text, "_more", lambda self: (more(self), held.append(len(self._text)))[0])
  assert [len(value["text"]) for _, _, value in json_records.read_objects(tmp_path / "x")] == [i % 300
                                                                                             for i in range(2000)]
  assert max(held) < 3000


NESTED = [({"content": {"text": "in"}}, "content.text", "in"), ({"content.text": "flat"}, "content.text", "flat"),
          ({"content.text": "flat", "content": {"text": "in"}}, "content.text", "flat"),
          ({"a": {"b": {"c": "deep"}}}, "a.b.c", "deep"), ({"a.b": {"c": "half"}}, "a.b.c", "half"),
          ({"a": {"b.c": "other half"}}, "a.b.c", "other half"), ({"text": "plain"}, "text", "plain")]


@pytest.mark.parametrize(("record", "name", "wanted"), NESTED)
def test_fields_of_fields(source, tmp_path, record, name, wanted):
  record = {**record, "meta": {"id": 5}}
  (tmp_path / "x.jsonl").write_text(json.dumps(record))
  pq.write_table(pa.Table.from_pylist([record]), tmp_path / "x.parquet")
  for kind in ("jsonl", "parquet"):
    assert documents(read_source(source(kind, tmp_path / f"x.{kind}", text_field=name, id_field="meta.id"))) == [
        ("s/5", wanted)]


def test_fields_of_fields_that_are_not_there(source, tmp_path):
  contents = ("text", None, {"text": 5}, [1])
  (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"content": content}) for content in contents))
  assert [r.reason for r in read_source(source("jsonl", tmp_path / "x.jsonl", text_field="content.text"))] == [
      sources.NO_TEXT, sources.NO_TEXT, sources.TEXT_NOT_STRING, sources.NO_TEXT]


@pytest.mark.parametrize("kind", [
    pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()), pa.dictionary(pa.int32(), pa.binary()), pa.string_view()])
def test_parquet_of_more_string_types_without_an_id(source, tmp_path, kind):
  texts = [text for _, text in RECORDS]
  column = (pa.array(texts).cast(kind.value_type).dictionary_encode().cast(kind) if pa.types.is_dictionary(kind)
            else pa.array(texts, pa.string()).cast(kind))
  for name, value in (("text", column), ("deep", pa.StructArray.from_arrays([column], ["text"]))):
    pq.write_table(pa.table({name: value}), tmp_path / "x.parquet")
    field = name if name == "text" else "deep.text"
    assert documents(read_source(source("parquet", tmp_path / "x.parquet", id_field="", text_field=field))) == [
        (f"s/row-{n}", text) for n, text in enumerate(texts, start=1)]
  pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
  assert documents(read_source(source_at("s", str(tmp_path / "x.parquet"))))[0] == ("s/row-1", texts[0])


def write_parts(folder, parts):
  for name, rows in parts.items():
    (folder / name).write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in rows))


def ids(corpus):
  return [corpus.document_id(i) for i in range(corpus.num_documents)]


def test_ids_that_begin_anew_in_each_file_carry_it(make_config, source, tmp_path, caplog):
  caplog.set_level(logging.INFO, "policylong")
  write_parts(tmp_path, {f"part-{k}.jsonl": [(i, f"text {k} {i}") for i in range(12)] for k in range(2)})
  config = make_config(source("jsonl", tmp_path / "*.jsonl"), source("jsonl", tmp_path / "part-0.jsonl", name="one"))
  corpus = open_corpus(config)
  assert ids(corpus) == [*(f"s/part-{k}.jsonl:{i}" for k in range(2) for i in range(12)),
                         *(f"one/{i}" for i in range(12))]
  assert not corpus.bad_records
  assert "the id 0 stands in several files" in caplog.text
  # The same with another cache, and from files in another folder.
  (tmp_path / "other").mkdir()
  for k in range(2):
    os.rename(tmp_path / f"part-{k}.jsonl", tmp_path / "other" / f"part-{k}.jsonl")
  moved = make_config(source("jsonl", tmp_path / "other" / "*.jsonl"),
                      source("jsonl", tmp_path / "other" / "part-0.jsonl", name="one"))
  assert open_corpus(moved).version == corpus.version


@pytest.mark.parametrize(("parts", "wanted", "dropped"), [
    # The last id of the last file is the first one's: all ids carry the file.
    ({"a": [(1, "x"), (2, "y")], "b": [(3, "z"), (1, "w")]}, ["a:1", "a:2", "b:3", "b:1"], 0),
    # Twice in one file is a duplicate, whatever the other files have.
    ({"a": [(1, "x"), (1, "y")], "b": [(2, "z")]}, ["1", "2"], 1),
    ({"a": [(1, "x"), (1, "y")], "b": [(1, "z"), (2, "z")]}, ["a:1", "b:1", "b:2"], 1),
    # Unique ids stay as they are, and so do made-up ones.
    ({"a": [(1, "x"), (None, "y")], "b": [(2, "z"), (None, "w")]}, ["1", "a:line-2", "2", "b:line-2"], 0)])
def test_ids_of_several_files(make_config, source, tmp_path, parts, wanted, dropped):
  (tmp_path / "in").mkdir()
  write_parts(tmp_path / "in", parts)
  corpus = open_corpus(make_config(source("jsonl", tmp_path / "in" / "*")))
  assert ids(corpus) == [f"s/{each}" for each in wanted]
  assert corpus.bad_records == ({sources.DUPLICATE_ID: dropped} if dropped else {})
  readings = sources.read_with_unique_ids(source("jsonl", tmp_path / "in" / "*"))
  assert [r.document.id for r in readings if r.document] == [f"s/{each}" for each in wanted]
  assert [r.reason for r in readings if not r.document] == [sources.DUPLICATE_ID] * dropped


def test_a_readme_beside_parquet_does_not_make_it_jsonl(tmp_path):
  pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "train-0.parquet")
  (tmp_path / "README.md").write_text("# A data set")
  (tmp_path / "ZIP").write_bytes(b"PK\3\4 and so on")
  readings = list(sources.read_source(sources.source_at("in", str(tmp_path / "*"))))
  assert [r.document.text for r in readings if r.document] == ["one", "two"]
  assert [r.reason for r in readings if not r.document] == ["not whole Parquet"] * 2


def test_settings_that_change_what_is_read_are_part_of_the_state(make_config, source, tmp_path):
  (tmp_path / "x").write_text(json.dumps({"id": 1, "text": "outer", "content": {"text": "inner", "id": 2}}))
  found = set()
  for fields in ({}, {"text_field": "content.text"}, {"id_field": "content.id"}):
    corpus = open_corpus(make_config(source("jsonl", tmp_path / "x", **fields)))
    found.add((corpus.document_id(0), corpus.document(0).text))
  assert found == {("s/1", "outer"), ("s/1", "inner"), ("s/2", "outer")}
  # The same bytes packed are another file and the same version.
  version = open_corpus(make_config(source("jsonl", tmp_path / "x"))).version
  (tmp_path / "x").write_bytes(zstd((tmp_path / "x").read_bytes()))
  assert open_corpus(make_config(source("jsonl", tmp_path / "x"))).version == version
