"""The command: who runs a task, results.json, the table, what is refused and with which exit code."""

import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from policylong.errors import UserError
from policylong.evaluation import benchmarks, longppl, position_loss, results, ruler
from policylong.evaluation.claim import claim
from policylong.evaluation.results import Result
from tests.small_run import make_small_run
from tests.test_resume import REPOSITORY


def ruler_mean(value, truncated=0):
  return Result("mean of 13", value, 65, truncated, "RULER nvidia")


def test_each_task_goes_to_the_benchmark_that_claims_it():
  assert benchmarks.claimants(["position_loss", "ruler/vt", "ruler/cwe", "ruler/vt", "longppl"]) == [
      (ruler, ["ruler/vt", "ruler/cwe"]), (longppl, ["longppl"]), (position_loss, ["position_loss"])]


@pytest.mark.parametrize("task, words", [
    ("rular", "no task 'rular'; did you mean ruler?"), ("vt", "did you mean ruler/vt?"),
    ("niah_single1", "did you mean ruler/niah_single_1?"), ("long_ppl", "did you mean longppl?")])
def test_a_misspelt_task_is_named_with_the_nearest(task, words):
  with pytest.raises(UserError, match=words.replace("?", r"\?")):
    benchmarks.claimants(["longppl", task])


def test_results_are_merged_and_read_back(tmp_path):
  path = epath.Path(tmp_path / "results.json")
  results.merge(path, {"ruler": {"4096": ruler_mean(90.5)}, "longppl": {"4096": Result("ppl", None, 3, 0, "p")}})
  results.merge(path, {"ruler": {"8192": ruler_mean(80.25, 2)}})
  assert json.loads(path.read_text())["ruler"]["8192"] == {
      "metric": "mean of 13", "value": 80.25, "samples": 65, "truncated": 2, "protocol": "RULER nvidia"}
  found = results.read(path)
  assert found["ruler"] == {"4096": ruler_mean(90.5), "8192": ruler_mean(80.25, 2)}
  assert found["longppl"]["4096"].value is None
  path.write_text('{"ruler": {"4096": {"score": 3}}}')
  with pytest.raises(UserError, match="does not hold results"):
    results.read(path)


@pytest.mark.parametrize("name", ["results.json", "results.json.sha256"])
def test_damaged_results_go_whichever_of_their_two_files_it_is(tmp_path, caplog, name):
  path = epath.Path(tmp_path / "results.json")
  results.merge(path, {"ruler": {"4096": ruler_mean(90.5)}})
  (tmp_path / name).write_bytes((tmp_path / name).read_bytes().replace(b"9", b"8"))
  results.mend(path)
  assert not path.exists() and f"{name} is damaged" in caplog.text
  results.merge(path, {"ruler": {"8192": ruler_mean(80.25)}})
  assert results.read(path) == {"ruler": {"8192": ruler_mean(80.25)}}


def test_the_table_names_protocols_truncation_and_effective_length():
  text = results.table({"ruler/vt": {"4096": ruler_mean(99.0), "8192": ruler_mean(50.0, 3)},
                        "ruler": {"4096": ruler_mean(85.6), "8192": ruler_mean(85.59), "16384": ruler_mean(10)},
                        "arc_easy": {"": Result("acc", 55.5, 10, 0, "lm-eval, 0-shot")}})
  lines = text.splitlines()
  assert lines[0] == "protocol: RULER nvidia"
  assert lines[1].split() == ["task", "metric", "samples", "4096", "8192", "16384"]
  assert lines[3].split() == ["ruler/vt", "mean", "of", "13", "65", "99.00", "50.00", "(3", "truncated)", "-"]
  assert "protocol: lm-eval, 0-shot" in text and lines[-1].endswith(": 4096")
  assert results.effective_length({"ruler": {"4096": ruler_mean(85.5)}}) is None


def asked_of(out, name, **identity):
  claim(epath.Path(out), name, {"weights": "w", "config": "{}", "tokenizer": "t", "dtype": "float32", **identity})


def holds(out):
  return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name != "model.json")


def test_what_a_folder_holds_of_another_model_is_set_aside_and_comes_back_with_it(tmp_path, caplog):
  asked_of(tmp_path, "m")
  (tmp_path / "ruler").mkdir()
  (tmp_path / "ruler" / "answers-0.jsonl").write_text("of m")
  (tmp_path / "notes.txt").write_text("not ours")
  asked_of(tmp_path, "m")
  asked_of(tmp_path, "elsewhere/m")  # the same bytes, moved
  assert not caplog.records and (tmp_path / "ruler").exists()
  asked_of(tmp_path, "m", weights="trained")
  assert "which has changed since (weights): they are set aside" in caplog.text
  assert [name for name in holds(tmp_path) if not name.startswith("earlier")] == ["notes.txt"]
  (tmp_path / "results.json").write_text("of trained m")
  for changed in ("config", "tokenizer", "dtype"):
    asked_of(tmp_path, "m", **{changed: '{"rope_theta": 2}'})
    assert not (tmp_path / "results.json").exists() and not (tmp_path / "ruler").exists()
  asked_of(tmp_path, "m")
  assert (tmp_path / "ruler" / "answers-0.jsonl").read_text() == "of m" and not (tmp_path / "results.json").exists()
  asked_of(tmp_path, "m", weights="trained")
  assert (tmp_path / "results.json").read_text() == "of trained m" and not (tmp_path / "ruler").exists()


@pytest.mark.parametrize("call", range(1, 7))
def test_a_claim_that_is_killed_anywhere_loses_and_mixes_nothing(tmp_path, monkeypatch, call):
  owners = {"a": "ruler", "b": "lm_eval"}
  for weights, entry in owners.items():
    asked_of(tmp_path, "m", weights=weights)
    (tmp_path / entry).mkdir()
    (tmp_path / entry / "answers").write_text(weights)
    (tmp_path / "results.json").write_text(weights)
  path, calls = type(epath.Path("/")), iter(range(1, 99))

  def dying(function):
    def wrapper(*arguments):
      if next(calls) == call:
        raise KeyboardInterrupt
      return function(*arguments)
    return wrapper
  with monkeypatch.context() as patched:
    patched.setattr(path, "rename", dying(path.rename))
    patched.setattr(path, "replace", dying(path.replace))
    with contextlib.suppress(KeyboardInterrupt):
      asked_of(tmp_path, "m", weights="a")
  for weights in ("b", "a", "b"):
    asked_of(tmp_path, "m", weights=weights)
    assert (tmp_path / "results.json").read_text() == (tmp_path / owners[weights] / "answers").read_text() == weights
    assert sum((tmp_path / entry).exists() for entry in owners.values()) == 1


def test_answers_of_nobody_knows_whom_are_refused(tmp_path):
  (tmp_path / "results.json").write_text("{}")
  with pytest.raises(UserError, match=r"has results\.json and no model\.json"):
    asked_of(tmp_path, "m")


@pytest.mark.parametrize("arguments, code, words", [
    (["--help"], 0, "--protocol"), ([], 2, "--model"), (["--model=x", "--tasks=ruler", "--protocol=other"], 2, "other"),
    (["--model=x", "--tasks=ruler", "--lengths=4k"], 2, "4k"),
    (["--model=x", "--tasks=ruler", "--samples=0"], 2, "'0'"),
    (["--model=x", "--tasks=rulr"], 1, "error: there is no task 'rulr'; did you mean ruler?"),
    (["--model=x", "--tasks=,"], 1, "--tasks is empty")])
def test_exit_codes_and_sentences(arguments, code, words):
  result = subprocess.run([sys.executable, "-m", "policylong.evaluate", *arguments], capture_output=True, text=True,
                          cwd=REPOSITORY)
  assert result.returncode == code and words in result.stdout + result.stderr
  assert "Traceback" not in result.stderr


def test_the_command_scores_a_real_model_and_goes_on_where_it_was(tmp_path, material, ruler_dir):
  make_small_run(tmp_path, material)
  arguments = [sys.executable, "-m", "policylong.evaluate", f"--model={tmp_path}/model", "--lengths=512", "--samples=2",
               "--tasks=position_loss,longppl,ruler/fwe", f"--documents={tmp_path}/talks.jsonl", "--short_window=128",
               f"--ruler_dir={ruler_dir}", f"--output={tmp_path}/out", "--dtype=float32"]
  first = subprocess.run(arguments, capture_output=True, text=True, cwd=REPOSITORY)
  assert first.returncode == 0, first.stderr[-2000:]
  held = json.loads((tmp_path / "out" / "results.json").read_text())
  assert {"ruler/fwe", "longppl", "position_loss", "position_loss/256-511"} < set(held)
  # fwe fills the window with its prompt, so its middle makes room for the answer
  assert held["ruler/fwe"]["512"] == {"metric": "string_match_all", "value": 0.0, "samples": 2, "truncated": 2,
                                      "protocol": "RULER nvidia"}
  assert 0 < held["position_loss"]["512"]["value"] < 100
  assert "protocol: RULER nvidia" in first.stdout and "0.00 (2 truncated)" in first.stdout
  again = subprocess.run(arguments, capture_output=True, text=True, cwd=REPOSITORY)
  assert again.stdout == first.stdout and "prompt/s" not in again.stderr and "generating" not in again.stderr
  too_long = subprocess.run([*arguments[:4], "--lengths=1024", *arguments[5:]], capture_output=True, text=True,
                            cwd=REPOSITORY)
  assert too_long.returncode == 1 and "length 1024 is asked for, and the window" in too_long.stderr


@pytest.mark.slow
def test_after_a_change_of_the_model_the_command_asks_anew(tmp_path, material):
  """Each change as somebody makes it: a number in config.json, other weights, another tokenizer, a template."""
  make_small_run(tmp_path, material)
  model = tmp_path / "model"

  def evaluated() -> tuple[float, str]:
    ended = subprocess.run([sys.executable, "-m", "policylong.evaluate", f"--model={model}/", "--lengths=128",
                            "--samples=2", "--tasks=position_loss", f"--documents={tmp_path}/talks.jsonl",
                            f"--output={tmp_path}/out[1] ü", "--dtype=float32"], capture_output=True, text=True,
                           cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stderr[-2000:]
    held = json.loads((tmp_path / "out[1] ü" / "results.json").read_text())
    return held["position_loss"]["128"]["value"], ended.stderr

  config = json.loads((model / "config.json").read_text())
  first, said = evaluated()
  assert "asked anew" not in said
  theta = config.get("rope_parameters", config)
  theta["rope_theta"] = 50.0
  (model / "config.json").write_text(json.dumps(config))
  second, said = evaluated()
  assert second != first and "which has changed since (config): they are set aside" in said
  weights = load_file(model / "model.safetensors")
  weights["model.norm.weight"] = weights["model.norm.weight"] * np.float32(1.5)
  save_file(weights, model / "model.safetensors")
  third, said = evaluated()
  assert third not in (first, second) and "(weights)" in said
  (model / "chat_template.jinja").write_text("{{ messages }}")
  fourth, said = evaluated()
  assert fourth == third and "(chat template)" in said
