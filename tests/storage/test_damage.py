"""Whatever is changed of a file that is read again, and whichever lies in its place, is found when it is read."""

import contextlib
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policylong.errors import Damaged, UserError
from policylong.storage import checksums, lines, manifest, mending, tables
from policylong.storage.workdir import Workdir, read_json, write_bare_json, write_json

TABLE = pa.table({"a": list(range(200)), "s": [f"x{i}" for i in range(200)]})


@pytest.fixture
def workdir(tmp_path):
  workdir = Workdir(tmp_path / "run")
  write_bare_json(workdir.config_json, {"seed": 7})
  return workdir


def flipped(data, at, rng):
  changed = bytearray(data)
  changed[at] ^= int(rng.integers(1, 256))
  return bytes(changed)


def test_every_byte_of_a_table_counts(workdir):
  path, rng = workdir.round(2).shard("scan", 3), np.random.default_rng(0)
  tables.write(path, TABLE)
  whole = path.read_bytes()
  assert tables.read(path).equals(TABLE) and tables.read(path, ["s"]).column_names == ["s"]
  for at in range(len(whole)):
    path.write_bytes(flipped(whole, at, rng))
    with pytest.raises(Damaged):
      tables.read(path)
  for length in [*range(0, len(whole), 97), len(whole) - 1]:
    path.write_bytes(whole[:length])
    with pytest.raises(Damaged):
      tables.read(path)


def test_a_table_says_what_it_is_and_a_swapped_one_is_found(workdir, tmp_path):
  round_ = workdir.round(2)
  for index in (3, 4):
    tables.write(round_.shard("scan", index), TABLE)
  told = pq.read_metadata(round_.shard("scan", 3)).metadata[b"policylong.place"].decode()
  assert told.startswith("rounds/2/shards/scan-00003.parquet of the config ")
  round_.shard("scan", 4).replace(round_.shard("scan", 3))
  with pytest.raises(Damaged, match=r"it is rounds/2/shards/scan-00004\.parquet of .*, and this place is .*scan-00003"):
    tables.read(round_.shard("scan", 3))
  other = Workdir(tmp_path / "other")  # the same place in a run of another config
  write_bare_json(other.config_json, {"seed": 8})
  tables.write(other.round(2).shard("scan", 5), TABLE)
  round_.shard("scan", 5).write_bytes(other.round(2).shard("scan", 5).read_bytes())
  with pytest.raises(Damaged, match=r"scan-00005\.parquet of the config [0-9a-f]{16}, and this place is"):
    tables.read(round_.shard("scan", 5))
  tables.write(workdir.round(1).table("roots"), TABLE)  # the same table of another round
  round_.table("roots").write_bytes(workdir.round(1).table("roots").read_bytes())
  with pytest.raises(Damaged, match=r"it is rounds/1/roots\.parquet, and this place is rounds/2/roots\.parquet"):
    tables.read(round_.table("roots"))


def test_a_finished_rounds_table_is_the_one_that_its_marker_tells_of(workdir):
  round_ = workdir.round(1)
  tables.write(round_.table("roots"), TABLE)
  round_.finish({"roots": 200})
  assert tables.read(round_.table("roots")).equals(TABLE)
  tables.write(round_.table("roots"), TABLE.slice(1))  # whole in itself
  with pytest.raises(Damaged, match=r"not the table of which the round's DONE\.json tells"):
    tables.read(round_.table("roots"))


def test_a_flipped_byte_of_json_is_found_or_says_the_same(workdir):
  path, rng = workdir.round(1).judged_path, np.random.default_rng(0)
  value = {"asked": 3, "limits": [1, 2.5, None, float("inf")], "names": {"b": "é", "a": True}, "10": 1, "9": 2}
  write_json(path, value)
  whole = path.read_bytes()
  assert read_json(path) == value
  for at in range(len(whole)):
    path.write_bytes(flipped(whole, at, rng))
    with contextlib.suppress(Damaged):
      assert read_json(path) == value


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"null", b"3", b'"asked"', b'{"asked": 3}', b"\xff\xfe\x00",
                                  b"[" * 99])
def test_json_of_a_wrong_shape_is_damage(workdir, text):
  path = workdir.round(1).judged_path
  write_json(path, {"asked": 3})
  path.write_bytes(text)
  with pytest.raises(Damaged, match=r"judged\.json cannot be read, as it is damaged"):
    read_json(path)


def test_json_of_another_round_or_name_is_damage(workdir):
  write_json(workdir.round(1).judged_path, {"asked": 3})
  for path in (workdir.round(2).judged_path, workdir.round(1).screened_path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(workdir.round(1).judged_path.read_bytes())
    with pytest.raises(Damaged, match="of another content or place"):
      read_json(path)


def test_json_whose_checksum_lies_beside_it_survives_a_kill_between_the_two(tmp_path, monkeypatch):
  path = tmp_path / "results.json"
  write_bare_json(path, {"task": 1})
  write = type(Workdir(tmp_path).config_json).replace
  calls = []

  def killed(source, target):
    calls.append(target)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return write(source, target)
  monkeypatch.setattr(type(Workdir(tmp_path).config_json), "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    write_bare_json(path, {"task": 2})
  monkeypatch.undo()
  assert read_json(path) == {"task": 1}
  write_bare_json(path, {"task": 2})
  assert read_json(path) == {"task": 2} and path.read_text() == '{\n  "task": 2\n}\n'
  path.write_text('{\n  "task": 3\n}\n')
  with pytest.raises(Damaged):
    read_json(path)


def test_lines_and_sealed_bytes_are_told_from_damaged_ones():
  rng, value = np.random.default_rng(0), {"index": 3, "prediction": "a \u00e9\n", "truncated": False}
  text, data = lines.line(value).encode(), checksums.sealed(b"some bytes")
  assert lines.value(text) == value and checksums.unsealed(pathlib.Path("x"), data) == b"some bytes"
  for at in range(len(text) - 1):
    with pytest.raises(ValueError):
      lines.value(flipped(text, at, rng))
  for at in range(len(data)):
    with pytest.raises(Damaged):
      checksums.unsealed(pathlib.Path("x"), flipped(data, at, rng))


def test_of_a_growing_file_damaged_lines_are_left_out_and_counted(tmp_path):
  path, rng = Workdir(tmp_path).metrics, np.random.default_rng(0)
  file = lines.Growing(path)
  for step in (1, 2, 3):
    file.write({"step": step, "loss": 3.5 / step})
  file.close()
  whole = path.read_bytes()
  assert [value["step"] for _, value in lines.read(path)[0]] == [1, 2, 3]
  assert path.read_text().splitlines()[1] == '{"step": 2, "loss": 1.75}'  # as others read it
  second = whole.index(b"\n") + 1
  for at in range(second, second + 25):
    path.write_bytes(flipped(whole, at, rng))
    found, damaged = lines.read(path)
    assert damaged and found[0][1]["step"] == 1
    assert all(text in whole for text, value in found if "step" in value)
  path.write_bytes(whole + b'{"step": 4, "loss": 9.0}\n{"step": 5, "lo')  # no checksum, and cut
  assert lines.read(path)[1] == 2
  path.write_bytes(whole + b'{"note": "of somebody else"}\n')
  assert len(lines.read(path)[0]) == 4


def test_a_folder_is_what_its_manifest_tells(tmp_path):
  (tmp_path / "a" / "b").mkdir(parents=True)
  for name in ("x", "b/y"):
    (tmp_path / "a" / name).write_bytes(name.encode() * 5)
  manifest.write(tmp_path / "a", of="both")
  assert manifest.check(tmp_path / "a")["of"] == "both"
  (tmp_path / "a" / "b" / "z").write_bytes(b"")
  manifest.check(tmp_path / "a")
  with pytest.raises(Damaged, match=r"it holds b/y, b/z, x, and its MANIFEST\.json lists b/y, x"):
    manifest.check(tmp_path / "a", alone=True)
  (tmp_path / "a" / "b" / "y").write_bytes(b"b/yb/yb/yb/yb/Y")
  manifest.check(tmp_path / "a", lambda name: name == "x")
  with pytest.raises(Damaged, match=r"a/b/y cannot be read, as it is damaged"):
    manifest.check(tmp_path / "a")
  (tmp_path / "a" / "b" / "y").unlink()
  with pytest.raises(Damaged, match="it is missing"):
    manifest.check(tmp_path / "a")


def a_round(workdir):
  """A round up to its sequences, of two shards."""
  round_ = workdir.round(1)
  for index in (0, 1):
    for stage in mending.STAGES:
      tables.write(round_.shard(stage, index), TABLE)
  write_json(round_.shard_plan(0), {"plan": 1})
  for name in (*mending.JUDGED, "negatives", "sequences"):
    tables.write(round_.table(name), TABLE)
  write_json(round_.judged_path, {"asked": 1})
  round_.sequences.mkdir()
  (round_.sequences / "part-00000.array_record").write_bytes(b"records")
  manifest.write(round_.sequences)
  write_json(round_.screened_path, {"sequences": 1})
  return round_


@pytest.mark.parametrize("name, gone", [
    ("screened.json", ["screened.json"]),
    ("judged.json", ["judged.json", "screened.json"]),
    ("verdicts.parquet", ["judged.json", "screened.json", "verdicts.parquet"]),
    ("negatives.parquet", ["negatives.parquet", "screened.json"]),
    ("sequences/part-00000.array_record", ["screened.json", "sequences/MANIFEST.json",
                                           "sequences/part-00000.array_record"]),
    ("shards/plan-00.json", ["screened.json", "shards/plan-00.json"]),
    ("shards/anchors-00001.parquet", ["screened.json", *(f"shards/{stage}-00001.parquet" for stage in (
        "anchors", "candidates", "rows", "verify"))])])
def test_what_was_made_from_damage_goes_with_it(workdir, caplog, name, gone):
  round_ = a_round(workdir)

  def there():
    return {str(path.relative_to(round_.directory)) for path in pathlib.Path(round_.directory).rglob("*")
            if path.is_file()}
  before = there()
  mending.mend(round_)
  assert there() == before and not caplog.text
  path = round_.directory / name
  path.write_bytes(flipped(path.read_bytes(), 5, np.random.default_rng(0)))
  if name.startswith("shards"):  # they are looked at where something is still made from them
    round_.screened_path.unlink()
  mending.mend(round_)
  assert sorted(before - there()) == sorted(gone)
  assert len(caplog.records) == 1 and "is damaged" in caplog.text and "made again" in caplog.text


def test_of_a_finished_round_what_stands_in_its_marker_too_is_made_again(workdir):
  round_ = a_round(workdir)
  round_.finish({"sequences": 1})
  wanted = round_.screened_path.read_bytes()
  round_.screened_path.write_bytes(wanted[:-9])
  mending.mend_finished(round_)
  assert round_.screened_path.read_bytes() == wanted


def test_a_run_of_a_version_without_checksums_is_refused_in_a_sentence(tmp_path):
  from configs import demo
  from policylong import config as config_lib
  config, workdir = config_lib.parse(demo.get_config()), Workdir(tmp_path / "run")
  workdir.claim(config)
  (tmp_path / "run" / "config.json.sha256").unlink()
  workdir.claim(config)  # nothing was made yet
  (tmp_path / "run" / "rounds" / "1").mkdir(parents=True)
  with pytest.raises(UserError, match="begun by a version whose files had no checksums"):
    workdir.claim(config)
