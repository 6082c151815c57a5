"""The top rung: its cells read equally much, its hours are those of docs/pods.md, its table says what is published."""

import json
import pathlib
import re

import pytest

from experiments import paper
from experiments.cells import read_grid
from policylong.errors import UserError
from policylong.evaluation import helmet, ruler
from policylong.storage.workdir import write_json
from tests.test_resume import REPOSITORY

FOUND = json.loads((REPOSITORY / "docs/pods.json").read_text())


def test_all_cells_start_from_one_model_and_read_four_billion_tokens():
  grid = read_grid(str(REPOSITORY / "experiments/paper.py"))
  assert [cell.folder for cell in grid.cells] == ["policylong-seed0", "entropylong-seed0", "nextlong-seed0"]
  for cell in grid.cells:
    config = cell.config
    sequences = config.rounds * config.training.steps_per_round * config.training.batch_size
    assert sequences * config.synthesis.sequence_length == 4 * 238 * 32 * 131_072 == pytest.approx(4e9, rel=2e-3)
    assert config.rounds * config.screening.roots_per_round == 100_000
    assert (config.model.path, config.eval.tasks) == ("models/Qwen2.5-3B", ())
    # It lies on the slice that pods.md has: as many devices.
    assert config.mesh.data * config.mesh.fsdp * config.mesh.context == FOUND["qwen3b_128k v5p:4x4x4 train"]["devices"]
  assert [cell.config.rounds for cell in grid.cells] == [4, 1, 1]


def test_fine_tuning_is_the_papers_on_the_same_slice():
  config = paper.tuning_config(pathlib.Path("runs/policylong-seed0"))
  tokens = config.training.steps * config.training.batch_size * config.data.sequence_length
  assert tokens == 250 * 2 ** 21 and config.training.peak_learning_rate == 2e-5
  assert str(config.model.path) == "runs/policylong-seed0" and config.mesh.fsdp * config.mesh.context == 64


@pytest.mark.parametrize("slice_", ["v5p:4x4x4", "v5e:8x8", "v6e:8x8"])
def test_hours_are_those_of_the_page_of_pods(slice_):
  row = next(line.split("|") for line in (REPOSITORY / "docs/pods.md").read_text().splitlines()
             if line.startswith(f"| qwen3b_128k | {slice_} | 8.0 |"))
  parts = paper.cost("policylong", slice_, FOUND)
  assert (f"{parts['train']:.1f}", f"{parts['screen'] + parts['train']:.1f}") == (row[4].strip(), row[7].strip())
  others = {method: paper.cost(method, slice_, FOUND) for method in ("entropylong", "nextlong")}
  assert others["nextlong"] == parts | {"screen": 0}
  # The budget is the same; without negatives more roots are scanned within it, at the rate of scans.
  assert others["entropylong"] == parts | {"screen": pytest.approx(parts["screen"], rel=1e-3)}
  # 0.52 of 3.99 billion tokens.
  assert parts["tune"] == pytest.approx(parts["train"] * 250 * 2 ** 21 / (952 * 2 ** 22))


def test_prompts_are_read_at_the_trainings_rate():
  train = FOUND["qwen3b_128k v5p:4x4x4 train"]
  # By hand: 2 FLOPs a weight and token, and of attention 4 S^2 N H / 2 a layer; Qwen2.5-3B has 2.77e9 weights beside
  # the embedding, 36 layers of 16 heads of 128.
  def flops(length):
    return 2 * 2.77e9 * length + 36 * 2 * length ** 2 * 16 * 128
  # A length: NVIDIA's RULER 13 x 100; HELMET's recall 4 x 100, RAG 100 questions of 3 data sets at 6 places and of
  # HotpotQA at 3, ICL 5 x 500, re-ranking 100 at 3, LongQA 3 x 100, RULER 13 x 100.
  prompts = 1300 + 400 + 100 * (6 + 6 + 3 + 6) + 2500 + 300 + 300 + 1300
  wanted = prompts * sum(flops(2 ** power) for power in range(13, 18)) + 503 * flops(120_000)
  seconds = wanted / train["model_flops"] * train["estimated_step_seconds"]
  assert paper.cost("nextlong", "v5p:4x4x4", FOUND)["measure"] == pytest.approx(seconds / 3600, rel=0.01)


def test_the_prompts_are_those_of_what_measure_runs(monkeypatch):
  asked = []
  monkeypatch.setattr(paper, "_scored", lambda model, tasks, options: asked.append((tasks, options)) or {})
  monkeypatch.setattr("policylong.sft.tuning.run", lambda config, workdir: None)
  paper.measure(pathlib.Path("runs/policylong-seed0"))
  (tasks, options), (others, _) = asked
  assert (options.lengths, options.samples, others) == (paper.LENGTHS, None, ("longbench2",))
  sets = {name: 100 for task in tasks if ruler.claims(task) for name in ruler.TASKS}
  sets |= {key: 500 if key[0] == "icl" else 100 for task in tasks if helmet.claims(task)
           for key in helmet.data_sets(task)}
  # Questions; of 5 data sets a question is there 6 or 3 times.
  assert len(paper.prompts()) == len(sets) == 43
  assert sum(paper.prompts()) == sum(sets.values()) + 100 * (3 * 5 + 2 * 2)


def test_a_price_makes_a_cost():
  rows = [line.split("|") for line in paper.plan(FOUND, {"v5p": 2.0}).splitlines()[2:]]
  assert len(rows) == 9
  for row in rows:
    hours, cost = row[8].strip().replace(",", ""), row[9].strip().replace(",", "")
    assert (float(cost) == pytest.approx(2 * float(hours), abs=2)) if "v5p" in row[2] else cost == ""


def test_the_table_has_what_is_published_and_what_is_measured(tmp_path):
  numbers = {f"ruler/{length}": 80.0 + i for i, length in enumerate(paper.LENGTHS)}
  numbers |= {"longbench2": 30.0, "helmet/longqa/131072": 21.0, "helmet/8192": 33.0}
  write_json(tmp_path / "outcomes" / "policylong-seed0.json", {"numbers": numbers, "config": {}})
  write_json(tmp_path / "outcomes" / "nextlong-seed0.json", {"error": "it failed", "config": {}})
  rows = {line.split("|")[1].strip(): [part.strip() for part in line.split("|")[2:-1]]
          for line in paper.table(paper.outcomes(tmp_path)).splitlines()}
  assert rows["ruler/131072"] == ["", "+2.54", "84.00", "81.26", "", "77.99", ""]
  assert rows["ruler"] == ["", "", "82.00", "87.37", "", "85.22", ""]  # the mean over the five lengths
  assert rows["helmet/recall/131072"] == ["7.5", "", "", "", "", "", ""]
  # What GPT-4 has judged stands beside what ROUGE-L counts, and both say so.
  plain = ", NarrativeQA by ROUGE-L, not judged"
  assert rows[f"helmet/longqa/131072{plain}"] == ["20.5 (judged)", "", "21.00", "", "", "", ""]
  assert rows[f"helmet/8192{plain}"][2] == "33.00" and "helmet/ruler/8192" not in rows
  assert rows["longbench2"] == ["", "", "30.00", "", "", "", ""]
  assert len(rows) == 2 + 5 + 1 + 6 * 5 + 6


def test_the_committed_page_is_what_the_command_writes():
  assert paper.TABLE.read_text() == paper.page(None, {})


def test_what_is_missing_is_said_before_a_pod_is_asked(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for path in (paper.HELMET, paper.CHATS, paper.LONGBENCH):
    with pytest.raises(UserError, match=re.escape(f"{path} is not there: it must be")):
      paper.prepare()
    path.write_text("")
  paper.prepare()
