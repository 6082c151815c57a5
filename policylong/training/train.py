"""Training of one round: steps, the numbers they leave, checkpoints, and going on after a kill.

Steps are counted over the whole run: round r = 1 .. rounds owns steps (r - 1) n + 1 .. r n with
n = steps_per_round; with `max_staleness` 0 the state after step (r - 1) n is the policy that chose its sequences.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
from absl import logging
from etils import epath

from policylong import config as config_lib
from policylong import ending
from policylong.devices import hardware, hosts
from policylong.devices.steps import Steps
from policylong.errors import UserError
from policylong.model.qwen import ModelConfig, Params
from policylong.storage.progress import Bar
from policylong.storage.workdir import Workdir
from policylong.training.batches import Batches
from policylong.training.checkpoint import Checkpoints
from policylong.training.flops import train_flops_per_token
from policylong.training.metrics import MetricsLog
from policylong.training.optimizer import make_optimizer
from policylong.training.state import TrainState, abstract_state, initial_state, restart_optimizer
from policylong.training.step import Metrics, abstract_batch, make_train_step, token_sharding


class TrainingDiverged(UserError):
  """A loss or gradient norm is not a finite number; the sentence names the step."""


class _Cursor(NamedTuple):
  """Where the batches stood when a checkpoint was saved."""
  step: int
  data: dict


class Trainer:
  """Trains a policy round by round; its checkpoints are the only thing it needs to go on.

    state = trainer.restore_latest() or trainer.initial(load_params(...))
    for r in range(1, rounds + 1):
      paths = ...screen with state.params, write sequences, unless they are there...
      state = trainer.train_round(state, r, paths)
  """

  def __init__(self, training: config_lib.Training, model_config: ModelConfig, mesh: jax.sharding.Mesh,
               workdir: Workdir, *, length: int, rounds: int, seed: int):
    """Opens the checkpoints; allocates nothing on the devices.

    Args:
      training: the recipe of a round; with document masking the sequences are packed ones, with LongCE weighed ones.
      model_config: what is trained.
      mesh: on what.
      workdir: where checkpoints and metrics go.
      length: tokens of a sequence.
      rounds: how many there are.
      seed: of the order of the sequences.

    Raises:
      UserError: the mesh does not divide a dimension of the model or of the batch.
    """
    self._training, self._length, self._rounds, self._seed = training, length, rounds, seed
    self._model_config, self._mesh, self._workdir = model_config, mesh, workdir
    self._shape = (training.accumulation, training.batch_size // training.accumulation, length)
    self._token_sharding = token_sharding(mesh, self._shape)
    self._optimizer = make_optimizer(training, rounds, model_config)
    self._abstract = abstract_state(model_config, self._optimizer, mesh)
    self._checkpoints = Checkpoints(workdir.checkpoints, keep_newest=training.keep_checkpoints,
                                    keep=lambda step: step % training.steps_per_round == 0)
    self._cursor: _Cursor | None = None
    self._compiled: jax.stages.Compiled | None = None

  @property
  def abstract(self) -> TrainState:
    """Shapes, dtypes and shardings of the state."""
    return self._abstract

  def initial(self, params: Params) -> TrainState:
    """The state before the first step. Takes the float32 parameters over: the caller's are gone."""
    return initial_state(params, self._optimizer, self._abstract)

  def latest_step(self) -> int | None:
    """The step of the newest whole checkpoint, or None; damaged ones that are newer are set aside. Collective."""
    return self._checkpoints.latest_step()

  def restore_latest(self) -> TrainState | None:
    """The newest whole checkpoint, or None where there is none; damaged ones that are newer are set aside. Collective.

    Raises:
      UserError: it is of another model.
    """
    step = self.latest_step()
    return None if step is None else self.restore(step)

  def restore(self, step: int) -> TrainState:
    """The checkpoint of `step`.

    Raises:
      UserError: it is damaged, missing, or of another model.
    """
    found = self._checkpoints.restore(self._abstract, step)
    self._cursor = _Cursor(step, found.data)
    return found.state

  def start_step(self, round_index: int) -> int:
    """The step after which round `round_index` = 1 .. rounds begins."""
    return (round_index - 1) * self._training.steps_per_round

  def train_round(self, state: TrainState, round_index: int, paths: Sequence[epath.PathLike],
                  attended: float | None = None) -> TrainState:
    """Trains to the end of the round and saves; a state that is past it comes back as it is.

    Args:
      state: of this round, at its start or restored in its midst; donated.
      round_index: r = 1 .. rounds.
      paths: the round's array_record files, in a fixed order.
      attended: by what attention costs, sum(n^2) / sum(n) over the round's documents of n tokens that do not see each
        other; None: each is a whole sequence.

    Returns:
      The state after step r * steps_per_round, which is also in its checkpoint.

    Raises:
      TrainingDiverged: a loss or gradient norm is not finite; nothing of it was saved.
      UserError: a sequence is damaged.
      OSError: the disk is full.
    """
    start, first = int(state.step), self.start_step(round_index)
    last = self.start_step(round_index + 1)
    if start >= last:
      return state
    if start < first:
      raise ValueError(f"the state is at step {start}; round {round_index} begins at step {first}")
    batches = Batches(paths, shape=self._shape, sharding=self._token_sharding,
                      vocab_size=self._model_config.vocab_size, seed=self._seed, round_index=round_index,
                      rows=self._training.record_rows)
    if start > first:
      if self._cursor is None or self._cursor.step != start:
        raise ValueError(f"a state in the midst of a round (step {start}) must come from this trainer's restore")
      batches.set_state(self._cursor.data)
    elif self._training.schedule == "round":
      state = restart_optimizer(state, self._optimizer, self._abstract)
    train_step = self._compile()
    report = _Report(self._training, self._length, self._model_config, self._mesh, round_index,
                     batches.num_sequences, attended or self._length)
    what = f"round {round_index}: training" if self._rounds > 1 else "training"
    # dynamic_ncols: a bar that follows the window; the rate and the time left are tqdm's own.
    bar = Bar(total=last - first, initial=start - first, unit="step", dynamic_ncols=True, desc=what,
              disable=jax.process_index() > 0)
    with MetricsLog(self._workdir, start) as log, bar:
      return self._steps(state, (start, last), train_step, batches, report, log, bar)

  def close(self) -> None:
    """Waits for the last save and ends the threads of its checkpoints; raises OSError if the disk was full."""
    self._checkpoints.close()

  def __enter__(self) -> "Trainer":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    with contextlib.suppress(*(Exception,) if kind else ()):  # what went wrong first is what is said
      self.close()

  def _steps(self, state, span, train_step, batches, report, log, bar) -> TrainState:
    """The loop. Step k's numbers are fetched while k + 1 computes, so the devices never wait for the host.

    Where a signal asks to leave, the step under way is finished and saved before that.
    """
    start, last = span
    saved, pending = start, None
    report.restart_clock()
    with Steps(start) as steps:
      for step in range(start + 1, last + 1):
        if not steps.may_begin(step):
          break
        state, metrics = train_step(state, next(batches))
        if pending:
          self._settle(*pending, report, log, bar)
        pending = (step, metrics)
        if step == last or step % self._training.checkpoint_every == 0:
          saved, pending = self._settle_and_save(pending, state, batches, report, log, bar), None
      if pending:
        saved = self._settle_and_save(pending, state, batches, report, log, bar)
      # The caller will mark the round as done, or the process ends: the checkpoint must be whole by then, everywhere.
      self._checkpoints.wait()
      hosts.barrier("saved")
      if ending.requested():
        logging.info("step %d is the last one for now: its checkpoint is whole", saved)
    return state

  def _settle_and_save(self, pending: tuple[int, Metrics], state: TrainState, batches: Batches, report: "_Report",
                       log: MetricsLog, bar: Bar) -> int:
    """Saves after a step, which it returns; not before its numbers: what is not finite must not become a checkpoint."""
    self._settle(*pending, report, log, bar)
    self._save(pending[0], state, batches)
    report.restart_clock()
    return pending[0]

  def _settle(self, step: int, metrics: Metrics, report: "_Report", log: MetricsLog, bar: Bar) -> None:
    """Waits for a step, judges its numbers and writes them down."""
    line = report.line(step, metrics)
    log.write(line)
    bar.set_postfix_str(f"loss {line['loss']:.3f}, {line['tokens_per_second']:.0f} tokens/s", refresh=False)
    bar.update()

  def _save(self, step: int, state: TrainState, batches: Batches) -> None:
    n = self._training.steps_per_round
    round_index = (step - 1) // n + 1
    meta = {"round": round_index, "step": step, "step_in_round": step - self.start_step(round_index)}
    self._checkpoints.save(step, state, batches.get_state(), meta)

  def _compile(self):
    """The step as an executable, made once, so that compiling is not part of any step's time."""
    if self._compiled is None:
      begin = time.perf_counter()
      step = make_train_step(self._model_config, self._training, self._rounds, self._mesh)
      batch = abstract_batch(self._training, self._shape, self._token_sharding)
      with jax.set_mesh(self._mesh):
        self._compiled = step.lower(self._abstract, batch).compile()
      memory = self._compiled.memory_analysis()
      hosts.barrier("compiled")  # the first step's collectives have less patience
      logging.info("training step compiled in %.1f s; each device: state %.2f GiB, temporaries %.2f GiB",
                   time.perf_counter() - begin, memory.argument_size_in_bytes / 2**30,
                   memory.temp_size_in_bytes / 2**30)
    return self._compiled


class _Report:
  """Turns a step's metrics into its line, and refuses what is not finite."""

  def __init__(self, training: config_lib.Training, length: int, model_config: ModelConfig,
               mesh: jax.sharding.Mesh, round_index: int, num_sequences: int, attended: float):
    self._training = training
    self._round = round_index
    self._num_sequences = num_sequences
    self._tokens = training.batch_size * length
    self._flops_per_token = train_flops_per_token(model_config, attended)
    self._peak = hardware.peak_flops(list(mesh.devices.flat))
    self._clock = 0.0

  def restart_clock(self) -> None:
    """The next step's time begins now: compiling and saving are not part of it."""
    self._clock = time.perf_counter()

  def line(self, step: int, metrics: Metrics) -> dict:
    """What metrics.jsonl says of a step. Waits until the step is done.

    tokens: all tokens of all steps so far, with what fills packed sequences up. epoch: passes so far over the
    round's sequences. tokens_per_second: of this step. peak_share: model FLOP/s over the devices' peak; None if
    unknown.
    """
    loss, grad_norm, rate = (float(x) for x in jax.device_get(metrics))
    now = time.perf_counter()
    tokens_per_second, self._clock = self._tokens / (now - self._clock), now
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
      raise TrainingDiverged(
          f"training diverged at step {step} (round {self._round}): the loss is {loss}, the gradient norm {grad_norm} "
          f"at learning rate {rate:.3g}; nothing of it was saved: lower training.peak_learning_rate (in a new "
          "workdir) or look at the sequences of this round")
    in_round = step - (self._round - 1) * self._training.steps_per_round
    share = tokens_per_second * self._flops_per_token / self._peak if self._peak else None
    return {"round": self._round, "step": step, "loss": loss, "grad_norm": grad_norm, "learning_rate": rate,
            "tokens": step * self._tokens, "epoch": in_round * self._training.batch_size / self._num_sequences,
            "tokens_per_second": tokens_per_second, "peak_share": share}
