"""RULER's prompts, metrics and tasks are NVIDIA's; what is ours is asking, keeping and counting."""

import json
import os
import subprocess
import sys

import pytest
from etils import epath

from policylong.errors import UserError
from policylong.evaluation import results, ruler
from policylong.evaluation.ruler_package import TASKS
from policylong.evaluation.ruler_prompts import PromptSets
from tests.evaluation.stand_in import Answering

# Quick generators, others for each test: needles take 11 seconds to start, for they sort nine million words.
QUICK, QUICK_TOO = ("vt", "qa_1"), ("fwe", "cwe")


def sets_of(package, tokenizer, ruler_dir, count=2, seed=42):
  return PromptSets(package, tokenizer, ruler_dir / "prompts", seed=seed, count=count)


def handmade(package, tokenizer, ruler_dir, tasks, length, count, words=40):
  """Prompt sets in the cache's own form, with invented contexts: the generators need minutes for all 13."""
  sets = sets_of(package, tokenizer, ruler_dir, count)
  for task in tasks:
    prefix = package.tasks[task].prefix_head
    records = [{"index": i, "input": f"{task} {i}: " + "The grass is green. " * words + "Which?" + prefix,
                "outputs": [f"Gold{i}a", f"gold-{task}-{i}"], "length": length} for i in range(count)]
    folder = sets.path(task, length)
    folder.mkdir(parents=True)
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    (folder / "prompts.jsonl").write_bytes(data)
    (folder / "DONE.json").write_text(json.dumps(sets._marker(task, length, data)))
  return {record["input"]: record["outputs"] for task in tasks for record in sets.read(task, length)}


def written_by_the_package(package, tokenizer, folder, task, length, count):
  """The bytes that the package's own prepare.py writes, run as its documentation says."""
  tokenizer.save_pretrained(folder / "tokenizer")
  environment = {**os.environ, "PYTHONPATH": str(package.directory), "HF_HUB_OFFLINE": "1",
                 "NLTK_DATA": str(package.directory / "nltk_data"), "PYTHONDONTWRITEBYTECODE": "1",
                 "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
  subprocess.run([sys.executable, "prepare.py", "--save_dir", str(folder), "--benchmark", "synthetic", "--task", task,
                  "--tokenizer_path", str(folder / "tokenizer"), "--tokenizer_type", "hf", "--max_seq_length",
                  str(length), "--num_samples", str(count)], env=environment, check=True, capture_output=True,
                 cwd=package.directory / "long_context_eval" / "data")
  return (folder / task / "validation.jsonl").read_bytes()


@pytest.mark.parametrize("length, tasks", [
    pytest.param(2048, QUICK, id="quick"),
    pytest.param(4096, TASKS, id="all", marks=pytest.mark.slow)])
def test_prompts_are_byte_for_byte_those_that_the_package_writes_by_itself(package, tokenizer, ruler_dir, tmp_path,
                                                                           length, tasks):
  sets = sets_of(package, tokenizer, ruler_dir)
  sets.make([(task, length) for task in tasks])
  for task in tasks:
    expected = written_by_the_package(package, tokenizer, tmp_path / "own", task, length, 2)
    assert (sets.path(task, length) / "prompts.jsonl").read_bytes() == expected
    for record in sets.read(task, length):
      assert len(tokenizer(record["input"]).input_ids) <= length and record["outputs"]


@pytest.mark.parametrize("length, tasks", [
    pytest.param(2048, QUICK_TOO, id="quick"),
    pytest.param(4096, TASKS, id="all", marks=pytest.mark.slow)])
def test_who_answers_from_the_gold_field_scores_100_and_who_answers_junk_0(package, tokenizer, options, ruler_dir,
                                                                           tmp_path, length, tasks):
  chosen = options(lengths=(length,))
  sets = sets_of(package, tokenizer, ruler_dir)
  sets.make([(task, length) for task in tasks])
  gold = {record["input"]: record["outputs"] for task in tasks for record in sets.read(task, length)}
  assert len(gold) == 2 * len(tasks)
  names = ["ruler"] if tasks == TASKS else [f"ruler/{task}" for task in tasks]
  for answer, score in ((lambda text: " ".join(gold[text]), 100.0), (lambda text: "I do not know @#", 0.0)):
    found = ruler.run(Answering(tokenizer, answer), names, chosen, epath.Path(tmp_path / f"out{score}"))
    assert {result["2048" if length == 2048 else "4096"].value for result in found.values()} == {score}


def test_all_13_tasks_are_scored_by_the_packages_metrics_and_their_mean_is_ruler(package, tokenizer, options, ruler_dir,
                                                                                 tmp_path):
  gold = handmade(package, tokenizer, ruler_dir, TASKS, 1024, 2)
  policy = Answering(tokenizer, lambda text: gold[text][0].upper())  # one of two references, in capitals
  found = ruler.run(policy, ["ruler"], options(), epath.Path(tmp_path / "out"))
  # a question is answered by any reference; of the other tasks' references each counts
  expected = {task: 100.0 if task.startswith("qa") else 50.0 for task in TASKS}
  assert {task: found[f"ruler/{task}"]["1024"].value for task in TASKS} == expected
  assert found["ruler"]["1024"].value == pytest.approx((11 * 50 + 2 * 100) / 13)
  assert found["ruler"]["1024"].samples == 26 and found["ruler"]["1024"].protocol == "RULER nvidia"
  assert {most_new for _, most_new, _ in policy.asked} == {128, 30, 120, 50, 32}


def test_the_score_is_that_of_the_packages_own_scoring_program(package, tmp_path):
  pytest.importorskip("pandas")
  cases = {"niah_multivalue": [["12", "345"], ["7"]], "qa_2": [["Paris", "the city"], ["no"]], "vt": [["AB"], ["CD"]]}
  predictions = [" a 12\x01 then 99 the\x07 CITY ab", "\x00\n  7 nothing\x0bcd "]
  for task, references in cases.items():
    (tmp_path / f"{task}.jsonl").write_text("".join(
        json.dumps({"index": i, "input": "", "outputs": reference, "pred": prediction, "others": {}}) + "\n"
        for i, (reference, prediction) in enumerate(zip(references, predictions))))
  (tmp_path / "nltk" / "tokenizers" / "punkt").mkdir(parents=True)  # else it tries to download, and uses none of it
  subprocess.run([sys.executable, "evaluate.py", "--data_dir", str(tmp_path)], check=True, capture_output=True,
                 env={**os.environ, "PYTHONPATH": str(package.directory), "NLTK_DATA": str(tmp_path / "nltk"),
                      "PYTHONDONTWRITEBYTECODE": "1"}, cwd=package.directory / "long_context_eval" / "eval")
  import csv
  rows = list(csv.reader((tmp_path / "summary.csv").open()))
  theirs = dict(zip(rows[1][1:], map(float, rows[2][1:])))
  assert theirs == {task: package.score(task, predictions, cases[task]) for task in cases}
  assert len(set(theirs.values())) > 1


def test_helmet_puts_the_answer_prefix_on_its_own_line_and_gives_50_or_100_tokens(
    package, tokenizer, options, ruler_dir, tmp_path):
  handmade(package, tokenizer, ruler_dir, TASKS, 1024, 2)
  policy = Answering(tokenizer, lambda text: "")
  found = ruler.run(policy, ["ruler"], options(protocol="helmet"), epath.Path(tmp_path / "out"))
  assert found["ruler"]["1024"].protocol == "RULER helmet"
  for text, most_new, _ in policy.asked:
    task = text.split()[0]
    assert most_new == (100 if task in ("niah_multikey_3", "niah_multiquery", "cwe") else 50)
    question, prefix = text.rsplit("\n", 1)
    assert question.endswith("Which?") and prefix == package.tasks[task].prefix_head.strip()


def test_with_a_chat_template_the_prefix_begins_the_models_answer(package, tokenizer, options, ruler_dir, tmp_path):
  handmade(package, tokenizer, ruler_dir, ("vt",), 1024, 2)
  policy = Answering(tokenizer, lambda text: "")
  ruler.run(policy, ["ruler/vt"], options(apply_chat_template=True), epath.Path(tmp_path / "out"))
  text = policy.asked[0][0]
  assert "Which?<|im_end|>\n<|im_start|>assistant\nAnswer: According to the chain(s)" in text
  tokenizer_without = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer)
  with pytest.raises(UserError, match="no chat template"):
    ruler.run(Answering(tokenizer_without, str), ["ruler/vt"], options(apply_chat_template=True),
              epath.Path(tmp_path / "out"))


def test_a_prompt_that_does_not_fit_loses_its_middle_and_is_counted(package, tokenizer, options, ruler_dir, tmp_path):
  handmade(package, tokenizer, ruler_dir, ("qa_1",), 256, 2, words=70)  # 5 tokens each
  policy = Answering(tokenizer, lambda text: "")
  policy.window = 256
  found = ruler.run(policy, ["ruler/qa_1"], options(lengths=(256,)), epath.Path(tmp_path / "out"))
  assert found["ruler/qa_1"]["256"].truncated == 2
  assert "(2 truncated)" in results.table(found)
  for text, _, length in policy.asked:
    assert length == 256 - 32 and text.startswith("qa_1") and text.endswith("Which? Answer:")


def test_after_a_kill_only_what_is_missing_is_asked_again(package, tokenizer, options, ruler_dir, tmp_path):
  gold = handmade(package, tokenizer, ruler_dir, ("cwe",), 1024, 40)
  whole = Answering(tokenizer, lambda text: gold[text][0])
  expected = ruler.run(whole, ["ruler/cwe"], options(samples=40), epath.Path(tmp_path / "whole"))

  class Killed(Answering):
    def generate(self, prompts, *arguments, **keywords):
      if len(self.asked) >= 32:
        raise KeyboardInterrupt
      return super().generate(prompts, *arguments, **keywords)

  out = epath.Path(tmp_path / "out")
  with pytest.raises(KeyboardInterrupt):
    ruler.run(Killed(tokenizer, lambda text: gold[text][0]), ["ruler/cwe"], options(samples=40), out)
  (path,) = out.glob("ruler/*/answers-0.jsonl")
  path.write_bytes(path.read_bytes()[:-10])  # the kill cut the last line in two
  again = Answering(tokenizer, lambda text: gold[text][0])
  assert ruler.run(again, ["ruler/cwe"], options(samples=40), out) == expected
  assert sorted(text.split(":")[0] for text, *_ in again.asked) == [f"cwe {i}" for i in range(31, 40)]
  third = Answering(tokenizer, lambda text: "other")
  assert ruler.run(third, ["ruler/cwe"], options(samples=40), out) == expected and not third.asked


def test_a_prompt_set_is_made_once_and_an_interrupted_or_damaged_one_is_told(package, tokenizer, ruler_dir):
  sets = sets_of(package, tokenizer, ruler_dir)
  handmade(package, tokenizer, ruler_dir, ("vt",), 1024, 2)
  sets.make([("vt", 1024)])  # nothing to do
  folder = sets.path("vt", 1024)
  prompts = (folder / "prompts.jsonl").read_bytes()
  (folder / "prompts.jsonl").write_bytes(prompts[:-20])
  with pytest.raises(UserError, match=r"not what its DONE.json says: remove this folder"):
    sets.read("vt", 1024)
  (folder / "DONE.json").unlink()
  with pytest.raises(UserError, match=r"was interrupted, it has no DONE.json: remove this folder"):
    sets.read("vt", 1024)


def test_another_tokenizer_seed_count_or_length_is_another_set(package, tokenizer, ruler_dir):
  other = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer)
  paths = {sets_of(package, tokenizer, ruler_dir).path("vt", 1024), sets_of(package, other, ruler_dir).path("vt", 1024)}
  assert len(paths) == 1  # the same tokens: what else the object holds does not matter
  import copy
  other = copy.deepcopy(tokenizer)
  other.add_tokens(["<a new token>"])
  paths |= {sets_of(package, other, ruler_dir).path("vt", 1024),
            sets_of(package, tokenizer, ruler_dir, seed=1).path("vt", 1024),
            sets_of(package, tokenizer, ruler_dir, count=3).path("vt", 1024),
            sets_of(package, tokenizer, ruler_dir).path("vt", 2048)}
  assert len(paths) == 5


def test_a_length_too_short_for_a_task_is_told_and_leaves_nothing_behind(package, tokenizer, ruler_dir, monkeypatch):
  monkeypatch.setattr("policylong.evaluation.ruler_package._PATIENCE", 4)
  sets = sets_of(package, tokenizer, ruler_dir)
  with pytest.raises(UserError, match=r"qa_1 in 128 tokens: ask for a longer length"):
    sets.make([("qa_1", 128)])
  assert not list((ruler_dir / "prompts").iterdir())
