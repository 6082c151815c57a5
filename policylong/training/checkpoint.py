"""Checkpoints by Orbax: whole or not there, resharded on restore, the data position beside the weights.

checkpoints/<step>/ holds three items: state (the TrainState), data (where the batches stand) and
meta (round and step, for people). A save that was killed leaves a folder under a temporary name, which
is never listed and is removed by the next start.

Beside them MANIFEST.json (`storage.manifest`) has the hashes of their files, written when the save is whole and checked
before it is restored; a damaged checkpoint is set aside as checkpoints/damaged-<step>. A kill between a save and its
manifest leaves a checkpoint without one: it is given one when it is met.
"""

import errno
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy
from orbax.checkpoint.handlers import DefaultCheckpointHandlerRegistry

from policylong import oserrors
from policylong.devices import hosts
from policylong.errors import Damaged, UserError
from policylong.storage import manifest
from policylong.training.state import TrainState

log = logging.getLogger(__name__)

# The items; what Orbax writes beside them when it likes says nothing that a restore asks.
ITEMS = ("state", "data", "meta")
# What the interpreter says to those who come too late.
_LEFT_ALONE = ("Event loop is closed", "cannot schedule new futures after")
_REMEDY = "remove that folder to go on from the one before"


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
    self._checked: set[int] = set()
    self._vouching: _Vouching | None = None

  def steps(self) -> list[int]:
    """The steps of all whole checkpoints, in order."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """The newest whole checkpoint, or None; damaged ones that are newer are set aside, with a line. Collective."""
    while (step := max(self._manager.all_steps(), default=None)) is not None:
      try:
        self._check(step)
        return step
      except Damaged as error:
        self._set_aside(step, error)
    return None

  def save(self, step: int, state: TrainState, data: dict[str, Any], meta: dict[str, Any]) -> None:
    """Saves in the background; the state may be donated as soon as this returns.

    On a CPU the state itself lies in host memory, and going on would copy all of it while the writer
    competes for the same cores; there this returns when the checkpoint is whole.

    Raises:
      OSError: ENOSPC, the disk is full (also when that befell the save before this one).
    """
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(data),
                              meta=ocp.args.JsonSave(meta))
    self.wait()
    with _full_disk_as_oserror(self._directory):
      if not self._manager.save(step, args=args, force=True):
        raise RuntimeError(f"Orbax did not save step {step} in {self._directory}")
    if hosts.is_first():
      self._vouching = _Vouching(self._directory / str(step))
    if jax.default_backend() == "cpu":
      self.wait()

  def wait(self) -> None:
    """Returns when the last save is whole, and has its manifest; raises as `save` does."""
    try:
      with _full_disk_as_oserror(self._directory):
        self._manager.wait_until_finished()
    finally:
      vouching, self._vouching = self._vouching, None
      if vouching:
        vouching.end()

  def restore(self, abstract: TrainState, step: int) -> Restored:
    """The checkpoint of `step` in the shapes and shardings of `abstract`. Collective.

    Raises:
      UserError: it is damaged, missing, or of another model.
    """
    self._check(step)
    args = ocp.args.Composite(
        state=ocp.args.PyTreeRestore(abstract, ocp.checkpoint_utils.construct_restore_args(abstract)),
        data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
    found = self._restore(step, args)
    return Restored(found.state, found.data, found.meta)

  def close(self) -> None:
    """Waits for the last save and ends the background threads."""
    self.wait()
    self._manager.close()

  def _check(self, step: int) -> None:
    """Each process reads its share of the files; of one that has no manifest, the first one writes it."""
    folder = self._directory / str(step)
    if step in self._checked or not hosts.agreed(folder.exists()):  # of one that is not there Orbax tells
      return
    if not hosts.agreed((folder / manifest.NAME).exists()):
      if hosts.is_first():
        log.warning("the checkpoint %s has no %s, of a kill or an earlier version: it is taken as it is, and given one",
                    folder, manifest.NAME)
        vouch(folder)
      hosts.barrier("manifest")
    damage = None
    try:
      manifest.check(folder, share=hosts.share)
    except Damaged as error:
      damage = error
    if hosts.anyone(damage is not None):
      raise damage or Damaged(folder, "another process says where", _REMEDY)
    self._checked.add(step)

  def _set_aside(self, step: int, damage: Damaged) -> None:
    aside = self._directory / f"damaged-{step}"
    if hosts.is_first():
      if aside.exists():
        aside.rmtree()
      (self._directory / str(step)).rename(aside)
      log.warning("the checkpoint %s is damaged (%s: %s): it is set aside as %s, and the run goes on from the one "
                  "before", self._directory / str(step), damage.path, damage.reason, aside.name)
    hosts.barrier("set aside")
    self._manager.reload()

  def _restore(self, step: int, args: ocp.args.Composite) -> ocp.args.Composite:
    try:
      return self._manager.restore(step, args=args)
    except Exception as error:  # Orbax and TensorStore raise nearly every kind for a damaged file
      reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
      raise UserError(f"the checkpoint {self._directory / str(step)} cannot be restored ({reason}): it is damaged or "
                      f"of another model; {_REMEDY}") from error


def vouch(folder: epath.Path) -> None:
  """Writes the manifest of a whole checkpoint."""
  manifest.write(folder, lambda name: name.split("/")[0] in ITEMS)


class _Vouching:
  """Writes the manifest of a checkpoint in the background, when its folder has its name: then Orbax is done with it."""

  def __init__(self, folder: epath.Path):
    self._folder, self._saved = folder, threading.Event()
    self._error: Exception | None = None
    self._thread = threading.Thread(target=self._run, name="manifest", daemon=True)
    self._thread.start()

  def end(self) -> None:
    """Returns when it is written, or where nothing was saved; raises what writing it raised."""
    self._saved.set()
    self._thread.join()
    if self._error:
      raise self._error

  def _run(self) -> None:
    while not self._saved.wait(1) and not self._folder.exists():
      pass
    try:
      if self._folder.exists():
        vouch(self._folder)
    except Exception as error:  # the thread that waits has to hear of it
      self._error = error


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
  """A full disk with the path: TensorStore has a ValueError with the system's number in its text, others no path."""
  try:
    with oserrors.about(directory):
      yield
  except ValueError as error:
    if code := _full(error):
      raise OSError(code, os.strerror(code), str(directory)) from error
    raise


def _full(error: BaseException | None) -> int:
  """The system's error number where an error of TensorStore's is about a full disk, else 0."""
  number = re.search(r"os_error_code='(\d+)'", str(error))
  return int(number[1]) if number and int(number[1]) in (errno.ENOSPC, errno.EDQUOT) else 0


def _is_news(error: BaseException | None) -> bool:
  """Whether what a thread of Orbax's or TensorStore's raised says more than the sentence of a save that failed does.

  Of a full disk that says all; and other writes of that save, which nobody waits for any more, find what they would
  report to closed.
  """
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
    return False
  return not (_full(error) or (isinstance(error, RuntimeError) and str(error).startswith(_LEFT_ALONE)))


def _unraisable(raised: "sys.UnraisableHookArgs") -> None:
  """What TensorStore's callbacks raise comes here."""
  if _is_news(raised.exc_value):
    _printing(raised)


# Orbax logs what it raises with its stack.
logging.getLogger("absl").addFilter(lambda record: _is_news(record.exc_info[1] if record.exc_info else None))
_printing, sys.unraisablehook = sys.unraisablehook, _unraisable
