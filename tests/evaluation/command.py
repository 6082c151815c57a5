"""`python -m policylong.evaluate` in this process, with a policy that is put in for the checkpoint's."""

import json
import types

import pytest

from policylong import evaluate
from policylong.errors import run_command


def evaluated(monkeypatch, policy, output, *flags: str) -> dict:
  """Runs the command; returns what it wrote to results.json."""
  _prepare(monkeypatch, policy, output, flags)
  run_command(evaluate.main)
  return json.loads((output / "results.json").read_text())


def refused(monkeypatch, capsys, policy, output, *flags: str) -> str:
  """Runs the command, which must exit with 1; returns its one sentence."""
  _prepare(monkeypatch, policy, output, flags)
  with pytest.raises(SystemExit) as caught:
    run_command(evaluate.main)
  assert caught.value.code == 1
  (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
  return sentence


def _prepare(monkeypatch, policy, output, flags) -> None:
  monkeypatch.setattr("policylong.evaluation.policy.load_policy", lambda *arguments, **settings: policy)
  monkeypatch.setattr("policylong.model.stored.open_model", opened)
  monkeypatch.setattr("sys.argv", ["evaluate", "--model=stand-in", f"--output={output}", *flags])


def opened(path, base_model=None):
  """What stands for a model that was found on disk."""
  return types.SimpleNamespace(name=str(path), identity=lambda: {"weights": "stand-in"})
