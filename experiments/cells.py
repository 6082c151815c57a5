"""What a grid file holds: a base config, its cells, its seeds.

A grid is a Python file with

  SEEDS = (0, 1, 2)          every cell is run with each of them
  def get_config():          the config that all cells change, as in configs/
  def cells():               yields (name, {"dotted.field": value})

and, where a cell's numbers should be more than the run's own,

  def measure(workdir):      {name: number} of a finished run; called once, and kept

and, where there is something to make before the first run,

  def prepare():             makes it, if it is not there
"""

import contextlib
import dataclasses
import difflib
import importlib.machinery
import importlib.util
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

from policylong import config as config_lib
from policylong.commands import user_code
from policylong.errors import UserError

_MODULE = "grid_file"  # the name under which a grid is loaded


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a grid: a row of its table. `changes` are the cell's fields that differ from the grid's config."""
  name: str
  seed: int
  changes: Mapping[str, object]
  config: config_lib.Config

  @property
  def folder(self) -> str:
    """The run's folder below the grid's."""
    return f"{self.name}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Grid:
  """All runs, each seed's together; what is measured of each beside its own numbers; what is made before the first."""
  cells: tuple[Cell, ...]
  measure: Callable[[pathlib.Path], dict[str, float]] | None
  prepare: Callable[[], None] | None


def read_grid(path: str) -> Grid:
  """Reads a grid file and checks the config of every cell.

  Raises:
    UserError: the file is missing, raises something or lacks a part, a name is used twice or is no name for a folder,
      or a cell has an unknown field or a value that the config refuses.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f"--grid is {path}, and no such file exists")
  with told(path):
    return _read(path)


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
  """Inside, whatever a grid's own code raises is told in one sentence, with its file and line."""
  try:
    yield
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    sentence = user_code.fault(error, lambda frame: frame.f_globals.get("__name__") == _MODULE)
    raise UserError(sentence or f"{path} is no grid ({user_code.reason(error)}): a grid has SEEDS, get_config() and "
                    "cells(), which yields (name, {field: value})") from error


def _read(path: str) -> Grid:
  # Whatever the file's name ends with.
  loader = importlib.machinery.SourceFileLoader(_MODULE, path)
  module = importlib.util.module_from_spec(importlib.util.spec_from_loader(_MODULE, loader))
  loader.exec_module(module)
  for part in ("SEEDS", "get_config", "cells"):
    if not hasattr(module, part):
      raise UserError(f"{path} has no {part}: a grid has SEEDS, get_config() and cells()")
  found: dict[str, Cell] = {}
  # All cells with the first seed before any with the second: what is there early says something of each.
  for seed in module.SEEDS:
    for name, changes in module.cells():
      if not re.fullmatch(r"[\w.=+-]+", name):
        raise UserError(f"{path}: the cell name {name!r} is no name for a folder: use letters, digits and _ . = + -")
      cell = Cell(name, seed, changes, _config(path, name, module.get_config().to_dict(), {**changes, "seed": seed}))
      if cell.folder in found:
        raise UserError(f"{path}: two cells have the name {name!r}")
      found[cell.folder] = cell
  if not found:
    raise UserError(f"{path} has no cell: cells() and SEEDS must yield at least one each")
  return Grid(tuple(found.values()), getattr(module, "measure", None), getattr(module, "prepare", None))


def _config(path: str, name: str, values: dict, changes: Mapping[str, object]) -> config_lib.Config:
  for field, value in changes.items():
    group = values
    *parents, last = field.split(".")
    for parent in parents:
      group = group.get(parent) if isinstance(group, dict) else None
    if not isinstance(group, dict) or last not in group:
      close = difflib.get_close_matches(field, _fields(values), n=1)
      raise UserError(f"{path}: cell {name!r} changes {field}, which is not a config field"
                      + (f"; did you mean {close[0]}?" if close else ""))
    group[last] = value
  try:
    return config_lib.parse(values)
  except config_lib.ConfigError as error:
    raise UserError(f"{path}: cell {name!r}: {error}") from error


def _fields(values: dict, prefix: str = "") -> list[str]:
  fields = []
  for name, value in values.items():
    fields += [prefix + name, *(_fields(value, f"{prefix}{name}.") if isinstance(value, dict) else [])]
  return fields
