"""Whatever stage fails: the process ends by itself, soon, and leaves no other behind."""

import json
import subprocess
import sys

import pytest

from tests.devices.test_hosts import run_environment
from tests.small_run import make_small_run
from tests.test_resume import REPOSITORY

# One run, that fails at each of these in turn and goes on from there.
STAGES = ("rename:4", "evaluation:1", "scan:1", "candidates:1", "verify:1", "verdicts:1", "judged:1", "negatives:1",
          "synthesis:1", "training:1", "between:1", "offpolicy:1", "final:1")
PROGRAM = """
import json, pathlib, sys
from benchmarks.reliability import forked
forked.prepare()
folder = pathlib.Path(sys.argv[1])
for stage in sys.argv[2:]:
  ended = forked.run("tests.small_run", [f"{stage}:FAIL", f"--config={folder}/small.py", f"--workdir={folder}/run"],
                     folder, 300, whole=True)
  print(json.dumps([stage, ended.code, ended.seconds, ended.err, forked.group_is_gone(ended)]), flush=True)
"""


def failed(folder, material, stages):
  make_small_run(folder, material)
  ended = subprocess.run([sys.executable, "-c", PROGRAM, folder, *stages], capture_output=True, text=True,
                         cwd=REPOSITORY, env=run_environment(), timeout=1200)
  assert ended.returncode == 0, ended.stderr
  found = [json.loads(line) for line in ended.stdout.splitlines()]
  assert [stage for stage, *_ in found] == list(stages)
  for stage, code, _, said, gone in found:
    assert code == 1 and gone, (stage, code, said)
    assert "this call fails" in said.splitlines()[-1], (stage, said)
  assert not (folder / "run" / "lock").exists()


def test_a_failure_in_training_ends_the_process(tmp_path, material):
  failed(tmp_path, material, ("training:1",))


@pytest.mark.slow
def test_a_failure_in_any_stage_ends_the_process(tmp_path, material):
  failed(tmp_path, material, STAGES)
