"""A whole run whose model is on the hub: it goes on with the commit it began with, and its checkpoints are found."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.hub_stand_in import serving
from tests.small_run import make_small_run

REPOSITORY = pathlib.Path(__file__).parents[1]
COMMIT, LATER = "a" * 40, "b" * 40


def command(module, environment, *flags):
  return subprocess.run([sys.executable, "-m", module, *flags], capture_output=True, text=True, cwd=REPOSITORY,
                        env=environment, timeout=600)


@pytest.mark.slow
def test_a_run_and_a_score_of_a_model_on_the_hub(material, tmp_path):
  config = make_small_run(tmp_path, material)
  repository = tmp_path / "hub" / "models" / "org" / "small"
  for commit in (COMMIT, LATER):
    shutil.copytree(tmp_path / "model", repository / commit)
  (repository / LATER / "config.json").write_text("{}")
  (repository / "main").symlink_to(COMMIT)
  (tmp_path / "short.jsonl").write_text('{"id": 1, "text": "bakeli monura sitovu"}')
  flags = (f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.model.path=hf://org/small",
           "--config.rounds=2", "--config.method=standard", "--config.eval.tasks=()",
           "--config.training.steps_per_round=1", "--config.training.checkpoint_every=1")
  with serving(tmp_path / "hub") as (address, asked):
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
    environment.pop("XLA_FLAGS", None)
    said = command("tests.small_run", environment, "training:1", *flags)
    assert said.returncode == -9, said.stderr[-2000:]
    (repository / "main").unlink()
    (repository / "main").symlink_to(LATER)
    said = command("tests.small_run", environment, "", *flags)
    assert said.returncode == 0, said.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "hub.json").read_text()) == {"hf://org/small": COMMIT}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["path"] == "hf://org/small"
    assert not any(LATER in each for each in asked)
    # The checkpoints' base model is found by the run's record, and other commands take the hub's models too.
    for module, arguments in (
        ("policylong.score", (f"--model=hf://org/small@{COMMIT}", f"--input={tmp_path / 'short.jsonl'}",
                              f"--output={tmp_path / 'scores.parquet'}")),
        ("policylong.convert", ("orbax-to-hf", f"--model={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"))):
      said = command(module, environment, *arguments)
      assert said.returncode == 0, said.stderr[-2000:]
