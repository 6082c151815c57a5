"""Killed at any instant and started again, a run ends with the bytes of one that was never killed."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

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


def run_main(config, workdir, kill="", **overrides):
  environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
  flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
  return subprocess.run([sys.executable, "-m", "tests.small_run", kill, f"--config={config}", f"--workdir={workdir}",
                         *flags], capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=600)


@pytest.fixture(scope="module")
def stood():
  """{kill: where the run stood twelve minutes after it}."""
  return {}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, material, stood):
  """(an uninterrupted run, one killed at every stage), both ended."""
  folder = tmp_path_factory.mktemp("runs")
  config = make_small_run(folder, material)
  whole = run_main(config, folder / "whole")
  assert whole.returncode == 0, whole.stderr[-3000:]
  for kill in KILLS:
    killed = run_main(config, folder / "killed", kill)
    assert killed.returncode == -9, f"{kill}: {killed.stderr[-3000:]}"
    layout = Workdir(folder / "killed")
    stood[kill] = standing(read_run(layout), layout, time.time() + 720)
  last = run_main(config, folder / "killed")
  assert last.returncode == 0, last.stderr[-3000:]
  return config, folder / "whole", folder / "killed"


def _files(folder, pattern):
  return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern))}


@pytest.mark.parametrize("pattern", ["rounds/*/*.parquet", "rounds/*/*.json", "rounds/*/sequences/*", "final.json",
                                     "rounds/*/evaluation/**/*.*", "offpolicy.parquet", "corpus.json", "config.json"])
def test_every_table_sequence_and_marker_has_the_same_bytes(runs, pattern):
  _, whole, killed = runs
  wanted, found = _files(whole, pattern), _files(killed, pattern)
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
  _, whole, killed = runs
  (step, wanted), (other, found) = _leaves(whole), _leaves(killed)
  assert step == other == 8 and wanted.keys() == found.keys() and len(wanted) > 20
  for name, leaf in wanted.items():
    assert leaf.tobytes() == found[name].tobytes(), name


def test_metrics_have_every_step_once_and_the_same_losses(runs):
  _, whole, killed = runs
  lines = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
           for folder in (whole, killed)]
  assert [line["step"] for line in lines[1]] == list(range(1, 9))
  assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


def test_nothing_half_written_is_left(runs):
  for folder in runs[1:]:
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
  for folder in runs[1:]:
    assert "2 → final" in (folder / "report" / "index.html").read_text()


def test_rounds_use_different_roots_and_the_second_knows_of_the_first(runs):
  folder = Workdir(epath.Path(runs[1]))
  done = [json.loads(folder.round(r).done_path.read_text()) for r in (1, 2)]
  assert done[0]["policy_step"] == 0 and done[1]["policy_step"] == 4
  assert done[0]["offpolicy"] is None and done[1]["offpolicy"]["verified"] > 0
  import pyarrow.parquet as pq
  roots = [set(pq.read_table(folder.round(r).table("roots"))["doc_id"].to_pylist()) for r in (1, 2)]
  assert not roots[0] & roots[1]
  # Each round ended in the midst of its twelve roots, when its sequences were filled.
  assert all(4 < len(found) < 12 for found in roots) and [one["epochs"] for one in done] == [1.0, 1.0]


def test_the_base_model_and_each_rounds_policy_are_evaluated_on_the_same_tokens(runs):
  _, whole, _ = runs
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


def test_what_was_lost_of_rounds_that_are_over_is_made_again_by_the_policy_that_made_it(runs, tmp_path):
  """The last checkpoint, so that its round is trained again, and benchmarks of the base model beside a newer policy."""
  config, whole, _ = runs
  lost = tmp_path / "lost"
  shutil.copytree(whole, lost)
  shutil.rmtree(lost / "checkpoints" / "8")
  (lost / "final.json").unlink()
  base = lost / "rounds/0/evaluation"
  for path in (base / "results.json", *(base / "nlls").iterdir(), *base.glob("key_tokens/*/DONE.json")):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
  again = run_main(config, lost)
  assert again.returncode == 0, again.stderr[-3000:]
  assert all(f"{name} is damaged" in again.stderr for name in ("results.json", ".npy", "DONE.json"))
  (step, wanted), (other, found) = _leaves(whole), _leaves(lost)
  assert step == other == 8
  assert [name for name, leaf in wanted.items() if leaf.tobytes() != found[name].tobytes()] == []
  assert (lost / "final.json").read_bytes() == (whole / "final.json").read_bytes()
  for pattern in ("rounds/*/*.json", "rounds/*/evaluation/**/*.*"):
    assert _files(lost, pattern) == _files(whole, pattern)


def test_a_second_run_does_nothing_and_says_so(runs):
  config, whole, _ = runs
  before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
  again = run_main(config, whole)
  assert again.returncode == 0 and "nothing to do" in again.stderr
  assert again.stdout.splitlines()[-1] == f"page: {whole}/report/index.html"
  assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_changed_config_is_refused_with_the_difference(runs):
  config, whole, _ = runs
  changed = run_main(config, whole, screening__alpha=1.5)
  assert changed.returncode == 1 and "Traceback" not in changed.stderr
  assert "screening.alpha: 1.0 -> 1.5" in changed.stderr.splitlines()[-1]
