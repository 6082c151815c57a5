"""Checkpoints by Orbax: whole or not there, resharded on restore, the data position beside the weights.

checkpoints/<step>/ holds three items: state (the TrainState), data (where the batches stand) and
meta (round and step, for people). A save that was killed leaves a folder under a temporary name, which
is never listed and is removed by the next start.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy
from orbax.checkpoint.handlers import DefaultCheckpointHandlerRegistry

from policylong.errors import UserError
from policylong.training.state import TrainState


class Restored(NamedTuple):
  """A checkpoint as it was saved."""
  state: TrainState
  data: dict[str, Any]
  meta: dict[str, Any]


class Checkpoints:
  """The folder of one run's checkpoints."""

  def __init__(self, directory: epath.PathLike, *, keep_newest: int, keep: Callable[[int], bool]):
    """Opens or makes the folder and removes what a killed save left behind.

    Args:
      directory: `checkpoints/` of the working directory.
      keep_newest: how many of the newest checkpoints stay.
      keep: steps for which it is true stay for good.
    """
    self._directory = epath.Path(directory).absolute()
    _remove_unfinished(self._directory)
    registry = DefaultCheckpointHandlerRegistry()
    # Uncompressed: random-looking float32 shrinks by a tenth, which costs 3x the time and, for a state of
    # 1.2 GiB, 1.1 GiB of host memory (measured on two cores).
    handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    registry.add("state", ocp.args.PyTreeSave, handler)
    registry.add("state", ocp.args.PyTreeRestore, handler)
    policies = [preservation_policy.LatestN(keep_newest), _KeepSteps(keep)]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(policies), cleanup_tmp_directories=True)
    self._manager = ocp.CheckpointManager(self._directory, options=options, handler_registry=registry)

  def steps(self) -> list[int]:
    """The steps of all whole checkpoints, in order."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """The newest whole checkpoint, or None."""
    return max(self._manager.all_steps(), default=None)

  def save(self, step: int, state: TrainState, data: dict[str, Any], meta: dict[str, Any]) -> None:
    """Saves in the background; the state may be donated as soon as this returns.

    On a CPU the state itself lies in host memory, and going on would copy all of it while the writer
    competes for the same cores; there this returns when the checkpoint is whole.

    Raises:
      OSError: ENOSPC, the disk is full (also when that befell the save before this one).
    """
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(data),
                              meta=ocp.args.JsonSave(meta))
    with _full_disk_as_oserror(self._directory):
      self._manager.wait_until_finished()
      if not self._manager.save(step, args=args, force=True):
        raise RuntimeError(f"Orbax did not save step {step} in {self._directory}")
      if jax.default_backend() == "cpu":
        self._manager.wait_until_finished()

  def wait(self) -> None:
    """Returns when the last save is whole; raises as `save` does."""
    with _full_disk_as_oserror(self._directory):
      self._manager.wait_until_finished()

  def restore(self, abstract: TrainState, step: int) -> Restored:
    """The checkpoint of `step` in the shapes and shardings of `abstract`.

    Raises:
      UserError: it is damaged, missing, or of another model.
    """
    args = ocp.args.Composite(
        state=ocp.args.PyTreeRestore(abstract, ocp.checkpoint_utils.construct_restore_args(abstract)),
        data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
    found = self._restore(step, args)
    return Restored(found.state, found.data, found.meta)

  def close(self) -> None:
    """Waits for the last save and ends the background threads."""
    self.wait()
    self._manager.close()

  def _restore(self, step: int, args: ocp.args.Composite) -> ocp.args.Composite:
    try:
      return self._manager.restore(step, args=args)
    except Exception as error:  # Orbax and TensorStore raise nearly every kind for a damaged file
      reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
      raise UserError(f"the checkpoint {self._directory / str(step)} cannot be restored ({reason}): it is damaged or "
                      "of another model; remove that folder to go on from the one before") from error


def _remove_unfinished(directory: epath.Path) -> None:
  """Removes folders under Orbax's temporary names, also those too young for Orbax to know as its own.

  What it does know (on storage without renames) its option `cleanup_tmp_directories` removes.
  """
  if jax.process_index() == 0 and directory.exists():
    for path in directory.iterdir():
      if path.name.endswith(".orbax-checkpoint-tmp"):
        path.rmtree()


class _KeepSteps(preservation_policy.PreservationPolicy):
  """Keeps the checkpoints whose step satisfies a predicate."""

  def __init__(self, keep: Callable[[int], bool]):
    self._keep = keep

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """One answer for each checkpoint."""
    del context
    return [self._keep(checkpoint.step) for checkpoint in checkpoints]


@contextmanager
def _full_disk_as_oserror(directory: epath.Path) -> Iterator[None]:
  """TensorStore reports a full disk as a ValueError with the system's error number in its text."""
  try:
    yield
  except ValueError as error:
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number and int(number[1]) in (errno.ENOSPC, errno.EDQUOT):
      code = int(number[1])
      raise OSError(code, os.strerror(code), str(directory)) from error
    raise
