"""The small study: its planted world and tasks are what they say, its truth is counted right, its report adds up."""

import json
import math
import os
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from experiments.small_study import base, corpora, measures, report, tasks, truth
from experiments.small_study.induction import init_with_induction
from experiments.small_study.world import RELATIONS, VALUES, World
from policylong.corpus.chunks import chunk_id
from policylong.model.qwen import hidden_states, init_params
from policylong.records import Anchor, Negative, Positive, Verdict
from policylong.storage import tables
from policylong.storage.workdir import Workdir, write_json
from tests.test_resume import REPOSITORY


def test_a_letter_repeats_one_fact_of_each_of_its_places_and_no_other_document_but_its_entry_states_it(tmp_path):
  corpora.write_corpus(tmp_path, letters=30, speech_count=0, lead_count=0)
  found = {name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
           for name in ("letters", "entries")}
  entries = {record["id"]: record["text"] for record in found["entries"]}
  facts = json.loads((tmp_path / "truth.json").read_text())
  assert len(entries) == 2 * 30 * corpora.PLACES_IN_LETTER and len(facts) == 30
  everything = "\n".join([*entries.values(), *(record["text"] for record in found["letters"])])
  for record in found["letters"]:
    told = facts[f"letters/{record['id']}"]  # with the name of the source, as documents of a corpus have it
    assert len(told) == corpora.PLACES_IN_LETTER
    for start, source, relation in told:
      entry = source.removeprefix("entries/")
      name = entry.removeprefix("entry/")
      value = re.match(r"\w+", record["text"][start:])[0]
      sentence = f"{RELATIONS[relation].format(name)} {value}."
      assert value in VALUES[relation] and record["text"][:start].endswith(f"{RELATIONS[relation].format(name)} ")
      assert sentence in entries[entry]
      assert everything.count(sentence) == 2 and everything.count(f"{RELATIONS[relation].format(name)} ") == 2
      (twin,) = [other for other in entries if other != entry and other[:len("entry/") + 4] == entry[:len("entry/") + 4]
                 and abs(list(entries).index(other) - list(entries).index(entry)) == 1]
      assert f"{name} " not in entries[twin]


def test_each_kind_of_fact_has_48_values_and_worlds_share_no_place():
  assert all(len(words) == len(set(words)) == 48 for words in VALUES.values())
  names = [{world.twins()[0].name for _ in range(300)} for world in map(World, (1, 2, 3))]
  assert all(len(found) == 300 for found in names) and len(set.union(*names)) == 900


def test_fresh_weights_look_up_what_followed_the_same_token_and_plain_ones_do_not():
  rng = np.random.default_rng(0)
  lists = np.stack([np.tile(rng.permutation(base.VOCABULARY)[:30], 16) for _ in range(2)])
  right = {}
  for init in (lambda config, key: init_params(config, key, np.float32), init_with_induction):
    params = init(base.MODEL, jax.random.key(0))
    states = hidden_states(params, base.MODEL, lists[:, :-1], compute_dtype=np.float32)
    said = np.argmax(states @ params["embedding"].T, axis=-1) == lists[:, 1:]
    right[init] = (said[:, :29].mean(), said[:, 30:].mean())
  plain, circuit = right.values()
  assert max(plain) < 0.05  # even of a list told fifteen times
  assert circuit[0] < 0.05 and circuit[1] > 0.5


class _Reader:
  """Answers as one who reads the whole prompt would, or as one who reads nothing."""

  def __init__(self, tokenizer, reads: bool):
    self.tokenizer, self._reads = tokenizer, reads

  def loglikelihoods(self, requests):
    return [(math.log(0.5), self._answer(self.tokenizer.decode(prompt)) == self.tokenizer.decode(answer).strip())
            for prompt, answer in requests]

  def _answer(self, text):
    if not self._reads:
      return "nothing"
    question = text.rsplit(". ", 1)[1]  # "The old chest holds the Tethobond"
    (relation,) = [name for name, words in RELATIONS.items() if re.fullmatch(words.format("(.+)"), question)]
    place = re.fullmatch(RELATIONS[relation].format("(.+)"), question)[1]
    while handed := re.search(rf"What is told of ([\w ]+) is also true of {place}\.", text):
      place = handed[1]
    (value,) = re.findall(rf"{RELATIONS[relation].format(place)} (\w+)\.", text)
    return value


@pytest.fixture(scope="module")
def tokenizer(material, tmp_path_factory):
  path = tmp_path_factory.mktemp("corpus") / "base.jsonl"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(corpora, "MATERIAL", material)
    corpora.write_base_corpus(path, planted=300)
  return base.train_tokenizer(path)


def test_tasks_are_solved_by_reading_the_prompt_and_by_nothing_else(tokenizer, monkeypatch, material):
  monkeypatch.setattr(corpora, "MATERIAL", material)
  found = {reads: tasks.measure(_Reader(tokenizer, reads), (512, 1024), 6) for reads in (True, False)}
  for task in tasks.TASKS:
    for length in (512, 1024):
      assert found[True][f"{task}/{length}"] == 1.0 and found[False][f"{task}/{length}"] == 0.0
      assert found[True][f"{task}_nll/{length}"] == pytest.approx(math.log(2))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_prompt_and_its_answer_have_the_length_and_are_the_same_each_time(task, tokenizer, monkeypatch, material):
  monkeypatch.setattr(corpora, "MATERIAL", material)
  prompts = tasks.Prompts(tokenizer).make(task, 777, 4)
  assert [len(prompt) + len(answer) for prompt, answer in prompts] == [777] * 4
  assert prompts == tasks.Prompts(tokenizer).make(task, 777, 4)
  assert len({tuple(prompt) for prompt, _ in prompts}) == 4


class _Remembering(_Reader):
  """Loses less the more it has before it: 9 nats minus a thousandth for each token."""

  def token_nlls(self, rows):
    return [np.asarray([np.nan, *(9 - np.arange(1, len(row)) / 1000)]) for row in rows]


def test_losses_and_gaps_are_means_over_their_positions(tokenizer, monkeypatch, material):
  monkeypatch.setattr(corpora, "MATERIAL", material)
  found = measures.of_policy(_Remembering(tokenizer, reads=True), (512, 1024), prompts=2, documents=3)
  places = {"loss/1-255": range(1, 256), "loss/256-511": range(256, 512), "loss/512-1023": range(512, 1024)}
  for name, positions in places.items():
    assert found[name] == pytest.approx(9 - np.mean(positions) / 1000)
  # A token is read with 512 tokens before it, or up to 127 more; with all of them it gains a thousandth for each other.
  assert found["gap/1024"] == pytest.approx(np.mean([t - (512 + t % 128) for t in range(512, 1024)]) / 1000)
  assert found["needle/1024"] == 1.0 and "gap/512" not in found


def test_screening_is_held_against_the_truth_as_counted_by_hand(tmp_path):
  # Three told values at characters 0, 3 and 6, tokens of two characters and a space.
  (tmp_path / "truth.json").write_text(json.dumps(
      {"all/letter": [[0, "all/a", "x"], [3, "all/b", "x"], [6, "all/c", "x"]]}))
  (tmp_path / "all.jsonl").write_text("\n".join(json.dumps({"id": name, "text": text}) for name, text in {
      "letter": "ab cd ef gh", "a": "an ab", "b": "no cd", "c": "no ef", "d": "abcd ef"}.items()))
  write_json(tmp_path / "run" / "config.json", {"screening": {"skip_tokens": 1}})
  round_ = Workdir(tmp_path / "run").round(1)
  import pyarrow as pa
  tables.write(round_.table("roots"), pa.table({
      "doc_id": ["all/letter"], "start": [0], "pieces": [["ab ", "cd ", "ef ", "gh"]],
      "entropy": pa.array([[math.nan, 1.0, 5.0, 3.0]], pa.list_(pa.float32()))}))  # mean 3, deviation 1.633
  chunk = {name: chunk_id(f"all/{name}", 0, 7) for name in "abcd"}
  anchor = {"doc_id": "all/letter", "token": "", "query": "", "entropy": 1.0, "threshold": 0.5, "same_document": 0,
            "near_copy": 0, "policy_step": 0}
  tables.write(round_.table("anchors"), tables.from_records(Anchor, [Anchor(position=p, **anchor) for p in (1, 2)]))

  def verdict(position, name, rank, gain, kind="retrieved"):
    return Verdict("all/letter", position, chunk[name], kind, rank, 0.5, 1.0, 1 - gain, 2.0, 2 - gain, gain,
                   gain > 0.4, 0)
  tables.write(round_.table("verdicts"), tables.from_records(Verdict, [
      verdict(1, "b", 0, 0.85), verdict(1, "d", 1, 0.45), verdict(1, "c", -1, 0.0),  # its source is b: found by itself
      verdict(2, "c", -1, 0.65), verdict(2, "d", 0, -0.2),                           # its source is c: another's find
      verdict(1, "a", -1, 0.99, "control")]))
  tables.write(round_.table("positives"), tables.from_records(Positive, [
      Positive("all/letter", chunk["b"], 1, 0.85), Positive("all/letter", chunk["d"], 1, 0.45)]))
  tables.write(round_.table("negatives"), tables.from_records(Negative, [
      Negative("all/letter", chunk[name], chunk["b"], 0.5, i) for i, name in enumerate("acdd")]))
  rates = {name: {"rate": 0.25} for name in ("own", "control")}
  write_json(round_.done_path, {"files": {}, "acceptance": rates, "epsilon": 0.4, "mean_gain": 0.65, "positives": 2,
                                "offpolicy": None, "anchors_per_root": 2.0, "roots": 1, "loss_margin": 0.25,
                                "tokens": {"scan": 6, "scored": 90, "padded": 128}})
  write_json(Workdir(tmp_path / "run").final_json, {"offpolicy": {"share": 0.5}})
  found = truth.measure(tmp_path / "run", tmp_path)
  wanted = {"anchored": 2 / 3, "recall": 1 / 2, "gain_source": 0.75, "gain_other": 0.25 / 3, "positives_true": 0.5,
            "negatives_unhelpful": 0.5, "precision@0.4": 2 / 3, "found@0.4": 1.0, "precision@0.6": 1.0,
            "found@0.7": 0.5, "offpolicy_gap": 0.5, "accepted_own": 0.25,
            "roots": 1, "loss_margin": 0.25, "scored_tokens": 96,
            "without_value": 1 / 3,  # of three accepted: d for "cd" has "abcd", which is another word
            "above@0.0": 1.0, "told@0.0": 1.0, "anchored@0.0": 1 / 3, "above@1.0": 1.0, "above@1.5": 0.0,
            "anchored@1.5": 0.0}
  assert {name: found[f"round1/{name}"] for name in wanted} == pytest.approx(wanted)
  assert "round1/precision@0.9" not in found and found["round1/found@0.9"] == 0.0


def _run(*command):
  environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
  ended = subprocess.run([sys.executable, "-m", *command], cwd=REPOSITORY, capture_output=True, text=True,
                         env=environment)
  assert ended.returncode == 0, ended.stderr[-3000:]


def test_a_cell_of_the_quick_study_finds_what_is_planted(tmp_path, material):
  _run("experiments.grid", "--grid=experiments/small_study/quick.py", f"--workdir={tmp_path}",
       "--cell=policylong-seed0")
  found = json.loads((tmp_path / "outcomes" / "policylong-seed0.json").read_text())["numbers"]
  # The base model looks things up, the retriever finds nearly all sources, and only sources lower the entropy.
  assert found["round1/anchored"] > 0.8 and found["round1/recall"] > 0.8
  assert found["round1/gain_source"] > 0.7 > 0.1 > found["round1/gain_other"]
  assert found["round1/accepted_own"] > 10 * found["round1/accepted_control"]
  assert found["round1/positives_true"] > 0.5 and found["round1/negatives_unhelpful"] > 0.99
  assert found["needle/512"] > 0.5  # by guessing 0.02
  assert {"round2/offpolicy_gap", "multikey_nll/1024", "tracking/1024", "gap/1024"} <= found.keys()


@pytest.mark.slow
def test_the_quick_study_runs_to_its_results(tmp_path, material):
  _run("experiments.small_study", "--size=quick", f"--results={tmp_path}")
  text = (tmp_path / "RESULTS.md").read_text()
  assert "3 of 3 runs are done" in text and "## Screening against the truth: policylong" in text


def test_what_could_be_seen_is_that_of_the_t_test():
  # By simulation: with a true mean as large as `detectable` says, four tests of five find it.
  rng = np.random.default_rng(0)
  n, sd = 5, 2.0
  sample = np.asarray([-1.0, 1.0, 0.0, 0.0, 0.0])
  size = report.detectable((sample * sd / np.std(sample, ddof=1)).tolist())
  draws = rng.normal(size, sd, (20_000, n))
  t = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(n))
  assert np.mean(np.abs(t) > 2.776) == pytest.approx(0.8, abs=0.06)


def test_results_have_every_cells_mean_and_interval(tmp_path):
  cells = [types.SimpleNamespace(name=name, folder=f"{name}-seed{seed}", seed=seed, config=_config())
           for name in ("standard", "policylong") for seed in (0, 1)]
  (tmp_path / "outcomes").mkdir()
  base = {f"{task}{kind}/512": 0.25 for task in tasks.TASKS for kind in ("", "_nll")}
  base |= {"loss/1-255": 4.0, "gap/1024": 0.125}
  write_json(tmp_path / "base.json", base)
  for cell in cells:
    value = {"standard": 0.0, "policylong": 2.0}[cell.name] + (2.0 if cell.name == "standard" else 4.0) * cell.seed
    write_json(tmp_path / "outcomes" / f"{cell.folder}.json", {"numbers": dict.fromkeys(base, value), "config": {}})
  waiting = types.SimpleNamespace(name="knn", folder="knn-seed0", seed=0, config=_config())
  report.write(types.SimpleNamespace(cells=[*cells, waiting]), tmp_path, tmp_path / "none.md")
  text = (tmp_path / "RESULTS.md").read_text()
  # two values a and b: mean ± 12.706 |a - b| / 2
  assert "| standard | 1 ± 13 | 1 ± 13 |" in text and "| policylong | 4 ± 25 | 4 ± 25 |" in text
  assert "| base | 0.25 | 0.25 |" in text and "4 of 5 runs" in text and "32,768 tokens" in text
  assert re.search(r"\| policylong − standard \| 3 ± 13 \(\d+\)", text)  # 2 - 0 and 6 - 2
  assert (tmp_path / "results.svg").read_text().startswith("<svg")


def _config():
  training = types.SimpleNamespace(steps_per_round=4, batch_size=2)
  return types.SimpleNamespace(rounds=2, training=training, synthesis=types.SimpleNamespace(sequence_length=2048))
