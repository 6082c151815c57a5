"""The run on Weights & Biases: the same numbers as on TensorBoard, each once, also after a kill.

A working directory is one run there, by the id in its wandb.json. What W&B has received when a process is killed is
not known: offline, it may be nothing. So a start first sends what the working directory holds and W&B lacks: of a run
on the server what comes after its last step, offline everything, so that the newest of the offline runs is the whole
one and the only one to sync. Steps that are trained a second time, after an older checkpoint, are not sent again.

Offline or not, where the files lie, and as whom is W&B's own to ask (WANDB_MODE, WANDB_DIR, WANDB_ENTITY).
"""

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from policylong.config import Config, FineTuning
from policylong.errors import UserError, optional_import
from policylong.storage import lines
from policylong.storage.workdir import Workdir, listed, read_json, write_json
from policylong.training import scalars

# Of this process, as W&B has it: one at a time.
_run: Any = None


@contextlib.contextmanager
def opened(config: Config | FineTuning, workdir: Workdir) -> Iterator[None]:
  """Inside, what is logged goes to the project that the config names, if it names one; of the first process only.

  Raises:
    UserError: wandb is not installed, or does not start.
  """
  global _run
  if config.wandb_project is None or jax.process_index():
    yield
    return
  _run = _start(config, workdir)
  failed = 1
  try:
    for step, values in sorted(_held(workdir), key=lambda entry: entry[0]):
      log(step, values)
    yield
    failed = 0
  finally:
    run, _run = _run, None
    run.finish(exit_code=failed)


def log(step: int, values: Mapping[str, float]) -> None:
  """Numbers that belong to `step`, of names with one prefix; what W&B has already is left out."""
  if _run is None or not values:
    return
  group = next(iter(values)).partition("/")[0]
  if group == "training":
    if step >= _run.step:
      _run.log(dict(values), step=step)
  elif step >= _run.step - 1:  # W&B takes no step before its last one: these have an axis of their own
    _run.log({**values, f"{group}/step": step}, step=max(step, _run.step))


def _start(config: Config | FineTuning, workdir: Workdir):
  wandb = optional_import("wandb", "wandb", f"wandb_project = {config.wandb_project!r}")
  path = workdir.directory / "wandb.json"
  if not path.exists():
    write_json(path, {"id": secrets.token_hex(4)})
  local = "://" not in os.fspath(workdir.directory)  # W&B writes to local disks only
  try:
    run = wandb.init(project=config.wandb_project, id=read_json(path)["id"], resume="allow",
                     name=workdir.directory.name, config=dataclasses.asdict(config),
                     dir=os.environ.get("WANDB_DIR") or (os.fspath(workdir.directory) if local else None),
                     settings=wandb.Settings(console="off"))  # progress bars are no numbers
  except wandb.Error as error:
    raise UserError(f"wandb_project is {config.wandb_project!r}, and Weights & Biases does not start "
                    f"({(str(error).splitlines() or [type(error).__name__])[0].rstrip('.')}): run wandb login, or set "
                    "WANDB_MODE=offline, or wandb_project to None") from error
  for group in ("evaluation", "round", "held_out"):
    run.define_metric(f"{group}/*", step_metric=f"{group}/step")
  return run


def _held(workdir: Workdir) -> Iterator[tuple[int, dict[str, float]]]:
  """(step, numbers) of all that was logged before this start, as the working directory has it."""
  begun: dict[int, int] = {}  # the step after which the training of a round began; that of others still comes
  if workdir.metrics.exists():
    for _, values in lines.read(workdir.metrics)[0]:
      if "step" in values:
        begun.setdefault(values.get("round", 0), values["step"] - 1)
        yield values["step"], scalars.of_step(values)
  for folder in listed(workdir.directory / "rounds"):
    round_ = workdir.round(int(folder.name))
    if round_.index in begun and round_.screened_path.exists():
      yield begun[round_.index], scalars.of_round(read_json(round_.screened_path))
    if (round_.evaluation / "DONE.json").exists():
      yield (read_json(round_.evaluation / "DONE.json")["policy_step"],
             scalars.of_evaluation(read_json(round_.evaluation / "results.json")))
  if workdir.held_out_json.exists():
    yield 0, {"held_out/loss": read_json(workdir.held_out_json)["before"]}
