"""Runs a notebook's code cells from top to bottom: python -m tests.notebook NOTEBOOK RESULT < REQUEST.

REQUEST is JSON: "settings" {name: value} take the place of the notebook's own after its cell "settings"; "names" are
the variables that are wanted. RESULT is JSON: what the notebook displayed, and {name: value}, a record as a dictionary
of its fields. IPython, which draws in a notebook, is replaced by something that only keeps what it is given.
"""

import dataclasses
import json
import pathlib
import sys
import types


def read_cells(path: pathlib.Path) -> list[dict]:
  """The notebook's cells, in order."""
  return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code_cells(path: pathlib.Path) -> dict[str, str]:
  """The source of each code cell by its id, in order."""
  return {cell["id"]: "".join(cell["source"]) for cell in read_cells(path) if cell["cell_type"] == "code"}


def run(path: pathlib.Path, settings: dict) -> tuple[list[str], dict]:
  """What the notebook displayed, and its variables.

  Raises:
    KeyError: a setting is none of the notebook's.
  """
  displayed, variables = [], {"__name__": "__main__"}
  for name, source in code_cells(path).items():
    exec(compile(source, f"{path.name}:{name}", "exec"), variables)
    if name == "set-up":  # which says how JAX is to be imported
      _stand_in_for_ipython(displayed)
    if name == "settings":
      if unknown := settings.keys() - variables.keys():
        raise KeyError(f"{path.name} has no settings {sorted(unknown)}")
      variables.update(settings)
  return displayed, variables


def _stand_in_for_ipython(displayed: list[str]) -> None:
  import flax.nnx  # noqa: F401 (when it is imported, it looks for a whole IPython, and must not find this one)

  module = types.ModuleType("IPython.display")
  module.HTML, module.display = str, displayed.append
  sys.modules["IPython"], sys.modules["IPython.display"] = types.ModuleType("IPython"), module


def _plain(value):
  """A record's fields, or an array's numbers."""
  if dataclasses.is_dataclass(value):
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
  return value.tolist()


if __name__ == "__main__":
  request = json.load(sys.stdin)
  displayed, variables = run(pathlib.Path(sys.argv[1]), request["settings"])
  result = displayed, {name: variables[name] for name in request["names"]}
  pathlib.Path(sys.argv[2]).write_text(json.dumps(result, default=_plain), encoding="utf-8")
