"""The small study, from the base model to RESULTS.md.

  python -m experiments.small_study --size=small

Run it from the project's folder, after `make material`. Sizes: quick, small, full, and negatives, an ablation; what
each of them is stands in the file of its name. Killed at any instant and started again, the command goes on; a cell's
finished numbers are kept in results/<size>/outcomes/, so that without a change nothing is run again, and
results/<size>/RESULTS.md is written anew after each cell.
"""

import argparse
import pathlib

from experiments import grid as grids
from experiments.cells import read_grid
from experiments.small_study import base, full, negatives, quick, report, small
from policylong import paths
from policylong.devices import hosts
from policylong.errors import run_command
from policylong.storage.workdir import write_json

FOLDER = pathlib.Path("experiments/small_study")
SIZES = {module.SIZE.name: module.SIZE for module in (quick, small, full, negatives)}


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", required=True, choices=SIZES)
  parser.add_argument("--results", type=paths.local, help="where results go; default: results/<size> beside this file")
  arguments = parser.parse_args()
  directory = arguments.results or FOLDER / "results" / arguments.size
  path, findings = FOLDER / f"{arguments.size}.py", FOLDER / "results" / arguments.size / "findings.md"
  grid = read_grid(str(path))
  grid.prepare()
  _measure_base(arguments.size, grid.cells[0].config.mesh.simulated_devices, directory)
  grids.run_all(grid, str(path), directory, lambda: report.write(grid, directory, findings))
  print(f"results: {directory / 'RESULTS.md'}")


def _measure_base(size: str, devices: int, directory: pathlib.Path) -> None:
  """The untouched base model's numbers, once, on as many simulated devices as the runs have."""
  path = directory / "base.json"
  if not path.exists():
    with hosts.joined(None, None, None, devices):
      write_json(path, SIZES[size].measure_model(base.PATH))


if __name__ == "__main__":
  run_command(main)
