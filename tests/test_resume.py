"""Killed at any instant and started again, a run ends with the bytes of one that was never killed.

Most starts are copies of one process that has imported the libraries (`benchmarks.reliability.forked`), as importing
takes most of the time of a start; the first one, the last one and some between are processes of their own.
"""

import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from benchmarks.reliability import forked
from policylong.report.standing import standing
from policylong.report.tables import read_run
from policylong.storage.workdir import Workdir
from tests.small_run import make_small_run

REPOSITORY = pathlib.Path(__file__).parents[1]
# One workdir, killed at each of these in turn, then left alone. "stage:n" is the n-th write of that stage
# in that process; the last ones belong to round 2.
KILLS = ("rename:4", "progress:1", "evaluation:2", "scan:2", "candidates:1", "verify:2", "plan:1", "verdicts:1",
         "judged:1", "negatives:1", "synthesis:2", "training:3", "between:1", "evaluation:1", "offpolicy:1",
         "verify:3", "training:1", "final:1")
# Others are killed at so many random moments, each at most at so many.
RANDOM_KILLS, KILLS_A_RUN = 20, 12
# Every so-manieth start is a process of its own.
COLD = 6
COPIES = """
import json, pathlib, sys
from benchmarks.reliability import forked
folder = pathlib.Path(sys.argv[1])
forked.prepare(folder / "compiled")
for line in sys.stdin:
  arguments, seconds, cold = json.loads(line)
  print(json.dumps(forked.run("tests.small_run", arguments, folder, seconds, cold=cold)), flush=True)
"""


def run_main(config, workdir, kill="", **overrides):
  environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
  flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
  return subprocess.run([sys.executable, "-m", "tests.small_run", kill, f"--config={config}", f"--workdir={workdir}",
                         *flags], capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=600)


class Copies:
  """Starts of the small run in `folder`, as copies of one process."""

  def __init__(self, process, folder, material):
    self._process, self.folder, self._config = process, folder, make_small_run(folder, material)

  def start(self, workdir, kill="", seconds=600.0, cold=False, flags=()):
    """How a start ended; killed after so many seconds it has no code."""
    arguments = [kill, f"--config={self._config}", f"--workdir={workdir}", *flags]
    print(json.dumps([arguments, seconds, cold]), file=self._process.stdin, flush=True)
    return forked.Ended(*json.loads(self._process.stdout.readline()))

  def finish(self, workdir, **how):
    """The same, of a start that must get to the end of the run."""
    ended = self.start(workdir, **how)
    assert ended.code == 0, ended.err[-3000:]
    return ended


@pytest.fixture(scope="module")
def copies(tmp_path_factory, material):
  folder = tmp_path_factory.mktemp("runs")
  environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
  with subprocess.Popen([sys.executable, "-c", COPIES, folder], cwd=REPOSITORY, env=environment, text=True,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    yield Copies(process, folder, material)
    process.stdin.close()


@pytest.fixture(scope="module")
def stood():
  """{kill: where the run stood twelve minutes after it}."""
  return {}


@pytest.fixture(scope="module")
def runs(copies, stood):
  """An uninterrupted run, one killed at every stage, and some that were killed at random; all ended."""
  killed, whole = copies.folder / "killed", copies.folder / "whole"
  for number, kill in enumerate(KILLS):
    ended = copies.start(killed, kill, cold=number % COLD == 0)
    assert ended.code == -9, f"{kill}: {ended.err[-3000:]}"
    layout = Workdir(killed)
    stood[kill] = standing(read_run(layout), layout, time.time() + 720)
  copies.finish(killed, cold=True)
  return whole, killed, *killed_at_random(copies, copies.finish(whole).seconds)


def killed_at_random(copies, seconds):
  """Runs that were killed within the `seconds` that a whole one takes, from nothing, the corpus' cache included."""
  rng, kills, ended = random.Random(17), 0, []
  while kills < RANDOM_KILLS:
    ended.append(copies.folder / f"random{len(ended)}")
    shutil.rmtree(copies.folder / "cache", ignore_errors=True)
    for _ in range(min(KILLS_A_RUN, RANDOM_KILLS - kills)):
      start = copies.start(ended[-1], seconds=rng.uniform(0, seconds))
      if start.code is not None:
        assert start.code == 0, start.err[-3000:]
        break
      kills += 1
    else:
      copies.finish(ended[-1])
  return ended


def _files(folder, pattern):
  return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern))}


@pytest.mark.parametrize("pattern", ["rounds/*/*.parquet", "rounds/*/*.json", "rounds/*/sequences/*", "final.json",
                                     "rounds/*/evaluation/**/*.*", "offpolicy.parquet", "corpus.json", "config.json"])
def test_every_table_sequence_and_marker_has_the_same_bytes(runs, pattern):
  whole, *killed = runs
  wanted = _files(whole, pattern)
  for folder in killed:
    found = _files(folder, pattern)
    assert wanted and list(found) == list(wanted)
    assert [name for name in wanted if wanted[name] != found[name]] == []


def _leaves(folder):
  import jax
  import orbax.checkpoint as ocp
  last = max((folder / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
  checkpointer = ocp.PyTreeCheckpointer()
  # As numpy, wherever they lay: the devices of several processes are not here.
  plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                       checkpointer.metadata(last / "state").item_metadata.tree)
  tree = checkpointer.restore(last / "state", restore_args=plain)
  return int(last.name), {jax.tree_util.keystr(path): np.asarray(leaf)
                          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_the_final_parameters_and_optimizer_state_are_the_same_bits(runs):
  whole, *killed = runs
  step, wanted = _leaves(whole)
  for folder in killed:
    other, found = _leaves(folder)
    assert step == other == 8 and wanted.keys() == found.keys() and len(wanted) > 20
    for name, leaf in wanted.items():
      assert leaf.tobytes() == found[name].tobytes(), name


def test_metrics_have_every_step_once_and_the_same_losses(runs):
  wanted, *found = ([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
                    for folder in runs)
  for lines in found:
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["loss"] for line in lines] == [line["loss"] for line in wanted]


def test_nothing_half_written_is_left(runs):
  for folder in runs:
    assert not [path for path in folder.rglob("*.tmp")]
    assert not list(folder.glob("rounds/*/shards")) and not (folder / "progress").exists()


def test_after_each_kill_the_stage_in_which_it_fell_is_told(runs, stood):
  # The host retrieves while the device scans and verifies: what it has done by then is not always the same.
  screening = "round {} of 2, screening: of at most 12 shards of roots {} scanned, {} retrieved for, {} verified"
  stages = {
      "rename:4": "reading the corpus",
      # It is written by the clock.
      "progress:1": "reading the corpus|evaluation of the base model: 0 results so far",
      "evaluation:2": r"evaluation of the base model: \d results? so far",
      "scan:2": screening.format(1, 1, "[01]", 0), "candidates:1": screening.format(1, "[12]", 0, 0),
      "verify:2": screening.format(1, 3, "[23]", 1), "plan:1": screening.format(1, 6, "[56]", 4),
      "verdicts:1": screening.format(1, *[r"\d+"] * 3), "judged:1": screening.format(1, *[r"\d+"] * 3),
      "negatives:1": "round 1 of 2, hard negatives", "synthesis:2": "round 1 of 2, synthesis",
      "training:3": "round 1 of 2, training: step 3 of 4", "between:1": "round 1 of 2, training: step 4 of 4",
      "evaluation:1": "evaluation of the policy after round 1 of 2: 0 results so far",
      "offpolicy:1": "round 2 of 2, re-verification of what round 1 accepted",
      "verify:3": screening.format(2, 4, "[34]", 2),
      "training:1": "round 2 of 2, training: step 1 of 4"}
  assert [*stages, "final:1"] == list(KILLS) == list(stood)
  told = {kill: dict(stood[kill].facts)["stage"] for kill in stages}
  assert {kill: told[kill] for kill, stage in stages.items() if not re.fullmatch(stage, told[kill])} == {}
  for kill in stages:
    assert stood[kill].state == "silent" and stood[kill].life.startswith("no sign of life for 12 minutes")
  assert stood["final:1"].state == "done"


def test_the_page_has_the_end_of_the_run(runs):
  for folder in runs:
    assert "2 → final" in (folder / "report" / "index.html").read_text()


def test_rounds_use_different_roots_and_the_second_knows_of_the_first(runs):
  folder = Workdir(epath.Path(runs[0]))
  done = [json.loads(folder.round(r).done_path.read_text()) for r in (1, 2)]
  assert done[0]["policy_step"] == 0 and done[1]["policy_step"] == 4
  assert done[0]["offpolicy"] is None and done[1]["offpolicy"]["verified"] > 0
  import pyarrow.parquet as pq
  roots = [set(pq.read_table(folder.round(r).table("roots"))["doc_id"].to_pylist()) for r in (1, 2)]
  assert not roots[0] & roots[1]
  # Each round ended in the midst of its twelve roots, when its sequences were filled.
  assert all(4 < len(found) < 12 for found in roots) and [one["epochs"] for one in done] == [1.0, 1.0]


def test_the_base_model_and_each_rounds_policy_are_evaluated_on_the_same_tokens(runs):
  whole = runs[0]
  found = [json.loads((whole / f"rounds/{r}/evaluation/results.json").read_text()) for r in (0, 1, 2)]
  steps = [json.loads((whole / f"rounds/{r}/evaluation/DONE.json").read_text())["policy_step"] for r in (0, 1, 2)]
  assert steps == [0, 4, 8]
  losses = [results["position_loss"]["256"]["value"] for results in found]
  assert losses[0] > losses[1] > losses[2] > 0  # eight steps at a high learning rate teach the words
  shares = {results["longppl/key_tokens"]["256"]["value"] for results in found}
  assert len(shares) == 1
  assert {results["longppl"]["256"]["protocol"] for results in found} == {
      found[0]["longppl"]["256"]["protocol"]} and "model" in found[0]["longppl"]["256"]["protocol"]
  board = b"".join(path.read_bytes() for path in (whole / "tensorboard").iterdir())
  assert b"evaluation/position_loss/256" in board


def test_what_was_lost_of_rounds_that_are_over_is_made_again_by_the_policy_that_made_it(copies, runs, tmp_path):
  """The last checkpoint, so that its round is trained again, and benchmarks of the base model beside a newer policy."""
  whole = runs[0]
  lost = tmp_path / "lost"
  shutil.copytree(whole, lost)
  shutil.rmtree(lost / "checkpoints" / "8")
  (lost / "final.json").unlink()
  base = lost / "rounds/0/evaluation"
  for path in (base / "results.json", *(base / "nlls").iterdir(), *base.glob("key_tokens/*/DONE.json")):
    damage(path)
  again = copies.finish(lost)
  assert all(f"{name} is damaged" in again.err for name in ("results.json", ".npy", "DONE.json"))
  (step, wanted), (other, found) = _leaves(whole), _leaves(lost)
  assert step == other == 8
  assert [name for name, leaf in wanted.items() if leaf.tobytes() != found[name].tobytes()] == []
  assert (lost / "final.json").read_bytes() == (whole / "final.json").read_bytes()
  for pattern in ("rounds/*/*.json", "rounds/*/evaluation/**/*.*"):
    assert _files(lost, pattern) == _files(whole, pattern)


def damage(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize("damaged, gone", [
    (["rounds/1/evaluation/results.json"], True), (["rounds/2/DONE.json", "rounds/2/screened.json"], False)])
def test_without_the_policy_that_made_what_is_damaged_a_sentence_names_both(copies, runs, tmp_path, damaged, gone):
  """Benchmarks of a round, or its tables; the checkpoint before the last one is not there, or damaged itself."""
  whole, lost = runs[0], tmp_path / "lost"
  shutil.copytree(whole, lost)
  (lost / "final.json").unlink()
  policy = lost / "checkpoints" / "4"
  for name in damaged:
    damage(lost / name)
  if gone:
    shutil.rmtree(policy)
  else:
    damage(max(policy.glob("state/**/d/*"), key=lambda path: path.stat().st_size))
  for _ in range(2):  # told again, and not passed over, by the next start
    ended = copies.start(lost)
    assert ended.code == 1 and "Traceback" not in ended.err, ended.err[-3000:]
    folder = (lost / damaged[0]).parent
    assert ended.err.splitlines()[-1] == (
        f"error: something of {folder} is damaged or gone, and the policy that can make it again is too: put a whole "
        f"copy of that folder or of {policy} in its place")
  # Both of what it says help.
  if gone:
    shutil.copytree(whole / "checkpoints" / "4", policy)
  else:
    shutil.rmtree(folder)
    shutil.copytree(whole / folder.relative_to(lost), folder)
  copies.finish(lost)
  assert _files(lost, "rounds/*/**/*.*") == _files(whole, "rounds/*/**/*.*")


def test_a_second_run_does_nothing_and_says_so(copies, runs):
  whole = runs[0]
  before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
  again = copies.start(whole)
  assert again.code == 0 and "nothing to do" in again.err
  assert again.out.splitlines()[-1] == f"page: {whole}/report/index.html"
  assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_changed_config_is_refused_with_the_difference(copies, runs):
  changed = copies.start(runs[0], flags=["--config.screening.alpha=1.5"])
  assert changed.code == 1 and "Traceback" not in changed.err
  assert "screening.alpha: 1.0 -> 1.5" in changed.err.splitlines()[-1]
