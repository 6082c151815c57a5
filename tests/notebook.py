"""Runs a notebook's code cells from top to bottom, as a reader would: python -m tests.notebook NOTEBOOK RESULT < settings.

Standard input: {name: value} in JSON, put in the place of the notebook's own after its cell "settings". RESULT is
pickled: what the notebook displayed, and those of its variables that can be. What draws in a notebook, IPython, is
replaced by something that only keeps what it is given.
"""

import json
import pathlib
import pickle
import sys
import types


def code_cells(path: pathlib.Path) -> dict[str, str]:
  """The source of each code cell by its id, in order."""
  cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
  return {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"}


def stand_in() -> list[str]:
  """Puts a stand-in for IPython.display into sys.modules; returns the list that will hold what is displayed."""
  displayed: list[str] = []
  module = types.ModuleType("IPython.display")
  module.HTML, module.display = str, displayed.append
  sys.modules["IPython"], sys.modules["IPython.display"] = types.ModuleType("IPython"), module
  return displayed


def run(path: pathlib.Path, settings: dict) -> tuple[list[str], dict]:
  """What the notebook displayed, and its variables.

  Raises:
    KeyError: a setting is none of the notebook's.
  """
  displayed, variables = stand_in(), {"__name__": "__main__"}
  for name, source in code_cells(path).items():
    exec(compile(source, f"{path.name}:{name}", "exec"), variables)
    if name == "settings":
      if unknown := settings.keys() - variables.keys():
        raise KeyError(f"{path.name} has no settings {sorted(unknown)}")
      variables.update(settings)
  return displayed, variables


def _kept(variables: dict) -> dict:
  """Lists, dicts, numbers and our records; no modules, functions, arrays on devices."""
  kept = {}
  for name, value in variables.items():
    if isinstance(value, str | int | float | list | dict) and not name.startswith("__"):
      try:
        kept[name] = pickle.loads(pickle.dumps(value))
      except (pickle.PicklingError, TypeError, AttributeError):
        continue
  return kept


if __name__ == "__main__":
  displayed, variables = run(pathlib.Path(sys.argv[1]), json.load(sys.stdin))
  pathlib.Path(sys.argv[2]).write_bytes(pickle.dumps((displayed, _kept(variables))))
