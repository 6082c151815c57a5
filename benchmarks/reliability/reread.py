"""What a run holds, as text: for comparing in a process that a battery does not need afterwards.

  python -m benchmarks.reliability.reread files DIR    every file and weight that must be the same, by its hash
  python -m benchmarks.reliability.reread told DIR     the same, but of JSON what it says: a space in it says nothing
  python -m benchmarks.reliability.reread done DIR     what is read of a run that is done: its page, its standing, and
                                                       the weights of its newest checkpoint
"""

import contextlib
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator

import jax
import numpy as np

from policylong.errors import run_command
from policylong.model.stored import open_model
from policylong.report import __main__ as report
from policylong.report.standing import standing
from policylong.report.tables import read_run
from policylong.status import text
from policylong.storage.workdir import Workdir
from tests.test_resume import _leaves

# What a clock decides: how fast it was, and how far.
_TIMED = ("progress", "lock", "tensorboard", "report")


def files(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
  """What must be the same: every table, sequence and marker, the losses, the parameters and the optimizer's state."""
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder)
    if path.is_file() and name.parts[0] not in (*_TIMED, "checkpoints") and name.name not in (
        "metrics.jsonl", "metrics.jsonl.crc32", "origin.json"):
      yield str(name), path.read_bytes()
  lines = [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "step" in line]
  # Not the gradient's norm, whose sum over all devices has the processes' order; the optimizer's moments say more.
  yield "metrics", json.dumps([[line["step"], line["loss"]] for line in lines]).encode()
  step, leaves = _leaves(folder)
  yield f"step {step}", b""
  for name, leaf in sorted(leaves.items()):
    yield name, np.asarray(leaf).tobytes()


def main() -> None:
  """Prints it."""
  what, folder = sys.argv[1], pathlib.Path(sys.argv[2])
  if what in ("files", "told"):
    for name, data in files(folder):
      if what == "told" and name.endswith((".json", ".sha256")):
        with contextlib.suppress(ValueError):
          data = json.dumps(json.loads(data), sort_keys=True).encode()
      print(name, hashlib.sha256(data).hexdigest())
    return
  workdir = Workdir(folder)
  run = read_run(workdir)
  print(text(run, standing(run, workdir, 0.0)))
  sys.argv[1:] = [f"--workdir={folder}"]
  report.main()
  print(workdir.page.read_text())
  params = open_model(os.fspath(workdir.directory)).load(None, None)
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    print(jax.tree_util.keystr(path), hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest())


if __name__ == "__main__":
  run_command(main)
