"""Hostile config files, grids, flags and paths."""

import os
import pathlib
import random
import socket
from collections.abc import Callable, Iterator

from benchmarks.reliability.world import Case, World

_IMPORT = "from ml_collections import ConfigDict\n"
# Files that are programs, and what is wrong with each.
PROGRAMS = {
  "empty": "",
  "syntax error": "def get_config(:\n",
  "unfinished": "def get_config():\n  x = (1,\n",
  "tabs and spaces": "def get_config():\n\tx = 1\n        return x\n",
  "no function": "config = 3\n",
  "import error": "import no_such_module_at_all\n",
  "name missing": "from math import no_such_name\n",
  "name error": "def get_config():\n  return nothing\n",
  "division": "x = 1 / 0\n",
  "division later": "def get_config():\n  return 1 / 0\n",
  "exit": "import sys\nsys.exit(3)\n",
  "exit with words": "raise SystemExit('goodbye')\n",
  "exit 0": "import sys\nsys.exit(0)\n",
  "exit later": "def get_config():\n  raise SystemExit(0)\n",
  "an exception of its own": "class Mine(Exception): pass\nraise Mine()\n",
  "an exception without words": "raise ValueError\n",
  "assertion": "def get_config():\n  assert False\n",
  "endless recursion": "def get_config():\n  return get_config()\n",
  "None": "def get_config():\n  return None\n",
  "a dict": "def get_config():\n  return {'seed': 1}\n",
  "a number": "def get_config():\n  return 7\n",
  "a generator": "def get_config():\n  yield 7\n",
  "two arguments": "def get_config(a, b):\n  return a\n",
  "an argument that is not given": "def get_config(a):\n  return a\n",
  "a class": "class get_config: pass\n",
  "an empty config": f"{_IMPORT}def get_config():\n  return ConfigDict()\n",
  "a field that fails": f"{_IMPORT}from ml_collections.config_dict import FieldReference\n"
  "def get_config():\n  return ConfigDict({'seed': FieldReference(1) // 0})\n",
  "a circle": f"{_IMPORT}def get_config():\n  c = ConfigDict()\n  c.me = c\n  return c\n",
  "out of memory": "def get_config():\n  raise MemoryError\n",
  "a file": "open('/no/such/file')\n",
  "a stop": "def get_config():\n  raise StopIteration\n",
  "bytes": b"\xff\xfe\x00\x01",
  "a zero byte": b"x = 1\x00\n",
  "latin": b"x = '\xe9'\n",
  "binary": bytes(range(256)) * 9,
  "a lone surrogate": "def get_config():\n  raise ValueError('\\udcff')\n",
  "lines of words": "def get_config():\n  raise ValueError('one\\ntwo\\nthree')\n",
}
# Grids: a base that works, and what follows it.
GRIDS = {
  "no cell": "def cells():\n  return []\n",
  "cells that fail": "def cells():\n  return 1 / 0\n",
  "cells that end it": "def cells():\n  raise SystemExit(0)\n",
  "cells of one thing": "def cells():\n  yield 'a'\n",
  "cells of three": "def cells():\n  yield 'a', {}, 3\n",
  "a name that is none": "def cells():\n  yield 7, {}\n",
  "a name with a slash": "def cells():\n  yield 'a/b', {}\n",
  "changes that are none": "def cells():\n  yield 'a', 7\n",
  "changes of numbers": "def cells():\n  yield 'a', {7: 7}\n",
  "an unknown field": "def cells():\n  yield 'a', {'b': 1}\n",
  "a wrong value": "def cells():\n  yield 'a', {'rounds': 'many'}\n",
  "a group": "def cells():\n  yield 'a', {'screening': 1}\n",
  "twice the same": "def cells():\n  yield 'a', {}\n  yield 'a', {}\n",
  "seeds that are none": "SEEDS = 3\ndef cells():\n  yield 'a', {}\n",
  "seeds of words": "SEEDS = ('a',)\ndef cells():\n  yield 'a', {}\n",
  "no seeds": "SEEDS = ()\ndef cells():\n  yield 'a', {}\n",
  "cells that is a list": "cells = [('a', {})]\n",
  "preparing fails": "def cells():\n  yield 'a', {}\ndef prepare():\n  raise OSError('no network')\n",
  "preparing ends it": "def cells():\n  yield 'a', {}\ndef prepare():\n  raise SystemExit(0)\n",
}
_BASE = (
  "from tests.small_run import small_config\nimport pathlib\nSEEDS = (0,)\n"
  "def get_config():\n  return small_config(pathlib.Path({world!r}))\n"
)
# (module, flags that work, which of them is a path that is read)
COMMANDS = (
  ("policylong.main", {"config": "{world}/small.py", "workdir": "{folder}/run"}, ("config",)),
  ("policylong.sft", {"config": "{world}/tuning.py", "workdir": "{folder}/run"}, ("config",)),
  (
    "policylong.score",
    {"model": "{world}/model", "input": "{world}/texts.jsonl", "output": "{folder}/o.parquet"},
    ("model", "input"),
  ),
  ("policylong.convert", {"model": "{world}/model", "output": "{folder}/orbax"}, ("model",)),
  ("policylong.index", {"input": "{world}/texts.jsonl", "output": "{folder}/index", "embedder": "hashed"}, ("input",)),
  (
    "policylong.evaluate",
    {
      "model": "{world}/model",
      "tasks": "position_loss",
      "lengths": "128",
      "documents": "{world}/talks.jsonl",
      "output": "{folder}/e",
    },
    ("model", "documents"),
  ),
  ("policylong.report", {"workdir": "{folder}/run"}, ("workdir",)),
  ("policylong.status", {"workdir": "{folder}/run"}, ("workdir",)),
  ("experiments.grid", {"grid": "{world}/grid.py", "workdir": "{folder}/run"}, ("grid",)),
)
_FIRST = {"policylong.convert": ("hf-to-orbax",), "policylong.index": ("build",)}
_WRITTEN = {
  "policylong.main": "workdir",
  "policylong.sft": "workdir",
  "policylong.score": "output",
  "policylong.convert": "output",
  "policylong.index": "output",
  "policylong.evaluate": "output",
  "experiments.grid": "workdir",
}


def command(module: str, flags: dict[str, str], **changes: str | None) -> tuple[str, ...]:
  """The arguments of a command, some flags changed or (None) left out."""
  values = {**flags, **changes}
  return (*_FIRST.get(module, ()), *(f"--{name}={value}" for name, value in values.items() if value is not None))


def _fifo(path: pathlib.Path) -> None:
  os.mkfifo(path)


def _socket(path: pathlib.Path) -> None:
  with socket.socket(socket.AF_UNIX) as made:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    made.bind(path.name)
    os.chdir(here)


def _loop(path: pathlib.Path) -> None:
  path.symlink_to(path)


# What may lie at a path instead of what is wanted.
THINGS: dict[str, Callable[[pathlib.Path], None]] = {
  "a FIFO": _fifo,
  "a socket": _socket,
  "a device": lambda path: path.symlink_to("/dev/zero"),
  "a terminal": lambda path: path.symlink_to("/dev/tty"),
  "a folder": lambda path: path.mkdir(),
  "a link to nothing": lambda path: path.symlink_to("nothing"),
  "a link to itself": _loop,
  "an empty file": lambda path: path.write_bytes(b""),
  "zeros": lambda path: path.write_bytes(bytes(4096)),
  "noise": lambda path: path.write_bytes(random.Random(0).randbytes(4096)),
  "nothing": lambda path: None,
  "a file behind a file": lambda path: path.with_suffix(".x").write_text("") or path.symlink_to(f"{path.stem}.x/y"),
}


def programs(world: World) -> Iterator[Case]:
  """Config files and grids that are no programs, or not the right ones."""
  for what, text in PROGRAMS.items():

    def make(folder, text=text):
      (folder / "mine.py").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))

    for module in ("policylong.main", "policylong.sft"):
      yield Case(f"config file: {what}", module, ("--config={folder}/mine.py", "--workdir={folder}/run"), make)
    yield Case(f"grid: {what}", "experiments.grid", ("--grid={folder}/mine.py", "--workdir={folder}/run"), make)
  for what, text in GRIDS.items():

    def make(folder, text=text):
      (folder / "mine.py").write_text(_BASE.format(world=str(world.folder)) + text)

    yield Case(f"grid: {what}", "experiments.grid", ("--grid={folder}/mine.py", "--workdir={folder}/run"), make)


def flags(world: World) -> Iterator[Case]:
  """Flags that are missing, unknown, empty or of the wrong type; paths at which something else lies."""
  del world
  for module, values, read in COMMANDS:
    yield Case("flags: unknown", module, (*command(module, values), "--no_such_flag=1"))
    yield Case("flags: one word too many", module, (*command(module, values), "word"))
    yield Case("flags: nothing", module, ())
    for name in values:
      if name not in ("embedder", "lengths", "documents") and (module, name) != ("policylong.evaluate", "output"):
        yield Case(f"flags: no --{name}", module, command(module, values, **{name: None}))
      if (module, name) != ("policylong.evaluate", "output"):
        yield Case(f"flags: --{name} is empty", module, command(module, values, **{name: ""}))
    for name in read:
      for what, thing in THINGS.items():
        if (module, name, what) != ("policylong.report", "workdir", "a folder"):
          yield Case(
            f"paths: --{name} is {what}",
            module,
            command(module, values, **{name: "{folder}/thing"}),
            lambda folder, thing=thing: thing(folder / "thing"),
          )
      yield Case(f"paths: --{name} is too long", module, command(module, values, **{name: "{folder}/" + 300 * "x"}))
      yield Case(f"paths: --{name} is far too long", module, command(module, values, **{name: "/" + 3000 * "x/"}))
    if name := _WRITTEN.get(module):
      for what, where in (
        ("below a file", "{folder}/file/run"),
        ("too long", "{folder}/" + 300 * "x"),
        ("where the system keeps its own", "/proc/run"),
        ("where nothing is written", "/sys/run"),
      ):
        yield Case(
          f"paths: --{name} is {what}",
          module,
          command(module, values, **{name: where}),
          lambda folder: (folder / "file").write_text("x"),
        )
  values = COMMANDS[2][1]
  yield Case("flags: a dtype", "policylong.score", (*command("policylong.score", values), "--dtype=int8"))
  for what in ("0", "-1", "many", "1,,x", "1e9", "9" * 30):
    yield Case(
      f"flags: --lengths={what}", "policylong.evaluate", command("policylong.evaluate", COMMANDS[5][1], lengths=what)
    )
  for what in ("", ",", "no_such_task", "ruler/nothing", "longppl,", "helmet", "longbench2/none"):
    yield Case(
      f"flags: --tasks={what}",
      "policylong.evaluate",
      command("policylong.evaluate", COMMANDS[5][1], tasks=what),
      codes=(0, 1, 2) if what == "longppl," else (1, 2),
    )
  yield Case("flags: k", "policylong.index", ("search", "--index={folder}", "--query=x", "--k=0"))
  yield Case("flags: no index", "policylong.index", ("search", "--index={folder}", "--query=x"))
  yield Case("flags: neither query", "policylong.index", ("search", "--index={folder}"))
  for name, value in (
    ("batch", "0"),
    ("max-tokens", "-3"),
    ("leaves", "0"),
    ("leaves", "100000"),
    ("target-recall", "7"),
    ("chunk-chars", "0"),
    ("embedder", "none"),
  ):
    yield Case(
      f"flags: --{name}={value}", "policylong.index", command("policylong.index", {**COMMANDS[4][1], name: value})
    )
  for name, value in (
    ("process_id", "0"),
    ("num_processes", "2"),
    ("coordinator_address", "nowhere"),
    ("num_processes", "many"),
  ):
    yield Case(
      f"flags: --{name}={value}", "policylong.main", (*command("policylong.main", COMMANDS[0][1]), f"--{name}={value}")
    )


def fields(world: World) -> Iterator[Case]:
  """Every field of a config with a value that it cannot have."""
  from tests.small_chat import small_tuning
  from tests.small_run import small_config

  rng = random.Random(1)
  tuning = small_tuning(world.folder / "model", world.folder / "chats.jsonl")
  for module, file, values in (
    ("policylong.main", "small.py", small_config(world.folder).to_dict()),
    ("policylong.sft", "tuning.py", tuning.to_dict()),
  ):
    for name, value in _flat(values):
      for hostile in _hostile(name, value, rng):
        yield Case(
          f"field: {name} = {hostile}",
          module,
          (f"--config={{world}}/{file}", "--workdir={folder}/run", f"--config.{name}={hostile}"),
        )
  text = (
    "from tests.small_run import small_config\nimport pathlib\ndef get_config():\n"
    f"  config = small_config(pathlib.Path({str(world.folder)!r}))\n  config.unlock()\n  {{change}}\n"
    "  return config\n"
  )
  changes = {
    f"{group} is a word": f"config.{group} = 'word'"
    for group in (
      "model",
      "corpus",
      "retrieval",
      "screening",
      "synthesis",
      "training",
      "eval",
      "mesh",
      "report",
      "method_options",
    )
  }
  changes |= {
    f"no {name}": f"del config.{name}"
    for name in (
      "seed",
      "rounds",
      "model",
      "corpus.sources",
      "training.batch_size",
      "screening.budget",
      "mesh.fsdp",
      "eval.tasks",
    )
  }
  changes |= {
    "one field too many": "config.hello = 1",
    "a source that is a word": "config.corpus.sources = ('talks',)",
    "a source without a path": "config.corpus.sources = ({'name': 'a', 'kind': 'jsonl'},)",
    "sources that are a number": "config.corpus.sources = 7",
    "a path with a zero byte": "config.model.path = 'a\\0b'",
    "a cache with a zero byte": "config.corpus.cache_dir = 'a\\0b'",
    "a cache below a file": "config.corpus.cache_dir = __file__ + '/cache'",
    "a cache that is a file": "config.corpus.cache_dir = __file__",
    "a cache too long": "config.corpus.cache_dir = 300 * 'x'",
    "a cache that the system keeps": "config.corpus.cache_dir = '/proc/cache'",
    "an embedder's folder that is not there": "config.retrieval.embedder = 'minilm'",
    "a model that is a list": "config.model.path = ['a']",
    "a corpus that is elsewhere": "config.corpus.sources[0]['path'] = '/nowhere/*.jsonl'",
    "documents that are elsewhere": "config.eval.documents.path = '/nowhere/at/all'",
    "a seed beyond all": "config.seed = 10**30",
    "a round beyond all": "config.rounds = 10**12",
    "steps beyond all": "config.training.steps_per_round = 10**15",
    "sequences beyond all": "config.synthesis.sequence_length = 2**60",
  }
  for what, change in changes.items():
    yield Case(
      f"config: {what}",
      "policylong.main",
      ("--config={folder}/mine.py", "--workdir={folder}/run"),
      lambda folder, change=change: (folder / "mine.py").write_text(text.format(change=change)),
    )


def _flat(values: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
  for name, value in values.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


# Fields in which a negative number has a meaning.
_SIGNED = ("screening.alpha", "mesh.data", "mesh.fsdp", "mesh.context", "mesh.tensor")


def _hostile(name: str, value: object, rng: random.Random) -> list[str]:
  """Values on the command line that the field cannot have."""
  if isinstance(value, bool):
    return ["perhaps"]
  if isinstance(value, int | float):
    return [rng.choice(["many", "''", "[1]", "0x"]), *(["-2"] if name not in _SIGNED else [])]
  if isinstance(value, str) and name.rpartition(".")[2] in (
    "method",
    "scoring_dtype",
    "embedder",
    "index",
    "negatives",
    "evidence",
    "compute_dtype",
    "remat",
    "schedule",
    "context_attention",
    "protocol",
    "search",
    "kind",
    "loss_on",
  ):
    return ["", "no_such_thing"]
  return []
