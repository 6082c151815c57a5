"""RESULTS.md: what was found, in words written by hand (findings.md), and all numbers, from the cells' outcomes."""

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from experiments.cells import Grid
from experiments.frontier_study.frontier import HARD, HARD_SOURCES
from experiments.frontier_study.study import LENGTH
from experiments.frontier_study.world import NUMBERS
from experiments.grid import outcome_path
from experiments.results import markdown_table, plot, told
from experiments.small_study.base import LENGTH as BASE_LENGTH
from experiments.small_study.report import detectable
from policylong.storage.workdir import read_json, write_atomically

PRIMARY, REFERENCE = "told_nll", "policylong"
# Of the sources that the base model uses least.
HARDEST = tuple(f"{PRIMARY}@{number}" for number in NUMBERS[-2:])
# Beside the reference and each other cell.
_MORE_PAIRS = (("policylong_epsilon=0.3", "offline_epsilon=0.3"), ("offline_epsilon=0.3", "offline"),
               ("offline", "standard"), *(("policylong_equal_compute", other) for other in (
    "offline_equal_compute", "entropylong_equal_compute", "nextlong", "quest", "standard")))
_SCREENING = ("anchored", "recall", "positives", "positives_true", *(f"sources@{number}" for number in NUMBERS),
              "without_value", "accepted_own", "accepted_control", "offpolicy_gap", "roots", "loss_margin",
              "scored_tokens")
# A token is scored forward only.
_SCORED_COST = 1 / 3
# What second_world.py read: letters and what each cost the last policies of these two cells.
SECOND_WORLD, SECOND_WORLD_CELLS = "second_world.json", ("policylong", "offline")
_SECOND_WORLD_MEASURES = {"told_nll": "told values, nats", "verified": "true sources verified, points"}
_BY_SEED = Mapping[int, Mapping[str, float]]


def write(grid: Grid, directory: pathlib.Path, findings: pathlib.Path) -> None:
  """Writes RESULTS.md from the outcomes of the cells that are done."""
  cells: dict[str, dict[int, dict[str, float]]] = {"base": {0: read_json(directory / "base.json", checked=False)}}
  done = 0
  for cell in grid.cells:
    if (path := outcome_path(cell, directory)).exists() and "numbers" in (outcome := read_json(path, checked=False)):
      cells.setdefault(cell.name, {})[cell.seed] = outcome["numbers"]
      done += 1
  trained = {cell.name: cell.config.rounds * cell.config.training.steps_per_round * cell.config.training.batch_size
             * LENGTH for cell in grid.cells}
  numbers = [f"@{number}" for number in NUMBERS]
  tasks = [f"{task}_nll/{length}" for task in ("needle", "multikey") for length in (BASE_LENGTH, LENGTH)]
  parts = [
      findings.read_text() if findings.exists() else "# Results of the frontier study\n",
      f"Below: means over seeds ± half of the 95% interval (Student's t). {done} of {len(grid.cells)} runs are done, "
      f"each of {max(trained.values()):,} tokens in sequences of {LENGTH}, those of equal compute of fewer.\n",
      "## True sources verified, of all and by the number of their difficulty\n\nAfter the last step, on letters that "
      "nobody trains on.\n\n" + _table(cells, ["verified", *(f"verified{number}" for number in numbers)]),
      "## The same on the way\n\n" + _table(cells, sorted(
          {name for runs in cells.values() for run in runs.values() for name in run if name.endswith("/verified")},
          key=lambda name: int(name[len("step"):-len("/verified")]))),
      f"## Nats of a told value in {LENGTH} tokens that hold its source (the primary measure), and by difficulty\n\n"
      + _table(cells, [PRIMARY, *(f"{PRIMARY}{number}" for number in numbers)]),
      f"## What a round chose: positives that are a true source of number {HARD} or more\n\n" + _table(cells, sorted(
          {name for runs in cells.values() for run in runs.values() for name in run if name.endswith(HARD_SOURCES)},
          key=lambda name: int(name[len("round"):-len("/" + HARD_SOURCES)]))),
      "## What was there before: the small study's tasks, nats of an answer by length\n\n" + _table(cells, tasks)]
  if REFERENCE in cells:
    parts.append("## Differences, seed by seed\n\nIn brackets the smallest true difference that so many seeds would "
                 "show four times out of five, at the spread that was seen.\n\n" + _differences(cells))
  parts.append(second_world(directory))
  parts.append(_compute(cells, trained))
  chosen = [PRIMARY, *HARDEST, "verified", f"needle_nll/{BASE_LENGTH}"]
  rows = {name: [{"numbers": run} for run in runs.values()] for name, runs in cells.items()}
  write_atomically(directory / "results.svg", plot(rows, chosen).encode())
  parts.append("![chosen numbers, a dot a seed](results.svg)\n")
  parts += [_screening(name, runs) for name, runs in cells.items()
            if any("round1/recall" in run for run in runs.values())]
  write_atomically(directory / "RESULTS.md", "\n".join(parts).encode())


def _of(runs: _BY_SEED, name: str) -> list[float]:
  return [run[name] for run in runs.values() if name in run]


def _table(cells: Mapping[str, _BY_SEED], names: Sequence[str]) -> str:
  return markdown_table(("cell", *names), [(cell, *(told(_of(runs, name)) for name in names))
                                           for cell, runs in cells.items()]) + "\n"


def _differences(cells: Mapping[str, _BY_SEED]) -> str:
  measures = {PRIMARY: (PRIMARY,), "its hardest": HARDEST, "verified": ("verified",),
              f"needle_nll/{BASE_LENGTH}": (f"needle_nll/{BASE_LENGTH}",)}
  rows = []
  for one, other in (*((REFERENCE, other) for other in cells if other not in ("base", REFERENCE)), *_MORE_PAIRS):
    both = sorted(cells.get(one, {}).keys() & cells.get(other, {}).keys())
    if not both:
      continue
    columns = []
    for names in measures.values():
      values = [statistics.fmean(cells[one][seed][name] - cells[other][seed][name] for name in names) for seed in both]
      columns.append(told(values) + (f" ({detectable(values):.2g})" if len(values) > 1 else ""))
    rows.append((f"{one} − {other}", str(len(both)), *columns))
  return markdown_table(("", "seeds", *measures), rows) + "\n"


def second_world(directory: pathlib.Path) -> str:
  """Of RESULTS.md; nothing if no run was read."""
  if not (directory / SECOND_WORLD).exists():
    return ""
  found = read_json(directory / SECOND_WORLD)
  rows = []
  for name, words in _SECOND_WORLD_MEASURES.items():
    scale = 100 if name == "verified" else 1
    of = {cell: {run.rpartition("seed")[2]: values[name] for run, values in found["runs"].items()
                 if run.startswith(f"{cell}-")} for cell in SECOND_WORLD_CELLS}
    seeds = sorted(of[SECOND_WORLD_CELLS[0]].keys() & of[SECOND_WORLD_CELLS[1]].keys())
    if len(seeds) > 1:
      values = differences({cell: [of[cell][seed] for seed in seeds] for cell in SECOND_WORLD_CELLS})
      rows.append((words, str(len(seeds)), *(f"{scale * value:.3f}" for value in values)))
  return (f"## Once more on {found['letters']} letters of another world: {' − '.join(SECOND_WORLD_CELLS)}\n\n"
          "Nothing was chosen by these letters. Halves of 95% intervals: over seeds, over letters, and over both, "
          "whose variances are added.\n\n" + markdown_table(
              ("", "seeds", "difference", "± over seeds", "± over letters", "± over both"), rows) + "\n")


def differences(values: Mapping[str, list[list[float]]]) -> tuple[float, float, float, float]:
  """(mean, halves of its 95% intervals over seeds, letters, both) of the first cell minus the second.

  Args:
    values: cell -> [seeds][letters]. The variances of both means are added, which counts twice what they share, and
      Student's t has the degrees of freedom of the fewer.
  """
  difference = np.subtract(*(np.asarray(values[cell], np.float64) for cell in SECOND_WORLD_CELLS))
  errors = []
  for means in (difference.mean(1), difference.mean(0)):
    errors.append((float(np.std(means, ddof=1)) / math.sqrt(len(means)), len(means) - 1))
  half = [error * float(stats.t.ppf(0.975, freedom)) for error, freedom in errors]
  both = math.hypot(*(error for error, _ in errors)) * float(stats.t.ppf(0.975, min(n for _, n in errors)))
  return float(difference.mean()), *half, both


def _compute(cells: Mapping[str, _BY_SEED], trained: Mapping[str, int]) -> str:
  """Of the cells whose outcomes say what they scored, and of those that do not screen."""
  rows = []
  for cell, runs in cells.items():
    scored = [sum(run[name] for name in run if name.endswith("/scored_tokens")) for run in runs.values()
              if "round1/scored_tokens" in run or not any("round1/recall" in run for run in runs.values())]
    if cell in trained and scored:
      costs = [trained[cell] + _SCORED_COST * n for n in scored]
      rows.append((cell, f"{trained[cell]:,}", told([n / trained[cell] for n in scored]),
                   told([cost / max(trained.values()) for cost in costs])))
  return ("## Compute\n\nA token that is scored (to find anchors, or to verify) counts a third of one that is trained "
          "on. Cells whose outcomes were kept before this was measured are missing.\n\n" + markdown_table(
              ("cell", "tokens trained on", "scored for each", "cost of the run, of plain packing's"), rows) + "\n")


def _screening(cell: str, runs: _BY_SEED) -> str:
  rounds = sorted({int(name[len("round"):].split("/")[0]) for run in runs.values() for name in run
                   if name.startswith("round")})
  return f"## Screening against the truth: {cell}\n\n" + markdown_table(
      ("", *(f"round {r}" for r in rounds)),
      [(name, *(told(_of(runs, f"round{r}/{name}")) for r in rounds)) for name in _SCREENING]) + "\n"
