"""PolicyLong against "offline" once more, on letters by which nothing was chosen.

  python -m experiments.frontier_study.second_world --size=small

The letters of frontier.py are the same 64 for every run, and the recipe was piloted on them, so that an interval over
seeds says nothing of other letters. This reads the last policies of both cells' kept runs (results/<size>/runs) on four
times as many letters of another world, keeps what each letter cost in results/<size>/second_world.json, and goes on
after a kill; RESULTS.md then tells the difference with its interval over seeds, over letters and over both.
"""

import argparse
import pathlib

import numpy as np

from experiments.cells import read_grid
from experiments.frontier_study import base, frontier, quick, report, small
from experiments.frontier_study.corpora import PLACES_IN_LETTER
from experiments.frontier_study.study import LENGTH, one_device
from policylong.devices import hosts
from policylong.errors import UserError, run_command
from policylong.storage.workdir import read_json, write_json

# None of the base model's, the corpus' and the tasks' worlds.
WORLD = 4
LETTERS_FOR_EACH = 4


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", required=True, choices=("quick", "small"))
  (module,) = [module for module in (quick, small) if module.SIZE.name == parser.parse_args().size]
  directory = base.FOLDER / "results" / module.SIZE.name
  grid = read_grid(str(base.FOLDER / f"{module.SIZE.name}.py"))
  read_runs(directory, module.SEEDS, module.SIZE.held_out * LETTERS_FOR_EACH)
  report.write(grid, directory, directory / "findings.md")
  print(report.second_world(directory))


def read_runs(directory: pathlib.Path, seeds: tuple[int, ...], letters: int) -> None:
  """Reads the last policies of all seeds that have not been read yet.

  Raises:
    UserError: one of their runs is not there, or is not done; nothing has been read then.
  """
  path = directory / report.SECOND_WORLD
  found = read_json(path) if path.exists() else {"letters": letters, "runs": {}}
  names = [name for cell in report.SECOND_WORLD_CELLS for seed in seeds
           if (name := f"{cell}-seed{seed}") not in found["runs"]]
  for name in names:
    if not (directory / "runs" / name / "final.json").exists():
      raise UserError(f"{directory / 'runs' / name} holds no finished run: make it by python -m experiments.grid "
                      f"--grid={base.FOLDER / directory.name}.py --workdir={directory} --cell={name}")
  for name in names:
    with hosts.joined(None, None, None, 1):
      reading = frontier.read(directory / "runs" / name, letters, LENGTH, one_device(), WORLD)
    found["runs"][name] = {"told_nll": _by_letter(reading.loss), "verified": _by_letter(reading.verified)}
    write_json(path, {key: found[key] for key in ("letters", "runs")})
    print(f"{name}: told values {np.mean(found['runs'][name]['told_nll']):.3f} nats", flush=True)


def _by_letter(values: np.ndarray) -> list[float]:
  """Means of each letter's told values, to four places."""
  return [round(float(mean), 4) for mean in values.reshape(-1, PLACES_IN_LETTER).mean(1, dtype=np.float64)]


if __name__ == "__main__":
  run_command(main)
