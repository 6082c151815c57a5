"""metrics.jsonl, TensorBoard and, where the config names a project, W&B: every step once, also after a kill.

A line that has a "step" is one training step's. What else is written to the file is left alone.
"""

import contextlib
import functools
import logging
import os
import time
from typing import Any

import jax
from etils import epath

from policylong import oserrors
from policylong.errors import UserError, optional_import
from policylong.storage import lines
from policylong.storage.workdir import Workdir, write_atomically
from policylong.training import scalars, wandb_run

log = logging.getLogger(__name__)


class MetricsLog:
  """Appends steps to both files; only the first process writes. A context manager."""

  def __init__(self, workdir: Workdir, after_step: int):
    """Opens the files to go on after `after_step`; what they hold of later steps is dropped."""
    self._workdir, self._file, self._board = workdir, None, None
    if jax.process_index() == 0:
      drop_steps_after(workdir.metrics, after_step)
      self._file = lines.Growing(workdir.metrics)
      self._board = _open_board(workdir, purge_step=after_step + 1)

  def write(self, line: dict[str, Any]) -> None:
    """One step: a JSON line, at once on its way to the disk, and its numbers as TensorBoard scalars."""
    if self._file is None:
      return
    self._file.write(line)
    values = scalars.of_step(line)
    for name, value in values.items() if self._board else ():
      self._board.add_scalar(name, value, line["step"])
    wandb_run.log(line["step"], values)

  def __enter__(self) -> "MetricsLog":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    first = contextlib.suppress(*(Exception,) if kind else ())  # what went wrong first is what is said
    with first, oserrors.about(self._workdir.tensorboard):
      if self._file is not None:
        self._file.close()
      if self._board is not None:
        self._board.close()


def write_scalars(workdir: Workdir, step: int, values: dict[str, float]) -> None:
  """Numbers that are no training step's, of names with one prefix, to TensorBoard and W&B. One process calls it."""
  wandb_run.log(step, values)
  if board := _open_board(workdir):
    with oserrors.about(workdir.tensorboard), board:
      for name, value in values.items():
        board.add_scalar(name, value, step)


def _open_board(workdir: Workdir, **options) -> Any:
  """A writer of TensorBoard's files; None, and one sentence the first time, where its package is not installed."""
  try:
    tensorboard = optional_import("tensorboardX", "tensorboard", "TensorBoard")
  except UserError as error:
    _say_once(f"{error}; this run goes on with metrics.jsonl alone")
    return None
  # Its files are named by the second, and of two with one name the later one would be all that is left.
  return tensorboard.SummaryWriter(os.fspath(workdir.tensorboard), filename_suffix=f".{time.time_ns()}", **options)


@functools.cache
def _say_once(sentence: str) -> None:
  log.info(sentence)


def drop_steps_after(path: epath.Path, step: int) -> None:
  """Rewrites the file without the lines of later steps, a line that a kill cut in two, and, told of, damaged ones."""
  if not path.exists():
    return
  found, damaged = lines.read(path)
  kept = [text for text, value in found if text.endswith(b"\n") and value.get("step", 0) <= step]
  if damaged - (not path.read_bytes().endswith(b"\n")) > 0:
    log.warning("%s: a line or more of it are damaged, and left out", path)
  if b"".join(kept) != path.read_bytes():
    write_atomically(path, b"".join(kept))
    write_atomically(lines.beside(path), "".join(f"{lines.sum_of(text)}\n" for text in kept).encode())
