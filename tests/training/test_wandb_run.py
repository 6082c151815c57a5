"""What W&B itself writes offline, read back by the format of its files, against metrics.jsonl and arithmetic."""

import json
import os
import pathlib
import struct
import subprocess
import sys
import time

import pytest
from tiny_training import whole_config

from policylong.errors import UserError
from policylong.storage.workdir import Workdir, write_json
from policylong.training import scalars, wandb_run
from policylong.training.metrics import MetricsLog, write_scalars

wandb = pytest.importorskip("wandb")

FOLDER = pathlib.Path(__file__).parent
# Trains to a step from a checkpoint, as far as W&B can see, and is killed there or ends.
TRAINS = """
import os, signal, sys
from tiny_training import whole_config
from policylong.storage.workdir import Workdir
from policylong.training import wandb_run
from policylong.training.metrics import MetricsLog
folder, start, last, kill = sys.argv[1], *map(int, sys.argv[2:])
workdir = Workdir(folder)
with wandb_run.opened(whole_config(wandb_project="tests"), workdir):
  with MetricsLog(workdir, start) as log:
    for step in range(start + 1, last + 1):
      log.write({"round": 1, "step": step, "loss": 4 - step / 8, "peak_share": None})
  if kill:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch):
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.delenv("WANDB_DIR", raising=False)


def train(folder, start, last, kill):
  return subprocess.run([sys.executable, "-c", TRAINS, str(folder), str(start), str(last), str(int(kill))],
                        capture_output=True, text=True, timeout=300,
                        env=os.environ | {"PYTHONPATH": f"{FOLDER}:{os.environ.get('PYTHONPATH', '')}"})


def records(path):
  """The records of a .wandb file: a header of 7 bytes, then the format of LevelDB's logs."""
  from wandb.proto import wandb_internal_pb2
  data, at, whole = path.read_bytes(), 7, b""
  assert data[:4] == b":W&B"
  while at < len(data):
    if 32_768 - at % 32_768 < 7:  # the end of a block is too short for a record
      at += 32_768 - at % 32_768
      continue
    _, length, kind = struct.unpack("<IHB", data[at:at + 7])
    whole = (b"" if kind in (1, 2) else whole) + data[at + 7:at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # whole, or the last part
      record = wandb_internal_pb2.Record()
      record.ParseFromString(whole)
      yield record


def whole(folder):
  """All records of the newest offline run, which has ended; W&B's own process may write a little longer."""
  path = max(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
  end = time.monotonic() + 60
  while not (found := list(records(path))) or found[-1].WhichOneof("record_type") != "exit":
    assert time.monotonic() < end
    time.sleep(0.1)
  return found


def newest(folder):
  """(its run, [(step, values) in order]) of the newest offline run; W&B's own entries left out."""
  run, history = None, []
  for record in whole(folder):
    if record.WhichOneof("record_type") == "run":
      run = record.run
    elif record.WhichOneof("record_type") == "history":
      values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
      history.append((values["_step"], {name: value for name, value in values.items() if name[0] != "_"}))
  return run, history


def metrics(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_was_killed_and_went_on_from_an_older_checkpoint_has_each_step_once(tmp_path):
  folder = tmp_path / "run"
  assert train(folder, 0, 6, kill=True).returncode == -9
  assert train(folder, 6, 9, kill=True).returncode == -9  # killed at 9, and its newest checkpoint is that of step 6
  ended = train(folder, 6, 11, kill=False)
  assert ended.returncode == 0, ended.stderr
  run, history = newest(folder)
  lines = metrics(folder)
  assert [line["step"] for line in lines] == list(range(1, 12))
  assert history == [(line["step"], {"training/round": 1, "training/loss": line["loss"]}) for line in lines]
  assert run.project == "tests" and run.display_name == "run"
  assert len({path.stem for path in folder.glob("wandb/offline-run-*/*.wandb")}) == 1  # one run, three starts
  assert run.run_id == json.loads((folder / "wandb.json").read_text())["id"]
  config = {update.key: json.loads(update.value_json) for update in run.config.update if update.key != "_wandb"}
  assert config["seed"] == 3 and config["training"]["clip_norm"] == 1.0


def test_rounds_have_the_step_of_their_training_and_evaluations_that_of_their_policy_also_after_another_start(tmp_path):
  """Three rounds that one policy screened, of which the last is not trained on yet."""
  workdir = Workdir(tmp_path)
  result = {"metric": "nats", "value": 3.25, "samples": 4, "truncated": 0, "protocol": "p"}
  summaries = [{"policy_step": 0, "roots": roots, "offpolicy": None, "acceptance": {
      "own": {"pairs": 80, "accepted": 20, "rate": 0.25}, "control": {"pairs": 40, "accepted": 1, "rate": 0.025}}}
               for roots in (8, 9, 10)]
  for index, summary in enumerate(summaries, start=1):
    write_json(workdir.round(index).screened_path, summary)
  with wandb_run.opened(whole_config(wandb_project="tests"), workdir):
    write_scalars(workdir, 0, scalars.of_round(summaries[0]))
    with MetricsLog(workdir, 0) as log:
      log.write({"round": 1, "step": 1, "loss": 2.0})
      log.write({"round": 1, "step": 2, "loss": 1.0})
    write_json(workdir.round(1).evaluation / "results.json", {"position_loss": {"64": result}})
    write_scalars(workdir, 2, scalars.of_evaluation({"position_loss": {"64": result}}))
    write_json(workdir.round(1).evaluation / "DONE.json", {"policy_step": 2, "round": 1})
    write_scalars(workdir, 2, scalars.of_round(summaries[1]))
    with MetricsLog(workdir, 2) as log:
      log.write({"round": 2, "step": 3, "loss": 0.5})
  first, second = ({"round/policy_step": 0, "round/roots": roots, "round/accepted_own": 0.25,
                    "round/accepted_control": 0.025, "round/step": step} for roots, step in ((8, 0), (9, 2)))
  wanted = [(0, first), (1, {"training/round": 1, "training/loss": 2.0}),
            (2, {"training/round": 1, "training/loss": 1.0, "evaluation/position_loss/64": 3.25, "evaluation/step": 2,
                 **second}),
            (3, {"training/round": 2, "training/loss": 0.5})]
  assert newest(tmp_path)[1] == wanted
  with wandb_run.opened(whole_config(wandb_project="tests"), workdir):
    pass
  assert newest(tmp_path)[1] == wanted


class OnTheServer:
  """A run of which the server has steps 0 to 6: what it is sent is of step 7 or later."""
  step = 7

  def __init__(self):
    self.sent = []

  def log(self, values, step):
    assert step >= self.step
    self.step = step
    self.sent.append((step, values))


def test_what_the_server_has_is_not_sent_again(monkeypatch):
  run = OnTheServer()
  monkeypatch.setattr(wandb_run, "_run", run)
  for step in (5, 6, 7, 8):
    wandb_run.log(step, {"training/loss": step / 2})
    wandb_run.log(step, {"evaluation/x": step / 4})  # of step 6 it may have the training alone
  assert run.sent == [(7, {"evaluation/x": 1.5, "evaluation/step": 6}), (7, {"training/loss": 3.5}),
                      (7, {"evaluation/x": 1.75, "evaluation/step": 7}), (8, {"training/loss": 4.0}),
                      (8, {"evaluation/x": 2.0, "evaluation/step": 8})]


def test_without_a_project_nothing_is_begun_and_of_several_processes_the_first_one_begins(tmp_path, monkeypatch):
  monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("begun"))
  with wandb_run.opened(whole_config(), Workdir(tmp_path)):
    write_scalars(Workdir(tmp_path), 1, {"evaluation/x": 1.0})
  monkeypatch.setattr("jax.process_index", lambda: 1)
  with wandb_run.opened(whole_config(wandb_project="tests"), Workdir(tmp_path)):
    pass
  assert not (tmp_path / "wandb.json").exists()


def test_where_wandb_is_missing_or_nobody_is_logged_in_one_sentence_says_what_to_do(tmp_path, monkeypatch):
  def fails(**_):
    raise wandb.errors.UsageError("api_key not configured (no-tty). call wandb.login(key=[your_api_key])")
  monkeypatch.setattr(wandb, "init", fails)
  sentence = "wandb_project is 'tests', and Weights & Biases does not start .*api_key not.*WANDB_MODE=offline"
  with pytest.raises(UserError, match=sentence), wandb_run.opened(whole_config(wandb_project="tests"),
                                                                  Workdir(tmp_path)):
    pytest.fail("went on")
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"wandb_project = 'tests' needs wandb, .*pip install -e '\.\[wandb\]'"), \
       wandb_run.opened(whole_config(wandb_project="tests"), Workdir(tmp_path)):
    pytest.fail("went on")


def test_a_run_that_fails_is_told_as_failed(tmp_path):
  with pytest.raises(ValueError), wandb_run.opened(whole_config(wandb_project="tests"), Workdir(tmp_path)):
    raise ValueError
  assert whole(tmp_path)[-1].exit.exit_code == 1
