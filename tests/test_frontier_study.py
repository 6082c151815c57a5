"""The frontier study: its world states each fact once, at the difficulty that is kept with it; the frontier is counted
right."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from experiments.cells import read_grid
from experiments.frontier_study import base, corpora, frontier, report, second_world
from experiments.frontier_study.world import DIFFICULTIES, NUMBERS, RIVALS, WORDINGS, Difficulty, FrontierWorld
from experiments.small_study import corpora as small_corpora
from experiments.small_study.world import RELATIONS, VALUES
from policylong.errors import UserError
from policylong.model.tokenizer import load_tokenizer
from policylong.storage import tables
from policylong.storage.workdir import write_json
from tests.test_small_study import _run


@pytest.fixture
def corpus(tmp_path, material, monkeypatch):
  monkeypatch.setattr(small_corpora, "MATERIAL", material)
  corpora.write_corpus(tmp_path, letters=40, mixed=10, lead_count=2)
  return tmp_path


def _records(corpus, name):
  lines = (corpus / f"{name}.jsonl").read_text().splitlines()
  return {record["id"]: record["text"] for record in map(json.loads, lines)}


def _stated(text, patterns, name):
  """(kind of fact, which of its patterns, value) of every sentence about a place."""
  return [(kind, i, value) for kind, wordings in patterns.items() for i, words in enumerate(wordings)
          for value in re.findall(rf"(?:^|(?<=[.] )){re.escape(words).replace(re.escape('{}'), '{}')}".format(
              re.escape(name), r"(\w+)"), text)]


def test_every_told_value_has_one_source_of_the_difficulty_that_the_truth_gives_it(corpus):
  letters, entries = _records(corpus, "letters"), _records(corpus, "entries")
  truth = json.loads((corpus / "truth.json").read_text())
  assert len(letters) == len(truth) == 40 and len(entries) == 2 * 4 * 40
  found = []
  for letter, facts in truth.items():
    text = letters[letter.removeprefix("letters/")]
    assert len(facts) == corpora.PLACES_IN_LETTER
    for start, source, relation, number in facts:
      entry = source.removeprefix("entries/")
      name = entry.removeprefix("entry/")
      value = re.match(r"\w+", text[start:])[0]
      assert value in VALUES[relation] and text[:start].endswith(f"{RELATIONS[relation].format(name)} ")
      assert [one for one, words in entries.items() if name in words] == [entry]
      ((kind, wording, said),) = {(k, i, v) for k, i, v in _stated(entries[entry], WORDINGS, name)}
      rivals = _stated(entries[entry], RIVALS, name)
      assert (kind, said) == (relation, value)
      assert all(k == relation and v in VALUES[relation] and v != value for k, _, v in rivals)
      assert Difficulty(wording, bool(rivals)).number == number
      found.append(number)
  assert set(found) == set(NUMBERS) == {0, 2, 3, 4, 5, 6}
  mix = _records(corpus, "mix").values()
  names = {entry.removeprefix("entry/") for entry in entries}
  assert len(mix) == 10 and not any(name in text for name in names for text in mix)


def test_the_corpus_is_the_same_each_time(corpus, tmp_path):
  again = tmp_path / "again"
  corpora.write_corpus(again, letters=40, mixed=10, lead_count=2)
  for path in again.iterdir():
    assert path.read_bytes() == (corpus / path.name).read_bytes()


def test_difficulties_are_drawn_evenly_and_the_worlds_of_base_corpus_and_tasks_share_no_place():
  worlds = [FrontierWorld(seed, DIFFICULTIES) for seed in (
      8, small_corpora.CORPUS_WORLD, small_corpora.TASK_WORLD, second_world.WORLD)]
  told = [[world.told(4) for _ in range(250)] for world in worlds]
  counts = np.array([sum(d == difficulty for one in told[0] for d in one.difficulties) for difficulty in DIFFICULTIES])
  assert counts.sum() == 1000 and np.all(np.abs(counts - 100) < 5 * np.sqrt(100 * 0.9))
  names = [{place.name for one in letters for place, _ in one.sources} for letters in told]
  assert all(len(found) == 1000 for found in names) and len(set.union(*names)) == 4000


def test_told_values_are_found_among_tokens_and_a_long_row_ends_with_its_letter():
  tokenizer = load_tokenizer(base.PATH)
  world = FrontierWorld(0, DIFFICULTIES)
  told = world.told(4)
  root, positions = frontier.value_positions(tokenizer, told)
  assert tokenizer.decode(root) == told.letter.text
  for position, (place, relation, _) in zip(positions, told.letter.told):
    assert re.match(r" ?(\w+)", tokenizer.decode(root[position:position + 6]))[1] == place.facts[relation]
  sources = [frontier.tokens(tokenizer, text) for _, text in told.sources]
  row = frontier.long_row(world, tokenizer, sources, root, positions, 1024)
  text = tokenizer.decode(row.tokens)
  assert len(row.tokens) == row.bucket == 1024 and text.endswith(told.letter.text)
  assert np.array_equal(row.tokens[row.positions], root[positions])
  assert all(text.count(source) == 1 for _, source in told.sources)


def test_verified_is_who_becomes_surer_and_right():
  reading = frontier.Reading(number=np.array([0, 0, 3, 3]), gain=np.array([0.9, 0.41, 0.39, 0.9]),
                             drop=np.array([3.0, 0.51, 3.0, 0.49]), loss=np.array([0.5, 1.5, 2.0, 4.0]))
  assert reading.numbers() == {"verified": 0.5, "verified@0": 1.0, "verified@3": 0.0, "told_nll": 2.0,
                               "told_nll@0": 1.0, "told_nll@3": 3.0}


def test_what_a_round_chose_is_counted_by_difficulty(corpus, tmp_path):
  truth = json.loads((corpus / "truth.json").read_text())
  (one, (easy, *_)), (other, (hard, *_)) = (
      next((letter, facts) for letter, told in truth.items() if (facts := [fact for fact in told if fact[3] == number]))
      for number in (0, 6))
  # The source of one letter's value before its own letter, and before the other one, of which it says nothing.
  rows = [(one, easy[1]), (other, easy[1]), (other, hard[1]), (other, f"{hard[1]} no more")]
  rounds = tmp_path / "run" / "rounds" / "2"
  rounds.mkdir(parents=True)
  tables.write(rounds / "positives.parquet", pa.table({
      "doc_id": [letter for letter, _ in rows], "chunk_id": [f"{entry}#0-9" for _, entry in rows]}))
  found = frontier.chosen(tmp_path / "run", corpus)
  assert found == {"round2/sources@0": 1, "round2/sources@6": 1, "round2/hard_sources": 1,
                   **{f"round2/sources@{number}": 0 for number in (2, 3, 4, 5)}}
  assert frontier.chosen(tmp_path, corpus) == {}


def test_results_tell_of_each_cell_and_of_the_differences_seed_by_seed(tmp_path):
  grid = read_grid("experiments/frontier_study/small.py")
  numbers = {"verified": 0.5, "needle_nll/512": 0.25, "round1/recall": 1.0, "told_nll@5": 2.0}
  write_json(tmp_path / "base.json", {**numbers, "told_nll": 2.25})
  for name, losses in {"policylong": (1.0, 1.5), "offline": (1.25, 2.25)}.items():
    for seed, loss in enumerate(losses):
      write_json(tmp_path / "outcomes" / f"{name}-seed{seed}.json",
                 {"numbers": {**numbers, "told_nll": loss, "told_nll@6": 2 * loss,
                              "step12/verified": 0.125 * (seed + 1)}})
  last = {"told_nll": 2.0, "told_nll@6": 4.0}
  for name, found in {"policylong_equal_compute": {**numbers, "round1/scored_tokens": 49_152 + 6144}, "nextlong": {
      name: value for name, value in numbers.items() if name != "round1/recall"}}.items():
    write_json(tmp_path / "outcomes" / f"{name}-seed0.json", {"numbers": {**found, **last}})
  report.write(grid, tmp_path, tmp_path / "none.md")
  text = (tmp_path / "RESULTS.md").read_text()
  assert f"6 of {len(grid.cells)} runs are done, each of {36 * 4 * 1024:,} tokens" in text
  # Of 55,296 tokens scored a third is 18,432, and 67,584 of 147,456 are 0.4583.
  assert "| policylong_equal_compute | 49,152 | 1.125 | 0.4583 |" in text
  assert "| nextlong | 147,456 | 0 | 1 |" in text and "| offline | 147,456 |" not in text
  assert "| base | 2.25 |" in text and "| policylong | 1.2 ± 3.2 |" in text  # of 1 and 1.5: 0.25 * 12.706
  # Of -0.25 and -0.75; its hardest is the mean of number 5, the same in both, and 6; 3.5 is 0.25 * (12.706 + 1.376).
  assert "| policylong − offline | 2 | -0.5 ± 3.2 (3.5) | -0.5 ± 3.2 (3.5) |" in text
  assert "## Screening against the truth: offline" in text and "| cell | step12/verified |" in text


def test_a_second_world_tells_of_seeds_and_of_letters(tmp_path):
  rng = np.random.default_rng(0)
  # A true difference of -0.5, moved by 0.1 with a seed and by 0.2 with a letter.
  seeds, letters = rng.normal(0, 0.1, (5, 1)), rng.normal(0, 0.2, (1, 64))
  other = rng.normal(2.0, 0.3, (5, 64))
  one = other - 0.5 + seeds + letters
  mean, of_seeds, of_letters, both = report.differences({"policylong": one.tolist(), "offline": other.tolist()})
  expected = [stats.ttest_1samp((one - other).mean(axis), 0).confidence_interval() for axis in (1, 0)]
  assert mean == pytest.approx((one - other).mean())
  for half, wanted in zip((of_seeds, of_letters), expected):
    assert (mean - half, mean + half) == pytest.approx((wanted.low, wanted.high))
  errors = [np.std(seeds, ddof=1) / 5 ** 0.5, np.std(letters, ddof=1) / 8]
  assert both == pytest.approx(2.7764451 * np.hypot(*errors), rel=1e-6)
  # Of runs that are there, those that were read are not read again, and a run that is missing is named.
  runs = {f"{cell}-seed{seed}": {"told_nll": values[seed].tolist(), "verified": [0.25 * (cell == "policylong")] * 64}
          for cell, values in {"policylong": one, "offline": other}.items() for seed in range(5)}
  write_json(tmp_path / "second_world.json", {"letters": 64, "runs": runs})
  second_world.read_runs(tmp_path, tuple(range(5)), 64)
  text = report.second_world(tmp_path)
  assert f"| told values, nats | 5 | {mean:.3f} | {of_seeds:.3f} | {of_letters:.3f} | {both:.3f} |" in text
  assert "| true sources verified, points | 5 | 25.000 | 0.000 | 0.000 | 0.000 |" in text
  with pytest.raises(UserError, match="policylong-seed5 holds no finished run"):
    second_world.read_runs(tmp_path, tuple(range(6)), 64)


@pytest.mark.slow
def test_the_quick_study_runs_to_its_results(tmp_path, material):
  _run("experiments.frontier_study", "--size=quick", f"--results={tmp_path}")
  text = (tmp_path / "RESULTS.md").read_text()
  assert "3 of 3 runs are done" in text and "## Screening against the truth: policylong" in text
