"""Tasks of lm-eval through the command, with answers, and so metrics, that are known by hand."""

import json
import os
import sys
from importlib import metadata

import lm_eval.tasks
import pytest
import yaml

from policylong.evaluation import lm_eval_tasks
from tests.evaluation.command import evaluated, refused
from tests.evaluation.stand_in import StandIn

LM_EVAL = os.path.dirname(lm_eval.tasks.__file__)
PROTOCOL = f"lm-eval {metadata.version('lm_eval')}, "
# question, choices, right one; the stand-in's scores: a space or consonant -2, a vowel -1, the named letter -0.5
ARC = [
    ("What sounds most?", ["aa", "aeio"], 0),           # -4, -6: first; per character -2, -1.5: second
    ("What sounds more?", ["aa", "aeio"], 1),
    ("Where the letter is k?", ["e", "kk", "bc"], 1),   # -3, -3, -6: the first; per character -3, -1.5, -3: second
    ("What is short?", ["e", "bcd", "b"], 0),           # -3, -8, -4; per character -3, -2.67, -4
]
ACC, ACC_NORM = 2 / 4, 2 / 4


def write_task(folder, name, rows, **definition):
  """A YAML task over a local JSONL file; returns the folder."""
  folder.mkdir(exist_ok=True)
  data = folder / f"{name}.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / f"{name}.yaml").write_text(yaml.safe_dump({
      "task": name, "dataset_path": "json", "dataset_name": None, "test_split": "test",
      "dataset_kwargs": {"data_files": {"test": str(data)}}, **definition}))
  return folder


def arc_like(folder, name="arc_local", rows=ARC):
  """arc_easy's own definition on local rows of arc_easy's form."""
  letters = "ABCD"
  return write_task(folder, name, [
      {"id": str(i), "question": question, "answerKey": letters[right],
       "choices": {"text": choices, "label": list(letters[:len(choices)])}}
      for i, (question, choices, right) in enumerate(rows)],
      include=f"{LM_EVAL}/arc/arc_easy.yaml", training_split=None, validation_split=None, tag=None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_arc_easy_s_own_definition_on_local_rows_gives_the_accuracy_known_by_hand(tmp_path, monkeypatch):
  policy = StandIn()
  found = evaluated(monkeypatch, policy, tmp_path / "out", f"--include_path={arc_like(tmp_path / 'tasks')}",
                    "--tasks=arc_local")
  assert found == {"arc_local": {"": {"metric": "acc", "value": ACC, "samples": 4, "truncated": 0,
                                      "protocol": PROTOCOL + "0-shot"}}}
  contexts = {policy.tokenizer.decode(context) for context, _ in policy.asked}
  assert contexts == {f"Question: {question}\nAnswer:" for question, _, _ in ARC}  # lm-eval's prompt
  details = json.loads((tmp_path / "out" / "lm_eval" / "arc_local.json").read_text())
  metrics = details["results"]["arc_local"]
  assert metrics["acc,none"] == ACC and metrics["acc_norm,none"] == ACC_NORM
  # of 0, 1, 1, 0 and the like: sqrt(1/4 * 4/3 / 4)
  assert metrics["acc_stderr,none"] == pytest.approx((1 / 12) ** 0.5)
  by_document = {sample["doc_id"]: (sample["acc"], sample["acc_norm"]) for sample in details["samples"]["arc_local"]}
  assert by_document == {0: (1, 0), 1: (0, 1), 2: (0, 1), 3: (1, 0)}
  assert "arguments" not in details["samples"]["arc_local"][0]


def test_samples_take_the_first_and_the_chat_template_is_lm_eval_s(tmp_path, monkeypatch):
  policy = StandIn()
  found = evaluated(monkeypatch, policy, tmp_path / "out", f"--include_path={arc_like(tmp_path / 'tasks')}",
                    "--tasks=arc_local", "--samples=3", "--apply_chat_template")
  assert found["arc_local"][""] | {"value": None} == {"metric": "acc", "value": None, "samples": 3, "truncated": 0,
                                                      "protocol": PROTOCOL + "0-shot, chat template"}
  assert {policy.tokenizer.decode(context, skip_special_tokens=True) for context, _ in policy.asked} == {
      f"[user] Question: {question}\nAnswer:[assistant] ".rstrip() for question, _, _ in ARC[:3]}


def test_a_document_that_does_not_fit_is_counted_once(tmp_path, monkeypatch):
  rows = [*ARC, ("long " * 40, ["aa", "e"], 1)]
  found = evaluated(monkeypatch, StandIn(window=100), tmp_path / "out", "--tasks=arc_local",
                    f"--include_path={arc_like(tmp_path / 'tasks', rows=rows)}")
  # the added one: -4 and -3, the second is right
  assert found["arc_local"][""] | {"protocol": ""} == {"metric": "acc", "value": 3 / 5, "samples": 5, "truncated": 1,
                                                       "protocol": ""}


def test_a_babilong_like_task_is_generated_and_matched_by_lm_eval(tmp_path, monkeypatch):
  """BABILong's form and settings: facts in a long text, a short greedy answer, no stop string, the target in it."""
  rows = [{"input": f"Noise. {'Mary went home. ' * n}the letter is {letter}", "question": "Which letter?",
           "target": target} for n, letter, target in ((1, "k", "(k)"), (20, "m", "(M)"), (3, "p", "(q)"))]
  (tmp_path / "tasks").mkdir()
  (tmp_path / "tasks" / "match.py").write_text(
      "def process_results(doc, results):\n"
      "  return {'acc': float(doc['target'].lower() in results[0].lower()), 'length': len(results[0])}\n")
  folder = write_task(
      tmp_path / "tasks", "babi_local", rows, output_type="generate_until",
      doc_to_text="{{input}}\n{{question}}\nAnswer:", doc_to_target="{{target}}",
      metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
      generation_kwargs={"do_sample": False, "temperature": 0.0, "max_gen_toks": 30, "until": []})
  path = folder / "babi_local.yaml"
  path.write_text(path.read_text() + "process_results: !function match.process_results\n")
  policy = StandIn()
  found = evaluated(monkeypatch, policy, tmp_path / "out", f"--include_path={folder}", "--tasks=babi_local")
  assert found == {"babi_local": {"": {"metric": "acc", "value": pytest.approx(2 / 3), "samples": 3, "truncated": 0,
                                       "protocol": PROTOCOL + "0-shot"}}}
  assert [each[1:] for each in policy.written] == [(30, (), 0.0)] * 3


def test_perplexity_is_that_of_the_known_log_probabilities(tmp_path, monkeypatch):
  folder = write_task(tmp_path / "tasks", "text_local", [{"text": "ae b"}, {"text": "iii"}],
                      output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
                      metric_list=[{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}])
  found = evaluated(monkeypatch, StandIn(), tmp_path / "out", f"--include_path={folder}", "--tasks=text_local")
  # -1 -1 -2 -2 over 4 bytes, -3 over 3
  assert found["text_local"][""]["value"] == pytest.approx(9 / 7 / 0.6931471805599453)
  assert found["text_local"][""]["metric"] == "bits_per_byte"


def test_a_group_is_one_number_and_a_tag_is_its_tasks(tmp_path, monkeypatch):
  folder = arc_like(tmp_path / "tasks", "arc_a", ARC)
  arc_like(folder, "arc_b", ARC[:1])
  for name in ("arc_a", "arc_b"):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"tag": "arc_tag"}))
  (folder / "both.yaml").write_text(yaml.safe_dump({
      "group": "arc_both", "task": ["arc_a", "arc_b"],
      "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}], "metadata": {"version": 1}}))
  monkeypatch.setattr("policylong.evaluation.lm_eval_tasks._every_task",
                      lambda path: lm_eval.tasks.TaskManager(include_path=path, include_defaults=False))
  found = evaluated(monkeypatch, StandIn(), tmp_path / "out", f"--include_path={folder}", "--tasks=arc_both,arc_tag")
  assert {name: (row[""]["metric"], row[""]["value"], row[""]["samples"]) for name, row in found.items()} == {
      "arc_both": ("acc", pytest.approx(3 / 5), 5), "arc_a": ("acc", ACC, 4), "arc_b": ("acc", 1.0, 1)}


def test_mistakes_are_told_in_one_sentence(tmp_path, monkeypatch, capsys):
  folder = arc_like(tmp_path / "tasks")
  gone = write_task(tmp_path / "gone", "gone_local", [{"text": "a"}], output_type="loglikelihood_rolling",
                    doc_to_text="", doc_to_target="{{text}}", metric_list=[{"metric": "bits_per_byte"}])
  (gone / "gone_local.jsonl").unlink()
  unsafe = write_task(tmp_path / "unsafe", "unsafe_local", [{"text": "a"}], output_type="loglikelihood_rolling",
                      doc_to_text="", doc_to_target="{{text}}", unsafe_code=True,
                      metric_list=[{"metric": "bits_per_byte"}])
  monkeypatch.setattr("policylong.evaluation.lm_eval_tasks._every_task",
                      lambda path: lm_eval.tasks.TaskManager(include_path=path, include_defaults=False))

  def told(policy, *flags):
    return refused(monkeypatch, capsys, policy, tmp_path / "out", *flags)

  assert "no task 'arc_locall'" in (said := told(StandIn(), f"--include_path={folder}", "--tasks=arc_locall"))
  assert "did you mean arc_local?" in said
  assert "no task 'longbench_2'; did you mean longbench2?" in told(StandIn(), "--tasks=longbench_2")
  assert "no such folder" in told(StandIn(), f"--include_path={tmp_path}/none", "--tasks=arc_local")
  assert "gone_local cannot be loaded" in (said := told(StandIn(), f"--include_path={gone}", "--tasks=gone_local"))
  assert "HF_DATASETS_OFFLINE" in said
  assert "has no chat template" in told(StandIn(chat_template=None), f"--include_path={folder}", "--tasks=arc_local",
                                        "--apply_chat_template")
  assert "marked as unsafe" in told(StandIn(), f"--include_path={unsafe}", "--tasks=unsafe_local")


def test_without_lm_eval_the_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "lm_eval", None)
  assert "pip install -e '.[evaluation]'" in refused(monkeypatch, capsys, StandIn(), tmp_path, "--tasks=arc_easy")


def test_names_of_other_benchmarks_are_not_taken_for_lm_eval_s():
  left = ("arc_easy", "mmlu", "longbench", "ruler_vt", "niah_single_1", "longbench2_local", "my_task", "ruler_mine",
          "qa_3")
  assert [name for name in left if not lm_eval_tasks.claims(name)] == []
  slips = ("rular", "rulr", "vt", "cwe", "niah_single1", "helmett", "longpl", "ruler/vtt", "a/b")
  assert [name for name in slips if lm_eval_tasks.claims(name)] == []


@pytest.mark.slow  # reading lm-eval's 14,000 definitions takes ten seconds and more
def test_lm_eval_s_own_tasks_are_known_and_a_wrong_name_is_told_with_near_ones(tmp_path, monkeypatch, capsys):
  assert "did you mean arc_easy" in refused(monkeypatch, capsys, StandIn(), tmp_path, "--tasks=arc_eazy")
