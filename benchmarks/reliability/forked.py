"""Runs commands in copies of one process that has imported what they need: that saves the seconds that importing takes.

A copy sets up its own devices, and nothing that it does is seen by the next one. What it says goes to files.
"""

import importlib
import os
import pathlib
import resource
import runpy
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import jax

REPOSITORY = pathlib.Path(__file__).parents[2]
# What commands import after their flags; no module that is run itself.
LIBRARIES = ("pandas", "pyarrow.dataset", "pyarrow.parquet", "transformers", "orbax.checkpoint", "grain", "scann",
             "policylong.loop", "policylong.sft.tuning", "policylong.model.stored", "policylong.commands.run",
             "policylong.evaluation.benchmarks", "policylong.report.page", "policylong.status", "tests.small_run",
             "tests.small_chat", "benchmarks.reliability.reread")
# Bytes that a copy may take: what a hostile input makes of a command is not to take the machine down.
_MEMORY = 6 << 30


class Ended(NamedTuple):
  """How a command ended: exit code (negative: by that signal; None: it had to be killed), seconds, what it said; its
  number, which is that of its process group.
  """
  code: int | None
  seconds: float
  out: str
  err: str
  pid: int = 0


def prepare(compiled: pathlib.Path | None = None) -> None:
  """Imports what copies need; nothing here may touch a device. `compiled` keeps what one compiled for the next ones."""
  warnings.filterwarnings("ignore", message=".*os.fork.*")
  for name in LIBRARIES:
    importlib.import_module(name)
  if compiled is not None:
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def run(module: str, arguments: list[str], folder: pathlib.Path, patience: float, *, cold: bool = False,
        whole: bool = False) -> Ended:
  """Runs `python -m module arguments` in a copy of this process, which is killed after `patience` seconds.

  Args:
    module: to run.
    arguments: of its command line.
    folder: where the files go that hold what it says.
    patience: in seconds.
    cold: a process of its own instead, as a person would start it; nothing that others compiled is taken.
    whole: whether the copy ends as a process does, waiting for its threads; the caller's frames end with it.
  """
  return run_together(module, [arguments], folder, patience, cold=cold, whole=whole)[0]


def run_together(module: str, arguments: Sequence[list[str]], folder: pathlib.Path, patience: float, *,
                 cold: bool = False, whole: bool = False) -> list[Ended]:
  """As `run`, several at the same time; all are killed after so many seconds, or when one of them was, as on a pod."""
  begin, outputs = time.monotonic(), []
  children, codes, late = [], dict[int, int](), False
  for number, own in enumerate(arguments):
    outputs.append((folder / f".out{number}", folder / f".err{number}"))
    children.append(os.fork())
    if not children[-1]:
      _become(module, own, outputs[-1], folder, cold, whole)
  while left := set(children) - set(codes):
    late = late or time.monotonic() - begin >= patience
    if late or -signal.SIGKILL in codes.values():
      for child in left:
        os.kill(child, signal.SIGKILL)
    for child in left:
      pid, status = os.waitpid(child, os.WNOHANG)
      if pid:
        codes[child] = os.waitstatus_to_exitcode(status)
    time.sleep(0.01)
  seconds = time.monotonic() - begin
  return [Ended(None if late and codes[child] == -signal.SIGKILL else codes[child], seconds,
                *(path.read_text(errors="replace") for path in paths), child)
          for child, paths in zip(children, outputs)]


def group_is_gone(child: Ended) -> bool:
  """Whether no process of its group is left."""
  try:
    os.killpg(child.pid, 0)
  except ProcessLookupError:
    return True
  return False


def _become(module: str, arguments: list[str], outputs: tuple[pathlib.Path, pathlib.Path], folder: pathlib.Path,
            cold: bool, whole: bool) -> NoReturn:
  """The copy's part."""
  code = 1
  try:
    os.setpgid(0, 0)
    os.chdir(REPOSITORY if cold else folder)  # what is written where it should not be goes with the case
    for path, stream in zip(outputs, (1, 2)):
      os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if cold:
      os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    sys.argv = [module, *arguments]
    if whole:
      runpy.run_module(module, run_name="__main__", alter_sys=True)
      sys.exit(0)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    code = 0
  except SystemExit as error:
    if whole:
      raise
    code = error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error.code, str):
      print(error.code, file=sys.stderr)
  except BaseException:
    if whole:
      raise
    traceback.print_exc()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
