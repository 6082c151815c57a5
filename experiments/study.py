"""What studies have in common: the command that runs one of its sizes, and the one that makes its base model.

A study is a package of `experiments` with a grid file for each size, whose `SIZE` says how much is done:

  <study>/<size>.py                      the grid; `SIZE.measure_model(path)` reads a model that nobody trained
  <study>/base/                          the base model that every cell starts from, an HF directory
  <study>/results/<size>/                outcomes, the untouched base model's numbers, RESULTS.md
  <study>/results/<size>/findings.md     what was found, in words written by hand; RESULTS.md begins with it
"""

import argparse
import logging
import pathlib
from collections.abc import Callable, Sequence
from types import ModuleType

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import grid as grids
from experiments.cells import Grid, read_grid
from policylong import config as config_lib
from policylong import loop, paths
from policylong.devices import hosts
from policylong.errors import UserError
from policylong.model import hf
from policylong.model.qwen import ModelConfig
from policylong.model.stored import open_model
from policylong.storage.workdir import write_json

Report = Callable[[Grid, pathlib.Path, pathlib.Path], None]
"""Writes RESULTS.md: (the grid, the folder of its results, findings.md)."""


def run(doc: str, folder: pathlib.Path, sizes: Sequence[ModuleType], report: Report) -> None:
  """The command of the study in `folder`: a size's grid, and RESULTS.md anew after each cell.

  Raises:
    UserError: the base model or the material is not there, or a kept outcome is of another config.
  """
  parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", required=True, choices=[module.SIZE.name for module in sizes])
  parser.add_argument("--results", type=paths.local, help="where results go; default: results/<size> beside this file")
  arguments = parser.parse_args()
  kept, path = folder / "results" / arguments.size, folder / f"{arguments.size}.py"
  directory = arguments.results or kept
  grid = read_grid(str(path))
  grid.prepare()
  if not (directory / "base.json").exists():
    (size,) = [module.SIZE for module in sizes if module.SIZE.name == arguments.size]
    # On as many simulated devices as the runs have.
    with hosts.joined(None, None, None, grid.cells[0].config.mesh.simulated_devices):
      write_json(directory / "base.json", size.measure_model(folder / "base"))
  grids.run_all(grid, str(path), directory, lambda: report(grid, directory, kept / "findings.md"))
  print(f"results: {directory / 'RESULTS.md'}")


def check_base(folder: pathlib.Path) -> None:
  """That the study's base model is there.

  Raises:
    UserError: it is not.
  """
  if not (folder / "base" / "config.json").exists():
    raise UserError(f"{folder / 'base'} holds no model: start from the project's folder, or make it by python -m "
                    f"experiments.{folder.name}.base --workdir=runs/{folder.name}/base")


def make_base(doc: str, folder: pathlib.Path, steps: int, prepare: Callable[[pathlib.Path], None],
              get_config: Callable[[pathlib.Path, int], ConfigDict], model: ModelConfig) -> None:
  """The command that trains a study's base model.

  Args:
    doc: of the command.
    folder: of the study.
    steps: of training, if the command does not say.
    prepare: writes into the work directory what the training reads, unless it is there.
    get_config: (work directory, steps) -> the recipe.
    model: what is trained.

  Raises:
    UserError: there is a model already.
  """
  parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=paths.local, required=True)
  parser.add_argument("--steps", type=int, default=steps)
  parser.add_argument("--out", type=paths.local, default=folder / "base", help="where the model goes, an HF directory")
  arguments = parser.parse_args()
  logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
  logging.getLogger("policylong").setLevel(logging.INFO)
  if arguments.out.exists():
    raise UserError(f"--out is {arguments.out}, which is there already: remove it, or name another folder")
  config = config_lib.parse(get_config(arguments.workdir, arguments.steps).to_dict())
  with hosts.joined(None, None, None, config.mesh.simulated_devices):
    prepare(arguments.workdir)
    loop.run(config, arguments.workdir / "run")
    trained = open_model(arguments.workdir / "run")
    weights = jax.tree.map(lambda x: np.asarray(x, jax.numpy.bfloat16), trained.load(None, None))
    hf.export_hf(weights, model, trained.tokenizer, arguments.out)
