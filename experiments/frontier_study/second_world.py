"""PolicyLong against "offline" once more, on letters by which nothing was chosen.

  python -m experiments.frontier_study.second_world --size=small

The letters of frontier.py are the same 64 for every run, and the recipe was piloted on them, so that an interval over
seeds says nothing of other letters. This reads the last policies of both cells' kept runs (results/<size>/runs) on four
times as many letters of another world, keeps what each letter cost in results/<size>/second_world.json, and goes on
after a kill; RESULTS.md then tells the difference with its interval over seeds, over letters and over both.
"""

import argparse
import math
import pathlib
from collections.abc import Mapping

import numpy as np
from scipy import stats

from experiments.cells import read_grid
from experiments.frontier_study import base, frontier
from experiments.frontier_study.corpora import PLACES_IN_LETTER
from experiments.frontier_study.study import LENGTH, one_device
from experiments.results import markdown_table
from policylong.devices import hosts
from policylong.errors import UserError, run_command
from policylong.storage.workdir import read_json, write_json

# None of the base model's, the corpus' and the tasks' worlds.
WORLD = 4
LETTERS_FOR_EACH = 4
CELLS = ("policylong", "offline")
NAME = "second_world.json"
MEASURES = {"told_nll": "told values, nats", "verified": "true sources verified, points"}


def main() -> None:
  """The command."""
  from experiments.frontier_study import quick, report, small  # report tells of this file's numbers
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", required=True, choices=("quick", "small"))
  (module,) = [module for module in (quick, small) if module.SIZE.name == parser.parse_args().size]
  directory = base.FOLDER / "results" / module.SIZE.name
  grid = read_grid(str(base.FOLDER / f"{module.SIZE.name}.py"))
  read_runs(directory, module.SEEDS, module.SIZE.held_out * LETTERS_FOR_EACH)
  report.write(grid, directory, directory / "findings.md")
  print(section(directory))


def read_runs(directory: pathlib.Path, seeds: tuple[int, ...], letters: int) -> None:
  """Reads the last policies of all seeds that have not been read yet.

  Raises:
    UserError: a run is not there, or is not done.
  """
  folders = {f"{cell}-seed{seed}": directory / "runs" / f"{cell}-seed{seed}" for cell in CELLS for seed in seeds}
  found = read_json(directory / NAME) if (directory / NAME).exists() else {"letters": letters, "runs": {}}
  for name, folder in folders.items():
    if name in found["runs"]:
      continue
    if not (folder / "final.json").exists():
      raise UserError(f"{folder} holds no finished run: make it by python -m experiments.grid --cell={name}")
    with hosts.joined(None, None, None, 1):
      reading = frontier.read(folder, letters, LENGTH, one_device(), WORLD)
    found["runs"][name] = {"told_nll": _by_letter(reading.loss), "verified": _by_letter(reading.verified)}
    write_json(directory / NAME, {key: found[key] for key in ("letters", "runs")})
    print(f"{name}: told values {np.mean(found['runs'][name]['told_nll']):.3f} nats", flush=True)


def section(directory: pathlib.Path) -> str:
  """Of RESULTS.md; nothing if no run was read."""
  if not (directory / NAME).exists():
    return ""
  found = read_json(directory / NAME)
  rows = []
  for name, words in MEASURES.items():
    scale = 100 if name == "verified" else 1
    of = {cell: {run.rpartition("seed")[2]: values[name] for run, values in found["runs"].items()
                 if run.startswith(f"{cell}-")} for cell in CELLS}
    seeds = sorted(of[CELLS[0]].keys() & of[CELLS[1]].keys())
    if len(seeds) > 1:
      values = differences({cell: [of[cell][seed] for seed in seeds] for cell in CELLS})
      rows.append((words, str(len(seeds)), *(f"{scale * value:.3f}" for value in values)))
  return (f"## Once more on {found['letters']} letters of another world: {CELLS[0]} − {CELLS[1]}\n\nNothing was chosen "
          "by these letters. Halves of 95% intervals: over seeds, over letters, and over both, whose variances are "
          "added.\n\n" + markdown_table(
              ("", "seeds", "difference", "± over seeds", "± over letters", "± over both"), rows) + "\n")


def differences(values: Mapping[str, list[list[float]]]) -> tuple[float, float, float, float]:
  """(mean, halves of its 95% intervals over seeds, letters, both) of the first cell minus the second.

  Args:
    values: cell -> [seeds][letters]. The variances of both means are added, which counts twice what they share, and
      Student's t has the degrees of freedom of the fewer.
  """
  difference = np.subtract(*(np.asarray(values[cell], np.float64) for cell in CELLS))
  errors = []
  for means in (difference.mean(1), difference.mean(0)):
    errors.append((float(np.std(means, ddof=1)) / math.sqrt(len(means)), len(means) - 1))
  half = [error * float(stats.t.ppf(0.975, freedom)) for error, freedom in errors]
  both = math.hypot(*(error for error, _ in errors)) * float(stats.t.ppf(0.975, min(n for _, n in errors)))
  return float(difference.mean()), *half, both


def _by_letter(values: np.ndarray) -> list[float]:
  """Means of each letter's told values, to four places."""
  return [round(float(mean), 4) for mean in values.reshape(-1, PLACES_IN_LETTER).mean(1, dtype=np.float64)]


if __name__ == "__main__":
  run_command(main)
