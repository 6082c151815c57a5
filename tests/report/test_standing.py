"""Where a run stands, at each instant of a run: files come one by one, and the sentence is counted by hand."""

import json
import os
import resource
import subprocess
import sys

import fake_run
import pytest

from configs.sft import get_config
from policylong import status
from policylong.report.standing import standing
from policylong.report.tables import read_run
from policylong.storage.workdir import Workdir

STEPS, BATCH, LENGTH = 24, 2, 1024


def loop_config(**changes):
  config = fake_run.config(rounds=2)
  config |= {"method": "policylong", "max_staleness": 0, "eval": {"tasks": ["position_loss"]}}
  config["screening"] |= {"roots_per_round": 12, "roots_per_shard": 5}
  config["training"] |= {"batch_size": BATCH, "longce": False, "longfilter_share": None}
  return config | changes


def put(folder, name, value=None):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps({} if value is None else value))


def steps(folder, *numbers, speed=512.0):
  with open(folder / "metrics.jsonl", "a") as file:
    for step in numbers:
      file.write(json.dumps({"round": (step - 1) // STEPS + 1, "step": step, "loss": 4 - step / 64, "grad_norm": 1.0,
                             "learning_rate": 1e-4, "tokens": step * BATCH * LENGTH, "tokens_per_second": speed,
                             "peak_share": None}) + "\n")


def told(folder, process=0, processes=1, *, ago=2.0, now=10_000.0, started=9000.0, moved=None, work=None, stopped=None):
  put(folder, f"progress/{process}.json", {
      "process": process, "processes": processes, "started": started, "told": now - ago,
      "moved": now - ago if moved is None else moved, "every": 5.0, "work": work, "stopped": stopped})


def stands(folder, now=10_000.0):
  layout = Workdir(folder)
  return standing(read_run(layout), layout, now)


def stage(folder):
  return dict(stands(folder).facts).get("stage")


def test_the_stage_at_every_instant_of_a_run(tmp_path):
  put(tmp_path, "config.json", loop_config())
  assert stage(tmp_path) == "reading the corpus"
  put(tmp_path, "corpus.json")
  assert stage(tmp_path) == "evaluation of the base model: 0 results so far"
  row = {"metric": "nats", "value": 3.0, "samples": 4, "truncated": 0, "protocol": "p"}
  put(tmp_path, "rounds/0/evaluation/results.json", {"position_loss": {"512": row, "1024": row}})
  assert stage(tmp_path) == "evaluation of the base model: 2 results so far"
  put(tmp_path, "rounds/0/evaluation/DONE.json")
  for index, step in ((1, 0), (2, STEPS)):
    folder, name = f"rounds/{index}", f"round {index} of 2"
    if index == 2:
      assert stage(tmp_path) == "round 2 of 2, re-verification of what round 1 accepted"
      put(tmp_path, f"{folder}/offpolicy.parquet")
    counts = [0, 0, 0]
    for at, kind in ((0, "scan"), (0, "scan"), (1, "candidates"), (2, "verify"), (0, "scan"), (1, "candidates")):
      assert stage(tmp_path) == (f"{name}, screening: of at most 3 shards of roots {counts[0]} scanned, "
                                 f"{counts[1]} retrieved for, {counts[2]} verified")
      put(tmp_path, f"{folder}/shards/{kind}-{counts[at]:05d}.parquet")
      put(tmp_path, f"{folder}/shards/.{kind}-{counts[at] + 1:05d}.parquet.tmp")  # being written
      counts[at] += 1
    put(tmp_path, f"{folder}/verdicts.parquet")
    put(tmp_path, f"{folder}/judged.json", {})
    assert stage(tmp_path) == f"{name}, hard negatives"
    put(tmp_path, f"{folder}/negatives.parquet")
    assert stage(tmp_path) == f"{name}, synthesis"
    put(tmp_path, f"{folder}/sequences.parquet")
    put(tmp_path, f"{folder}/screened.json", {"policy_step": step})
    assert stage(tmp_path) == f"{name}, training: step 0 of 24"
    steps(tmp_path, *range(step + 1, step + 18))
    assert stage(tmp_path) == f"{name}, training: step 17 of 24"
    put(tmp_path, f"checkpoints/{step + 17}/meta")
    put(tmp_path, f"checkpoints/{step + 18}.orbax-checkpoint-tmp/meta")  # being written
    steps(tmp_path, *range(step + 18, step + 25))
    put(tmp_path, f"checkpoints/{step + 24}/meta")
    assert stage(tmp_path) == f"{name}, training: step 24 of 24"
    put(tmp_path, f"{folder}/DONE.json", {"policy_step": step})
    assert stage(tmp_path) == f"evaluation of the policy after round {index} of 2: 0 results so far"
    put(tmp_path, f"{folder}/evaluation/DONE.json")
  assert stage(tmp_path) == "the last policy looks again at the last round's dependencies"
  put(tmp_path, "final.json", {"policy_step": 48})
  assert stage(tmp_path) is None and stands(tmp_path).state == "done"


def test_a_round_that_is_done_and_whose_last_checkpoint_is_gone_is_trained_again(tmp_path):
  put(tmp_path, "config.json", loop_config(eval={"tasks": []}))
  put(tmp_path, "corpus.json")
  put(tmp_path, "rounds/1/screened.json", {"policy_step": 0})
  put(tmp_path, "rounds/1/DONE.json", {"policy_step": 0})
  put(tmp_path, "checkpoints/12/meta")
  steps(tmp_path, *range(1, 13))
  assert stage(tmp_path) == "round 1 of 2, training: step 12 of 24"


def test_with_staleness_a_round_is_screened_before_the_one_before_it_is_trained(tmp_path):
  put(tmp_path, "config.json", loop_config(max_staleness=1, eval={"tasks": []}))
  put(tmp_path, "corpus.json")
  put(tmp_path, "rounds/1/screened.json", {"policy_step": 0})
  assert stage(tmp_path).startswith("round 2 of 2, screening: of at most 3 shards of roots 0 scanned")
  put(tmp_path, "rounds/2/screened.json", {"policy_step": 0})
  assert stage(tmp_path) == "round 1 of 2, training: step 0 of 24"


def test_a_method_that_asks_no_policy_has_no_screening_and_a_weighed_one_has_a_gap(tmp_path):
  config = loop_config(method="nextlong", eval={"tasks": []})
  config["training"]["longce"] = True
  put(tmp_path, "config.json", config)
  put(tmp_path, "corpus.json")
  assert stage(tmp_path) == "round 1 of 2, synthesis"
  put(tmp_path, "rounds/1/sequences.parquet")
  put(tmp_path, "rounds/1/shards/gaps-00000.parquet")
  assert stage(tmp_path) == "round 1 of 2, long-short gap of the sequences: 1 shard read"
  put(tmp_path, "rounds/1/gaps.parquet")
  put(tmp_path, "rounds/1/screened.json", {"policy_step": 0})
  assert stage(tmp_path) == "round 1 of 2, training: step 0 of 24"


def test_the_stage_at_every_instant_of_a_fine_tuning(tmp_path):
  config = get_config().to_dict()
  config["training"]["batch_size"] = config["training"]["accumulation"] = 4
  put(tmp_path, "config.json", config)
  assert stage(tmp_path) == "packing the conversations"
  put(tmp_path, "sequences/held_out/sequences-00000.array_record")
  put(tmp_path, "sequences/DONE.json", {"sequences": 37, "held_out_sequences": 2})
  assert stage(tmp_path) == "loss on held-out answers, before training"
  put(tmp_path, "held_out.json", {"tokens": 99, "before": 2.5})
  assert stage(tmp_path) == "training: step 0 of 18"  # 2 epochs of 37 sequences, 4 a step: 18.5
  steps(tmp_path, *range(1, 19))
  assert stage(tmp_path) == "training: step 18 of 18"
  put(tmp_path, "checkpoints/18/meta")
  assert stage(tmp_path) == "loss on held-out answers, after training"
  put(tmp_path, "final.json", {"step": 18, "held_out": {"tokens": 99, "before": 2.5, "after": 1.75}})
  found = stands(tmp_path)
  assert found.state == "done" and dict(found.facts)["held out"] == "2.5000 nats a token before, 1.7500 after"


def test_life_is_told_by_what_the_processes_said_last(tmp_path):
  put(tmp_path, "config.json", loop_config())
  os.utime(tmp_path / "config.json", (9280, 9280))
  assert (stands(tmp_path).state, stands(tmp_path).life) == (
      "silent", "nothing says that it works here; the newest file was written 12 minutes ago")
  told(tmp_path, ago=3)
  assert (stands(tmp_path).state, stands(tmp_path).life) == (
      "under way", "under way, last sign of life 3 seconds ago; started 17 minutes ago")
  told(tmp_path, ago=59, moved=9400)
  assert stands(tmp_path).life == ("under way, last sign of life 59 seconds ago; started 17 minutes ago; nothing has "
                                   "moved for 10 minutes")
  told(tmp_path, ago=720)
  assert (stands(tmp_path).state, stands(tmp_path).life) == (
      "silent", "no sign of life for 12 minutes, where one is due every 5 seconds: killed, or unable to write; the "
      "same command goes on")
  told(tmp_path, ago=720, stopped="the disk is full")
  assert (stands(tmp_path).state, stands(tmp_path).life) == ("stopped", "stopped 12 minutes ago: the disk is full")
  told(tmp_path, ago=-30)  # a clock that is ahead
  assert stands(tmp_path).life.startswith("under way, last sign of life 0 seconds ago")


def test_of_several_processes_the_one_that_is_silent_is_named(tmp_path):
  put(tmp_path, "config.json", loop_config())
  for process in range(3):
    told(tmp_path, process, 4, ago=process + 1)
  assert stands(tmp_path).life == ("under way with 4 processes, last sign of life 3 seconds ago; started 17 minutes "
                                   "ago; of 4 processes only 3 have begun")
  told(tmp_path, 3, 4, ago=240)
  assert (stands(tmp_path).state, stands(tmp_path).life) == (
      "silent", "no sign of life for 4 minutes (process 3 of 4), where one is due every 5 seconds; 1 of 4 processes "
      "are silent: killed, or unable to write; the same command goes on")
  told(tmp_path, 2, 4, ago=200, stopped="no memory")
  assert stands(tmp_path).life == "stopped 3 minutes ago (process 2 of 4): no memory"


@pytest.mark.parametrize(("work", "sentence"), [
    ({"unit": "tok", "done": 5000, "total": 20_000, "rate": 250.0}, "x: 5,000 of 20,000 tok (25.0%), 250 a second, "
     "58 seconds left"),  # told 2 seconds ago
    ({"unit": "step", "done": 3, "total": 9, "rate": 1 / 600}, "x: 3 of 9 step (33.3%), one in 10 minutes, 60 minutes "
     "left"),
    ({"unit": "tok", "done": 5000, "total": None, "rate": 2.5}, "x: 5,000 tok, 2.5 a second"),
    ({"unit": "tok", "done": 0, "total": 10, "rate": None}, "x: 0 of 10 tok (0.0%)"),
    ({"unit": "tok", "done": 0, "total": 0, "rate": None}, "x: 0 of 0 tok")])
def test_what_is_being_done_with_its_rate_and_the_time_left(tmp_path, work, sentence):
  put(tmp_path, "config.json", loop_config())
  told(tmp_path, work={"what": "x", **work})
  assert dict(stands(tmp_path).facts)["now"] == sentence
  told(tmp_path, ago=1000, work={"what": "x", **work})
  assert "now" not in dict(stands(tmp_path).facts)  # nothing is being done any more


# The times at which shards of each kind were written, and what 10 of them say at 100,000 seconds of a command that
# began at 64,000, ten hours ago.
@pytest.mark.parametrize(("processes", "scanned", "verified", "left"), [
    (1, [], [99_700, 100_000], "40 minutes"),  # the first one only says when the second began
    (1, [99_400, 99_700, 99_990], [99_700, 100_000], "40 minutes"),  # 5 minutes each from the first scan on
    (1, [99_000], [], ""), (1, [], [99_700], ""), (1, [], [], ""),
    (1, [99_700], [100_000], "45 minutes"),
    # Before a kill there were three at 60 seconds each; scans ran ahead.
    (1, [50_000, 50_060, 50_120, 50_180], [50_060, 50_120, 50_180], ""),
    (1, [50_000, 50_060, 50_120, 50_180, 64_900], [50_060, 50_120, 50_180, 65_200, 65_500], "25 minutes"),
    (1, [50_000, 50_060, 50_120, 50_180, 65_000], [50_060, 50_120, 50_180, 64_900, 65_200, 65_500], "20 minutes"),
    # Four processes verify four shards at about the same time, in 10 minutes.
    (4, [], [99_400, 99_401, 99_402, 99_403], ""),
    (4, [], [99_399, 99_400, 99_400, 99_400, 99_997, 99_998, 99_999, 100_000], "5 minutes"),
    (4, [98_800] * 4 + [99_390] * 4, [99_399, 99_400, 99_400, 99_400], "15 minutes")])
def test_the_time_that_screening_takes_is_that_of_the_rounds_own_shards(tmp_path, processes, scanned, verified, left):
  config = loop_config(eval={"tasks": []})
  config["screening"] |= {"roots_per_round": 100, "roots_per_shard": 10}
  put(tmp_path, "config.json", config)
  put(tmp_path, "corpus.json")
  put(tmp_path, "rounds/1/DONE.json", {"policy_step": 0})
  put(tmp_path, f"checkpoints/{STEPS}/meta")
  put(tmp_path, "rounds/2/offpolicy.parquet")
  for kind, times in (("scan", scanned), ("verify", verified)):
    for shard, written in enumerate(times):
      put(tmp_path, f"rounds/2/shards/{kind}-{shard:05d}.parquet")
      os.utime(tmp_path / f"rounds/2/shards/{kind}-{shard:05d}.parquet", (written, written))
  if verified:
    assert stage(tmp_path).endswith(f"{len(verified)} verified")  # nobody works on it
  for process in range(processes):
    told(tmp_path, process, processes, now=100_000.0, started=64_000.0 + process)
  sentence = dict(stands(tmp_path, 100_000.0).facts)["stage"]
  if verified or scanned:
    assert sentence.startswith("round 2 of 2, screening: ")
    assert sentence.endswith(f" {len(verified)} verified" + (f"; {left} left" if left else ""))
  else:
    assert "left" not in sentence


def test_the_last_numbers_of_training(tmp_path):
  put(tmp_path, "config.json", loop_config())
  steps(tmp_path, *range(1, 13))
  (tmp_path / "metrics.jsonl").open("a").write('{"step": 13, "lo')  # being written
  put(tmp_path, "checkpoints/8/meta")
  os.utime(tmp_path / "checkpoints/8", (9880, 9880))
  facts = dict(stands(tmp_path).facts)
  # 36 steps of 2048 tokens at 512 tokens a second.
  assert facts["training"] == "step 12 of 48, loss 3.812, 512 tokens a second; 2 minutes of training left"
  assert facts["checkpoint"] == "step 8, written 2 minutes ago"


def test_the_command_shows_a_finished_run_in_one_screen_without_touching_it(tmp_path):
  fake_run.write(tmp_path, roots=6)
  fake_run.write_evaluations(tmp_path)
  before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  result = subprocess.run([sys.executable, "-m", "policylong.status", f"--workdir={tmp_path}"], capture_output=True,
                          text=True)
  now = resource.getrusage(resource.RUSAGE_CHILDREN)
  assert result.returncode == 0, result.stderr
  assert now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime < 2  # seconds, whatever else the machine does
  assert {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))} == before
  lines = result.stdout.splitlines()
  assert len(lines) <= 24 and max(map(len, lines[1:])) <= 120
  row = next(line for line in lines if line.startswith("2 "))
  done = json.loads((tmp_path / "rounds/2/DONE.json").read_text())
  own, gap = done["acceptance"]["own"], done["offpolicy"]
  for shown in (f"step {done['policy_step']}", f"{done['roots_with_positives']} of {done['roots']}",
                f"{own['accepted']} of {own['pairs']}", f"{gap['rejected']} of {gap['verified']}"):
    assert shown in row
  assert "done, " in lines[2] and "2.750" in row  # position_loss after round 2: 3.0 - 0.125 * 2


def test_more_rounds_than_a_screen_has_are_the_last_ones(tmp_path):
  put(tmp_path, "config.json", loop_config(rounds=40))
  for index in range(1, 31):
    put(tmp_path, f"rounds/{index}/DONE.json", {"policy_step": STEPS * (index - 1), "roots": 5,
                                                "roots_with_positives": 3})
  run = read_run(Workdir(tmp_path))
  shown = status.text(run, stands(tmp_path)).splitlines()
  assert len(shown) <= 24 and shown[-1].startswith("30 ") and shown[-10].startswith("21 ")


def test_the_command_imports_nothing_that_takes_devices():
  code = "import sys, policylong.status; print('jax' in sys.modules, 'orbax' in sys.modules)"
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert result.stdout.split() == ["False", "False"], result.stderr


@pytest.mark.parametrize(("arguments", "code", "said"), [
    ([], 2, "--workdir"), (["--workdir=x", "--what"], 2, "--what"), (["--help"], 0, "usage:"),
    (["--workdir=/nonexistent/run"], 1, "error: --workdir is /nonexistent/run, and nothing lies there: no run has"),
    (["--workdir=configs"], 1, "error: --workdir is configs, which has no config.json")])
def test_the_command_exits_as_every_command_does(arguments, code, said):
  result = subprocess.run([sys.executable, "-m", "policylong.status", *arguments], capture_output=True, text=True)
  assert result.returncode == code
  assert said in result.stdout + result.stderr and "Traceback" not in result.stderr


def test_numbers_of_which_some_are_damaged_are_not_shown_without_a_word(tmp_path):
  fake_run.write(tmp_path, roots=6)
  assert "damage" not in status.text(read_run(Workdir(tmp_path)), stands(tmp_path))
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text().replace('"loss"', '"lo s"', 1))
  assert "metrics.jsonl has 1 line damaged or cut off, and left out." in status.text(
      read_run(Workdir(tmp_path)), stands(tmp_path))


def test_a_damaged_config_is_one_sentence(tmp_path):
  (tmp_path / "config.json").write_text("{")
  result = subprocess.run([sys.executable, "-m", "policylong.status", f"--workdir={tmp_path}"], capture_output=True,
                          text=True)
  assert result.returncode == 1 and result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
