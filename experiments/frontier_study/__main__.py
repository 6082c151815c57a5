"""The frontier study, from its corpus to RESULTS.md.

  python -m experiments.frontier_study --size=small

Run it from the project's folder, after `make material`. Sizes: quick, mechanism, small. Killed at any instant and
started again, the command goes on; a cell's finished numbers are kept in results/<size>/outcomes/, so that without a
change nothing is run again, and results/<size>/RESULTS.md is written anew after each cell.
"""

import argparse
import pathlib

from experiments import grid as grids
from experiments.cells import read_grid
from experiments.frontier_study import base, mechanism, quick, report, small
from policylong import paths
from policylong.devices import hosts
from policylong.errors import run_command
from policylong.storage.workdir import write_json

FOLDER = pathlib.Path("experiments/frontier_study")
SIZES = {module.SIZE.name: module.SIZE for module in (quick, mechanism, small)}


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", required=True, choices=SIZES)
  parser.add_argument("--results", type=paths.local, help="where results go; default: results/<size> beside this file")
  arguments = parser.parse_args()
  directory = arguments.results or FOLDER / "results" / arguments.size
  path = FOLDER / f"{arguments.size}.py"
  grid = read_grid(str(path))
  grid.prepare()
  if not (directory / "base.json").exists():
    with hosts.joined(None, None, None, grid.cells[0].config.mesh.simulated_devices):
      write_json(directory / "base.json", SIZES[arguments.size].measure_model(base.PATH))
  grids.run_all(grid, str(path), directory, lambda: report.write(grid, directory, FOLDER / "findings.md"))
  print(f"results: {directory / 'RESULTS.md'}")


if __name__ == "__main__":
  run_command(main)
