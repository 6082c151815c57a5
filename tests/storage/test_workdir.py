"""A working directory belongs to one config, and its files are whole or absent."""

import dataclasses
import errno
import subprocess
import sys

import pyarrow as pa
import pytest

from configs.demo import get_config
from policylong import config as config_lib
from policylong.errors import UserError, run_command
from policylong.records import Verdict
from policylong.storage import tables, workdir


def _config(seed=0):
  return config_lib.parse(get_config().to_dict() | {"seed": seed})


def test_the_same_config_claims_again_and_another_is_refused_with_the_difference(tmp_path):
  folder = workdir.Workdir(tmp_path / "run")
  folder.claim(_config())
  folder.claim(_config())
  folder.metrics.write_text("{}\n")
  with pytest.raises(UserError, match=r"another config.*seed: 0 -> 7"):
    folder.claim(_config(seed=7))
  values = get_config().to_dict()
  values["training"]["document_masking"] = True
  with pytest.raises(UserError, match=r"another config.*training\.document_masking: False -> True"):
    folder.claim(config_lib.parse(values))


def test_where_nothing_was_made_yet_the_corrected_config_is_taken(tmp_path, caplog):
  folder = workdir.Workdir(tmp_path / "run")
  folder.claim(_config())
  for path in (folder.base_model_json, folder.corpus_json, folder.progress / "0.json", folder.lock / "a.json"):
    workdir.write_json(path, {})
  folder.checkpoints.mkdir()
  folder.claim(_config(seed=7))
  assert workdir.read_json(folder.config_json)["seed"] == 7 and "seed: 0 -> 7" in caplog.text
  # What the first start found of its model and corpus goes with its config.
  assert not folder.base_model_json.exists() and not folder.corpus_json.exists()
  with pytest.raises(UserError, match="seed: 7 -> 8"):  # the other processes only check
    folder.claim(_config(seed=8), first=False)


@pytest.mark.parametrize("name, at", [("config.json", 1), ("config.json.sha256", 0), ("config.json.sha256", 70)])
def test_where_the_config_is_the_same_a_damaged_byte_of_it_or_of_its_checksum_is_mended(tmp_path, caplog, name, at):
  folder = workdir.Workdir(tmp_path / "run")
  folder.claim(_config())
  whole = {path.name: path.read_bytes() for path in folder.directory.iterdir()}
  data = bytearray(whole[name])
  data[at] ^= ord("\n") ^ ord(" ") if data[at:at + 1] == b"\n" else 1
  (folder.directory / name).write_bytes(data)
  folder.claim(_config(), first=False)  # which mends nothing
  assert (folder.directory / name).read_bytes() == data
  folder.claim(_config())
  assert {path.name: path.read_bytes() for path in folder.directory.iterdir()} == whole
  assert "is damaged" in caplog.text


@pytest.mark.parametrize("made", ["rounds/0/evaluation/results.json", "checkpoints/2/meta", "sequences/DONE.json",
                                  "rounds/1/shards/scan-00000.parquet", "metrics.jsonl"])
def test_where_something_was_made_another_config_is_refused(tmp_path, made):
  folder = workdir.Workdir(tmp_path / "run")
  folder.claim(_config())
  workdir.write_json(folder.directory / made, {})
  with pytest.raises(UserError, match="seed: 0 -> 7"):
    folder.claim(_config(seed=7))


def test_a_folder_with_other_things_is_not_taken(tmp_path):
  (tmp_path / "holiday.jpg").write_bytes(b"x")
  with pytest.raises(UserError, match="not empty"):
    workdir.Workdir(tmp_path).claim(_config())


def test_a_kill_during_the_first_write_does_not_block_the_next_start(tmp_path):
  (tmp_path / ".config.json.tmp").write_bytes(b"{")
  workdir.Workdir(tmp_path).claim(_config())
  assert (tmp_path / "config.json").exists()


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch, capsys):
  path = tmp_path / "table.json"
  workdir.write_json(path, {"a": 1})

  def full(self, data):
    with open(self, "wb") as file:
      file.write(data[:3])
    raise OSError(errno.ENOSPC, "No space left on device", str(self))

  monkeypatch.setattr(type(workdir.epath.Path(path)), "write_bytes", full)
  with pytest.raises(SystemExit) as stopped:
    run_command(lambda: workdir.write_json(path, {"a": 2}))
  assert stopped.value.code == 1
  assert "the disk is full" in capsys.readouterr().err
  assert workdir.read_json(path) == {"a": 1}


WRITER = """
import sys
from etils import epath
from policylong.storage.workdir import write_atomically
path, letter, shared = epath.Path(sys.argv[1]), sys.argv[2].encode(), sys.argv[3] == "shared"
print("ready", flush=True)
sys.stdin.readline()
for i in range(150):
  write_atomically(path, letter * (200_000 + i), shared=shared)
"""


def test_processes_that_write_one_file_at_a_time_leave_each_other_alone(tmp_path):
  """A run, which alone has a name of its own for what is not whole yet, and a command beside it."""
  path = tmp_path / "report" / "index.html"
  writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, *how], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
             for how in (("a", "run"), ("b", "shared"))]
  for writer in writers:
    assert writer.stdout.readline() == "ready\n"
  for writer in writers:
    writer.stdin.write("\n")
    writer.stdin.flush()
  seen = set()
  while any(writer.poll() is None for writer in writers):
    if path.exists():
      data = path.read_bytes()
      assert len(data) >= 200_000 and data == data[:1] * len(data)
      seen.add(data[:1])
  assert [writer.communicate()[1] for writer in writers] == ["", ""] and seen
  assert list(path.parent.iterdir()) == [path]


def test_what_is_not_whole_yet_is_no_part_of_a_folder_whatever_name_it_has(tmp_path):
  folder = workdir.Workdir(tmp_path / "run")
  folder.claim(_config())
  for path in (folder.metrics, folder.directory / "final.json"):
    for shared in (False, True):
      workdir.temporary_beside(path, shared=shared).write_bytes(b"half")
  folder.claim(_config(seed=7))  # nothing was made
  assert workdir.temporary_beside(folder.metrics, shared=False).name == ".metrics.jsonl.tmp"


def test_an_output_that_cannot_be_made_is_told_before_the_work(tmp_path):
  workdir.check_output(tmp_path / "deep" / "output", "--output")
  assert list((tmp_path / "deep").iterdir()) == []
  for path, words in (("", "--output is empty"), (tmp_path, "a folder"), (".", "a folder")):
    with pytest.raises(UserError, match=words):
      workdir.check_output(path, "--output")
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match=r"file/output|Not a directory|exists"):
    workdir.check_output(tmp_path / "file" / "output", "--output")


def test_records_survive_a_table_and_equal_records_give_equal_bytes(tmp_path):
  verdict = Verdict("d", 3, "c#0-9", "retrieved", 0, 0.5, 4.0, 1.0, 5.0, 2.0, 0.75, True, 12)
  paths = [workdir.epath.Path(tmp_path / name) for name in ("a.parquet", "b.parquet")]
  for path in paths:
    tables.write(path, tables.from_records(Verdict, [verdict, dataclasses.replace(verdict, position=4)]))
  assert tables.to_records(Verdict, tables.read(paths[0]))[0] == verdict
  assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_damaged_table_is_named(tmp_path):
  path = workdir.epath.Path(tmp_path / "verdicts.parquet")
  tables.write(path, pa.table({"a": [1, 2]}))
  path.write_bytes(path.read_bytes()[:-7])
  with pytest.raises(UserError, match=r"verdicts\.parquet cannot be read"):
    tables.read(path)


def test_a_finished_round_keeps_hashes_and_drops_its_shards(tmp_path):
  round_ = workdir.Workdir(tmp_path).round(1)
  tables.write(round_.table("roots"), pa.table({"a": [1]}))
  tables.write(round_.shard("scan", 0), pa.table({"a": [1]}))
  assert not round_.done
  round_.finish({"round": 1})
  done = workdir.read_json(round_.done_path)
  assert round_.done and list(done["files"]) == ["roots.parquet"] and len(done["files"]["roots.parquet"]) == 64
  assert not (round_.directory / "shards").exists()
