"""A grid goes on where it was killed, survives a cell that fails, and ends in a table that says so."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments import grid as grids
from experiments.cells import read_grid
from experiments.results import interval, told, write_results
from policylong import config as config_lib
from policylong.config import CORPUS_METHODS
from policylong.errors import UserError
from policylong.storage.workdir import write_json
from tests.small_run import make_small_run
from tests.test_resume import REPOSITORY

GRID = '''
import pathlib
from tests.small_run import small_config

SEEDS = (0,)

def get_config():
  config = small_config(pathlib.Path({folder!r}))
  config.rounds = 1
  config.training.steps_per_round = 2
  return config

def cells():
  yield from {cells!r}

def measure(workdir):
  return {{"files": len(list(workdir.glob("rounds/*/sequences/part-*")))}}
'''


def write_grid(folder, cells, name="grid.py"):
  path = folder / name
  path.write_text(GRID.format(folder=str(folder), cells=cells))
  return path


def start(path, workdir):
  environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
  return subprocess.Popen([sys.executable, "-m", "experiments.grid", f"--grid={path}", f"--workdir={workdir}"],
                          cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True)


def test_a_grid_that_was_killed_goes_on_and_a_failing_cell_does_not_stop_it(tmp_path, material):
  make_small_run(tmp_path, material)
  # Of the small corpus no document has fewer tokens than a sequence.
  path = write_grid(tmp_path, [("standard", {"method": "standard"}), ("prolong", {"method": "prolong"}),
                               ("policylong", {"screening.control_chunks": 2})])
  out = tmp_path / "out"
  running, end = start(path, out), time.monotonic() + 600
  while not (out / "runs" / "policylong-seed0" / "config.json").exists():  # in the middle of the last cell
    assert time.monotonic() < end and running.poll() is None, running.communicate()
    time.sleep(0.05)
  os.killpg(running.pid, signal.SIGKILL)
  running.communicate()
  assert not (out / "outcomes" / "policylong-seed0.json").exists()
  first = out / "runs" / "standard-seed0"
  before = {p: p.stat().st_mtime_ns for p in first.rglob("*")}

  again = start(path, out)
  told, errors = again.communicate(timeout=600)
  assert again.returncode == 1 and "Traceback" not in errors
  assert errors.strip().splitlines()[-1].startswith("error: 1 of 3 runs failed (prolong-seed0)")
  assert {p: p.stat().st_mtime_ns for p in first.rglob("*")} == before
  rows = {row["cell"]: row for row in pq.read_table(out / "table.parquet").to_pylist()}
  assert {name: row["status"] for name, row in rows.items()} == {
      "standard": "done", "prolong": "failed", "policylong": "done"}
  assert rows["prolong"]["error"].startswith("prolong, round 1: documents of fewer than 256 tokens hold 0 tokens")
  assert rows["standard"]["files"] == 1 and rows["standard"]["accepted_own"] is None
  assert rows["policylong"]["accepted_own"] > 0 and rows["policylong"]["root_share"] == 64 / 256
  table = (out / "table.md").read_text()
  assert "prolong, seed 0, failed: prolong, round 1" in table and table in told
  assert "policylong" in (out / "plot.svg").read_text()


@pytest.mark.parametrize("cells, words", [
    ([("a", {}), ("b", {"screening.alhpa": 1.0})], ["cell 'b' changes screening.alhpa", "mean screening.alpha?"]),
    ([("a", {"screening.alpha.beta": 1.0})], ["changes screening.alpha.beta"]),
    ([("a", {"method": "best"})], ["cell 'a': method is 'best'"]),
    ([("a", {}), ("a", {"method": "knn"})], ["two cells have the name 'a'"]),
    ([("a/b", {})], ["'a/b' is no name for a folder"]),
    ([], ["has no cell"]),
])
def test_a_mistake_in_a_grid_is_named_before_anything_runs(tmp_path, cells, words):
  with pytest.raises(UserError) as caught:
    read_grid(str(write_grid(tmp_path, cells)))
  assert "\n" not in str(caught.value)
  for word in words:
    assert word in str(caught.value)


def test_a_file_that_is_no_grid_is_told_as_such(tmp_path):
  with pytest.raises(UserError, match="no such file"):
    read_grid(str(tmp_path / "none.py"))
  (tmp_path / "config.py").write_text("def get_config(): pass")
  with pytest.raises(UserError, match="has no SEEDS"):
    read_grid(str(tmp_path / "config.py"))


@pytest.mark.parametrize("text, words", [
    ("SEEDS = (0,)\nx = 1 / 0", "grid.py, line 2: ZeroDivisionError: division by zero"),
    ("SEEDS = (0,\n", "grid.py, line 1: '(' was never closed"),
    ("import no_module", "line 1: No module named 'no_module'"),
    ("import sys\nsys.exit(0)", "line 2: it ends the command (SystemExit: 0)"),
    ("SEEDS = 3\nget_config = cells = None", "grid.py is no grid (TypeError: 'int' object is not iterable)"),
    ("SEEDS = (0,)\nget_config = None\ndef cells():\n  raise KeyError('a')", "grid.py, line 4: KeyError: 'a'"),
    ("SEEDS = (0,)\nget_config = None\ndef cells():\n  yield 'a'", "is no grid (ValueError: not enough values"),
])
def test_a_grid_that_raises_anything_is_told_with_its_line(tmp_path, text, words):
  (tmp_path / "grid.py").write_text(text)
  with pytest.raises(UserError) as caught:
    read_grid(str(tmp_path / "grid.py"))
  assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_comparison_has_every_method_with_the_same_tokens():
  grid = read_grid(str(REPOSITORY / "experiments" / "comparison.py"))
  assert {cell.config.method for cell in grid.cells} == set(CORPUS_METHODS)
  assert len(grid.cells) == 3 * len(CORPUS_METHODS)
  assert len({cell.config.rounds * cell.config.training.steps_per_round * cell.config.training.batch_size
              * cell.config.synthesis.sequence_length for cell in grid.cells}) == 1
  assert len({cell.config.corpus.cache_dir for cell in grid.cells}) == 1
  assert {cell.name for cell in grid.cells if cell.config.training.document_masking} == {"prolong"}


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
  rng = np.random.default_rng(0)
  hits = sum(abs(mean - 5) <= half for mean, half in (interval(rng.normal(5, 2, 3)) for _ in range(4000)))
  assert abs(hits / 4000 - 0.95) < 0.015  # a binomial's standard deviation is 0.0034
  mean, half = interval([1.0, 2.0, 3.0])
  assert (mean, half) == (2.0, pytest.approx(4.302653 / math.sqrt(3)))  # t(0.975, 2) = 4.302653; deviation 1
  assert interval([7.0])[0] == 7.0 and math.isnan(interval([7.0])[1])


@pytest.mark.parametrize("values, text", [
  ([], "–"), ([0.123456], "0.1235"), ([0.4, 0.4, 0.1 + 0.3], "0.4 ± 0"), ([0.0, 0.0], "0 ± 0"),
  ([1100.0, 1150.0, 1200.0], "1150 ± 124"),  # t(0.975, 2) = 4.302653: 50 * 4.302653 / sqrt(3) = 124.2
  ([0.00001, -0.0002, 0.0003], "0.00004 ± 0.00062")])  # deviation 0.0002511
def test_a_number_has_as_many_digits_as_its_interval_lets_it(values, text):
  assert told(values) == text


def test_the_table_has_means_with_intervals_over_seeds(tmp_path):
  path = write_grid(tmp_path, [("a", {}), ("b", {"method": "knn"})])
  path.write_text(path.read_text().replace("SEEDS = (0,)", "SEEDS = (0, 1, 2)"))
  grid = read_grid(str(path))
  (tmp_path / "outcomes").mkdir()
  assert [cell.folder for cell in grid.cells] == [f"{name}-seed{seed}" for seed in (0, 1, 2) for name in "ab"]
  for cell, value in zip((cell for cell in grid.cells if cell.name == "a"), (1.0, 2.0, 3.0)):
    (tmp_path / "outcomes" / f"{cell.folder}.json").write_text(json.dumps({"numbers": {"score": value}}))
  write_results(grid, tmp_path)
  table = (tmp_path / "table.md").read_text()
  assert "|  | a | b |\n|---|---|---|\n| runs | 3 of 3 | 0 of 3 |\n| score | 2.0 ± 2.5 | – |" in table
  rows = sorted(pq.read_table(tmp_path / "table.parquet").to_pylist(), key=lambda row: (row["cell"], row["seed"]))
  assert [row["seed"] for row in rows] == [0, 1, 2] * 2 and [row["score"] for row in rows] == [1, 2, 3] + [None] * 3
  assert [row["status"] for row in rows] == ["done"] * 3 + ["waiting"] * 3
  plot = (tmp_path / "plot.svg").read_text()
  assert plot.count("<circle") == 3 and "score" in plot


@pytest.mark.parametrize("path", [str(path.relative_to(REPOSITORY)) for path in sorted(
    [REPOSITORY / "experiments/comparison.py", REPOSITORY / "experiments/ablations.py",
     *((REPOSITORY / f"experiments/small_study/{size}.py") for size in ("quick", "small", "negatives", "full")),
     *((REPOSITORY / f"experiments/frontier_study/{size}.py") for size in ("quick", "small"))])])
def test_the_grids_that_come_with_it_are_valid_and_no_two_cells_are_alike(path, monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  grid = read_grid(path)
  for seed in {cell.seed for cell in grid.cells}:
    configs = [cell.config for cell in grid.cells if cell.seed == seed]
    assert len(configs) > 1 and all(a != b for a, b in itertools.combinations(configs, 2))
    # equal tokens, whatever the number of rounds, or fewer where screening is counted
    read = {cell.name: cell.config.rounds * cell.config.training.steps_per_round * cell.config.training.batch_size
            for cell in grid.cells if cell.seed == seed}
    fewer = {name: read.pop(name) for name in list(read) if name.endswith("_equal_compute")}
    (equal,) = set(read.values())
    assert all(count < equal for count in fewer.values())


def test_a_kept_outcome_holds_beside_younger_and_older_fields_and_for_no_other_value(tmp_path):
  path = str(REPOSITORY / "experiments/gpu_rung/full.py")
  cell = read_grid(path).cells[0]
  kept = json.loads(config_lib.to_json(cell.config))
  del kept["max_staleness"], kept["training"]["longce"]  # as if these had come since
  kept["screening"]["gone"] = 4  # and this had gone
  outcome = grids.outcome_path(cell, tmp_path)
  write_json(outcome, {"numbers": {"loss": 1.0}, "config": kept})
  before = outcome.read_bytes()
  grids.run(cell, path, tmp_path)
  assert outcome.read_bytes() == before, "nothing was run"
  kept["training"]["weight_decay"] = 0.2
  write_json(outcome, {"numbers": {"loss": 1.0}, "config": kept})
  with pytest.raises(UserError, match=r"another config.*weight_decay"):
    grids.run(cell, path, tmp_path)
