"""The command: who runs a task, results.json, the table, what is refused and with which exit code."""

import json
import subprocess
import sys

import pytest
from etils import epath

from policylong import evaluate
from policylong.errors import UserError
from policylong.evaluation import benchmarks, longppl, position_loss, results, ruler
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


def test_a_folder_takes_the_answers_of_one_model_only(tmp_path):
  model = tmp_path / "m.gguf"
  model.write_bytes(b"weights")
  out = epath.Path(tmp_path / "out")
  evaluate.claim(out, "m, bfloat16", str(model))
  evaluate.claim(out, "m, bfloat16", str(model))
  with pytest.raises(UserError, match="this is other"):
    evaluate.claim(out, "other", str(model))
  model.write_bytes(b"trained weights")
  with pytest.raises(UserError, match="has changed since"):
    evaluate.claim(out, "m, bfloat16", str(model))


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
