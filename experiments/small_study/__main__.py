"""The small study, from the base model to RESULTS.md.

  python -m experiments.small_study --size=small

Run it from the project's folder, after `make material`. Sizes: quick, small, full; what each of them is stands in the
file of its name. Killed at any instant and started again, the command goes on; a cell's finished numbers are kept in
results/<size>/outcomes/, so that without a change nothing is run again. Not run to its end yet: see base.py.
"""

import argparse
import pathlib

from experiments import grid as grids
from experiments.cells import read_grid
from experiments.small_study import base, report
from policylong.errors import UserError, run_command
from policylong.workdir import read_json, write_json

FOLDER = pathlib.Path("experiments/small_study")


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", required=True, choices=("quick", "small", "full"))
  parser.add_argument("--results", type=pathlib.Path, help="where results go; default: results/<size> beside this file")
  arguments = parser.parse_args()
  if not (base.PATH / "config.json").exists():
    raise UserError(f"{base.PATH} holds no model: start from the project's folder, or make it by "
                    "python -m experiments.small_study.base")
  directory = arguments.results or FOLDER / "results" / arguments.size
  path = FOLDER / f"{arguments.size}.py"
  grid = read_grid(str(path))
  _measure_base(arguments.size, directory)
  grids.run_all(grid, str(path), directory)
  report.write(grid, directory, FOLDER / "findings.md")
  print(f"results: {directory / 'RESULTS.md'}")


def _measure_base(size: str, directory: pathlib.Path) -> None:
  """The untouched base model's numbers, once."""
  path = directory / "base.json"
  if path.exists():
    read_json(path)
    return
  import importlib

  from policylong import hosts
  with hosts.joined(None, None, None, 2):
    numbers = importlib.import_module(f"experiments.small_study.{size}").SIZE.measure_model(base.PATH)
  write_json(path, numbers)


if __name__ == "__main__":
  run_command(main)
