"""A stage as a Beam pipeline: its units, dealt out to workers, of which each leaves its files and a marker.

What passes between stages are files, so a PCollection holds nothing but the numbers of units, no runner's shuffle or
memory limits the corpus, and a unit that has its marker is never done again: what a restart skips.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from policylong.errors import Damaged, UserError, optional_import
from policylong.prepare.layout import Work, write_whole
from policylong.prepare.plan import Plan, unit_name
from policylong.storage.progress import Bar

# Shorter work is done in this process: worker processes take 5 to 10 s to start.
_WORTH_WORKERS = 30.0
_POLL = 1.0


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage.

  function: (plan, number of the unit) -> counts, which writes the unit's files. weights: what the units hold, in
  `unit`s. seconds: about how long one `unit` takes a core.
  """
  name: str
  function: Callable[[Plan, int], dict[str, Any]]
  weights: Sequence[int]
  unit: str
  seconds: float


def run_stage(plan: Plan, stage: Stage, flags: Sequence[str]) -> None:
  """Does what is missing of a stage.

  Args:
    plan: of the corpus.
    stage: what is done.
    flags: of Beam's runner.

  Raises:
    UserError: a unit says that something is wrong with what the user gave.
    Damaged: or with a file that an earlier unit wrote.
  """
  done = plan.work.finished(stage.name)
  missing = [number for number in range(len(stage.weights)) if unit_name(number) not in done]
  if not missing:
    return
  for number in missing:
    _sentence_path(plan.work, stage.name, number).unlink(missing_ok=True)
  seconds = stage.seconds * sum(stage.weights[number] for number in missing)
  with _watched(plan, stage):
    _run(functools.partial(_do, plan, stage.name, stage.function), missing, flags, seconds, stage.name)
  for number in missing:
    if (path := _sentence_path(plan.work, stage.name, number)).exists():
      told = json.loads(path.read_bytes())
      raise Damaged(*told["damaged"]) if told["damaged"] else UserError(told["said"])


def _is_ours(flags: Sequence[str]) -> bool:
  """Whether the work is done on this machine by Beam's own runner."""
  return not any(flag.startswith("--runner=") and "DirectRunner" not in flag for flag in flags)


def workers(flags: Sequence[str], seconds: float) -> int:
  """How many processes of this machine do work of so many seconds: one is this one."""
  asked = [flag.partition("=")[2] for flag in flags if flag.startswith("--direct_num_workers=")]
  if asked and not asked[-1].isdecimal():
    raise UserError(f"--direct_num_workers is {asked[-1]!r}; it must be a number of processes, 0 for one a core")
  if asked and int(asked[-1]):
    return int(asked[-1])
  return len(os.sched_getaffinity(0)) if seconds > _WORTH_WORKERS else 1


def check_flags(flags: Sequence[str]) -> list[str]:
  """What nobody knows of the flags that go to Beam; another runner may have flags of its own."""
  if not _is_ours(flags):
    return []
  known = set(_beam().options.pipeline_options.PipelineOptions([]).get_all_options())
  return [flag for flag in flags if not flag.startswith("--")
          or flag.partition("=")[0].removeprefix("--").removeprefix("no_") not in known]


def _beam(module: str = ""):
  """Beam, or a module of it; a plain install leaves it out."""
  level = logging.getLogger().level
  logging.getLogger().setLevel(logging.ERROR)  # what it warns of at its import are stores that nobody asked for
  try:
    name = f"apache_beam{'.' if module else ''}{module}"
    return optional_import(name, "prepare", "python -m policylong.prepare")
  finally:
    logging.getLogger().setLevel(level)


def _run(function: Callable[[int], None], units: list[int], flags: Sequence[str], seconds: float, name: str) -> None:
  beam = _beam()
  runner = None
  if _is_ours(flags):
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    count = min(workers(flags, seconds), len(units))
    runner = _in_processes(count) if count > 1 else "DirectRunner"
    flags = [*(flag for flag in flags if not flag.startswith("--direct_")), f"--direct_num_workers={count}"]
  options = beam.options.pipeline_options.PipelineOptions(list(flags))
  with beam.Pipeline(runner=runner, options=options) as pipeline:
    _ = (pipeline | "units" >> beam.Create(units) | "dealt out" >> beam.Reshuffle() | name >> beam.Map(function))


def _in_processes(count: int):
  """Beam's DirectRunner over several processes, as its --direct_running_mode=multi_processing, but for what they say.

  What the workers themselves say (each tells of options that it was not meant for) goes nowhere: their errors come back
  by the runner.
  """
  command = f"exec {shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main >{os.devnull} 2>&1"
  environment = _beam("transforms.environments").SubprocessSDKEnvironment.from_command_string(command)
  return _beam("runners.portability.fn_api_runner").FnApiRunner(default_environment=environment)


def _do(plan: Plan, stage: str, function: Callable[[Plan, int], dict[str, Any]], number: int) -> None:
  """What a worker does with a unit. A user's mistake is left in a file, since a runner makes other errors of it."""
  try:
    counts = function(plan, number)
  except UserError as error:
    damaged = (str(error.path), error.reason) if isinstance(error, Damaged) else None
    write_whole(_sentence_path(plan.work, stage, number), json.dumps({"said": str(error), "damaged": damaged}).encode())
    return
  plan.work.finish(stage, unit_name(number), counts)


def _sentence_path(work: Work, stage: str, number: int):
  return work.path(stage, f"{unit_name(number)}.error")


@contextlib.contextmanager
def _watched(plan: Plan, stage: Stage):
  """A bar that follows the markers, wherever the workers are."""
  leaving = threading.Event()
  with Bar(desc=stage.name, total=sum(stage.weights), unit=stage.unit, unit_scale=True, mininterval=1) as bar:
    def look():
      done = sum(stage.weights[int(name)] for name in plan.work.finished(stage.name))
      bar.update(done - bar.done)

    def follow():
      while not leaving.wait(_POLL):
        look()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
      yield
    finally:
      leaving.set()
      thread.join()
      with contextlib.suppress(OSError):
        look()
