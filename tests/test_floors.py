"""Who may import whom: an import goes down a floor or stays in its room, never up, and never in a circle."""

import ast
import functools
import graphlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "policylong"
# From the ground up; the rooms and files of one floor do not know each other.
FLOORS = (
    {"ending", "oserrors"},
    {"errors", "records", "randomness", "padding", "paths"},
    {"config", "material"},
    {"paper", "storage", "devices"},
    {"commands", "attention", "likelihood"},
    {"model", "corpus", "synthesis"},
    {"retrieval", "training", "report"},
    {"screening"},
    {"evaluation", "door"},
    {"loop", "sft", "prepare"},
    {"main", "score", "evaluate", "convert", "index", "aot", "status"},
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def modules():
  return {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imported(path, known):
  """The modules of this package that a file imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
      names = [name if name in known else node.module for name in names]
    else:
      continue
    for name in names:
      if name.split(".")[0] == "policylong":
        yield name if name in known else name + ".__init__"


@functools.cache
def arrows():
  known = modules()
  return {name: set(imported(path, known)) - {"policylong.__init__"} for name, path in known.items()}


def room(module):
  return module.split(".")[1]


def test_every_room_has_a_floor():
  rooms = {room(name) for name in modules()} - {"__init__"}
  assert rooms == set(FLOOR)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down(name):
  mine = room(name)
  for other in arrows()[name]:
    assert room(other) == mine or FLOOR[room(other)] < FLOOR[mine], f"{name} imports {other}"


def test_no_circle():
  order = list(graphlib.TopologicalSorter(arrows()).static_order())  # raises where there is one
  assert set(order) >= set(modules()) - {"policylong.__init__"}
