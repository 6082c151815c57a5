"""A small world in which all works: model, corpus, conversations, configs. A hostile case changes one thing of it."""

import dataclasses
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable

from tests.small_chat import conversation, write_chats
from tests.small_run import make_small_run

MATERIAL = pathlib.Path(__file__).parents[2] / "material"

_TUNING = '''
import pathlib
from tests.small_chat import small_tuning

def get_config():
  config = small_tuning(pathlib.Path({folder!r}) / "model", pathlib.Path({folder!r}) / "chats.jsonl")
  config.mesh.update({{"data": 1, "context": 1}})
  return config
'''
_GRID = '''
import pathlib
from tests.small_run import small_config

SEEDS = (0,)

def get_config():
  return small_config(pathlib.Path({folder!r}))

def cells():
  yield "one", {{"method": "standard"}}
'''


@dataclasses.dataclass(frozen=True)
class Case:
  """One hostile input.

  name: its kind and what is wrong. module: what is run, e.g. "policylong.score". arguments: of its command line, in
  which {folder} and {world} stand for the case's own folder and the world. make: fills that folder. codes: the exit
  codes that are right.
  """
  name: str
  module: str
  arguments: tuple[str, ...]
  make: Callable[[pathlib.Path], None] = lambda folder: None
  codes: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class World:
  """Where what works lies."""
  folder: pathlib.Path

  def model_in(self, folder: pathlib.Path, **files: bytes | None) -> pathlib.Path:
    """The model in another folder, some of its files (dots written as __) with other bytes, or (None) not there."""
    target = folder / "model"
    target.mkdir()
    changed = {name.replace("__", "."): data for name, data in files.items()}
    for path in (self.folder / "model").iterdir():
      if path.name not in changed:
        os.link(path, target / path.name)
    for name, data in changed.items():
      if data is not None:
        (target / name).write_bytes(data)
    return target

  def bytes_of(self, name: str) -> bytes:
    """What a file of the model holds."""
    return (self.folder / "model" / name).read_bytes()

  def json_of(self, name: str) -> dict:
    """The same of a JSON file."""
    return json.loads(self.bytes_of(name))


def make_world(folder: pathlib.Path) -> World:
  """Writes the world into a folder, unless it is there."""
  if not (folder / "DONE").exists():
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_small_run(folder, MATERIAL)
    write_chats(folder / "chats.jsonl", [conversation(i) for i in range(24)])
    (folder / "tuning.py").write_text(_TUNING.format(folder=str(folder)))
    (folder / "grid.py").write_text(_GRID.format(folder=str(folder)))
    (folder / "texts.jsonl").write_text(json.dumps({"id": "a", "text": "The survey counted 412 houses."}) + "\n")
    (folder / "DONE").write_text("")
  return World(folder)


if __name__ == "__main__":
  make_world(pathlib.Path(sys.argv[1]))
