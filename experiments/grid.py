"""Runs a grid of configs, one after the other.

  python -m experiments.grid --grid=experiments/comparison.py --workdir=runs/comparison

Each cell is a run of its own in DIR/runs/<name>-seed<seed>, as `policylong.main` would make it; killed at any instant
and started again, the command goes on. Cells share the corpus and the index by their configs' `corpus.cache_dir`, and
compiled programs in DIR/compiled (JAX's own cache; JAX_COMPILATION_CACHE_DIR puts it elsewhere). A cell that fails is
recorded with its sentence, the others go on, and the next start tries it again. The result is DIR/table.parquet (a row
a run), DIR/table.md (a column a cell, means with 95% intervals over seeds) and DIR/plot.svg.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable

from experiments.cells import Cell, Grid, read_grid, told
from experiments.results import run_numbers, write_results
from policylong import config as config_lib
from policylong import ending, paths
from policylong.errors import UserError, run_command
from policylong.storage import lock
from policylong.storage.workdir import read_json, write_json


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--grid", type=paths.flag, required=True, metavar="FILE.py",
                      help="the grid, e.g. experiments/comparison.py")
  parser.add_argument("--workdir", required=True, type=paths.flag, help="where the runs and the table go")
  parser.add_argument("--cell", metavar="NAME-seedN", help="run this one alone, in this process, and write no table")
  arguments = parser.parse_args()
  arguments.workdir = pathlib.Path(arguments.workdir)
  grid = read_grid(arguments.grid)
  if grid.prepare:
    with told(arguments.grid):
      grid.prepare()
  if arguments.cell:
    run_here(_named(grid, arguments.cell), grid, arguments.workdir)
    return
  with lock.held(arguments.workdir / "lock", f"--workdir {arguments.workdir}"):
    run_all(grid, arguments.grid, arguments.workdir)
  print((arguments.workdir / "table.md").read_text())
  failed = [cell.folder for cell in grid.cells
            if "error" in read_json(outcome_path(cell, arguments.workdir), checked=False)]
  if failed:
    raise UserError(f"{len(failed)} of {len(grid.cells)} runs failed ({', '.join(failed)}): "
                    f"{arguments.workdir}/table.md says why; start the same command again to try them again")


def run_all(grid: Grid, path: str, directory: pathlib.Path, report: Callable[[], None] = lambda: None) -> None:
  """Runs what has no numbers yet; the table is there after each cell, and what `report` writes."""
  for number, cell in enumerate(grid.cells, start=1):
    print(f"cell {number} of {len(grid.cells)}: {cell.folder}", flush=True)
    run(cell, path, directory)
    write_results(grid, directory)
    report()


def outcome_path(cell: Cell, directory: pathlib.Path) -> pathlib.Path:
  """{"numbers": ...} of a finished run, {"error": sentence} of a failed one."""
  return directory / "outcomes" / f"{cell.folder}.json"


def run(cell: Cell, grid_path: str, directory: pathlib.Path) -> None:
  """Runs or resumes a cell in a process of its own, which may die without the grid; leaves an outcome."""
  path = outcome_path(cell, directory)
  wanted = json.loads(config_lib.to_json(cell.config))
  if path.exists() and "error" not in (found := read_json(path, checked=False)):
    if difference := config_lib.differences(_shared(found["config"], wanted), _shared(wanted, found["config"])):
      raise UserError(f"{path} is of another config of {cell.folder}; choose another --workdir or undo: "
                      + "; ".join(difference))
    return
  command = [sys.executable, "-m", "experiments.grid", f"--grid={grid_path}", f"--workdir={directory}",
             f"--cell={cell.folder}"]
  environment = {"JAX_COMPILATION_CACHE_DIR": str((directory / "compiled").absolute()), **os.environ,
                 "PYTHONUNBUFFERED": "1"}
  last = ""
  # Asked to leave, the grid asks its cell, which leaves in order.
  with (subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as ended,
        ending.telling(ended.send_signal), ending.deferred()):
    for line in ended.stderr:
      print(line, end="", file=sys.stderr)
      last = line.strip() or last
    code = ended.wait()
  if code:
    if code in (-signal.SIGINT, 130):
      raise KeyboardInterrupt
    if code in (-signal.SIGTERM, 143):
      raise ending.Terminated
    write_json(path, {"error": last.removeprefix("error: ") or f"the process ended with {code}", "config": wanted})


def _shared(values: dict, other: dict) -> dict:
  """`values` without the fields that `other` lacks: a kept outcome knows nothing of younger ones, nor we of older."""
  return {name: _shared(value, other[name]) if isinstance(value, dict) and isinstance(other[name], dict) else value
          for name, value in values.items() if name in other}


def run_here(cell: Cell, grid: Grid, directory: pathlib.Path) -> None:
  """The run itself, and its numbers when it is done."""
  import logging

  from policylong import loop  # after the arguments: mistakes answer at once
  from policylong.devices import hosts
  logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
  logging.getLogger("policylong").setLevel(logging.INFO)
  workdir = directory / "runs" / cell.folder
  with hosts.joined(None, None, None, cell.config.mesh.simulated_devices):
    loop.run(cell.config, workdir)
    numbers = run_numbers(workdir) | (grid.measure(workdir) if grid.measure else {})  # of several hosts, by all of them
    if hosts.is_first():
      write_json(outcome_path(cell, directory),
                 {"numbers": numbers, "config": json.loads(config_lib.to_json(cell.config))})


def _named(grid: Grid, folder: str) -> Cell:
  for cell in grid.cells:
    if cell.folder == folder:
      return cell
  raise UserError(f"--cell is {folder}, which is not in the grid; it has {', '.join(c.folder for c in grid.cells)}")


if __name__ == "__main__":
  run_command(main)
