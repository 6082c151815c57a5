"""Rounds of training: they learn, they go on after a kill as if nothing had been, they refuse what diverges."""

import json
import math
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import LENGTH, TINY, tiny_params

from policylong import ending
from policylong.training.metrics import drop_steps_after
from policylong.training.train import TrainingDiverged

# what a clock decides, and not the training
TIMED = ("tokens_per_second", "peak_share")


def metrics_of(trainer) -> list[dict]:
  lines = [json.loads(line) for line in trainer._workdir.metrics.read_text().splitlines()]
  return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def bits(state) -> list[bytes]:
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.fixture
def uninterrupted(make_trainer, sequences):
  """(final bits, metrics) of two rounds in one go."""
  trainer = make_trainer("whole")
  state = trainer.initial(tiny_params())
  for round_index in (1, 2):
    state = trainer.train_round(state, round_index, sequences)
  return bits(state), metrics_of(trainer)


def test_a_tiny_set_is_learnt(make_trainer, sequences):
  trainer = make_trainer(steps_per_round=60, checkpoint_every=60, rounds=1)
  trainer.train_round(trainer.initial(tiny_params()), 1, sequences)
  losses = [line["loss"] for line in metrics_of(trainer)]
  assert losses[0] == pytest.approx(math.log(TINY.vocab_size), abs=0.1)
  # 7 of 31 predictions, the first block's, can only be known by heart; the rest can be copied
  assert losses[-1] < 1.5


def test_every_step_has_a_line_with_its_numbers(uninterrupted):
  _, lines = uninterrupted
  assert [line["step"] for line in lines] == list(range(1, 13))
  assert [line["round"] for line in lines] == [1] * 6 + [2] * 6
  assert [line["tokens"] for line in lines] == [4 * LENGTH * step for step in range(1, 13)]
  assert lines[0]["epoch"] == lines[6]["epoch"] == pytest.approx(0.4)  # 4 of 10 sequences


class Killed(Exception):
  pass


def train_until(trainer, state, round_index, sequences, steps):
  """Trains and stops with an exception in the middle of its step number `steps` + 1 of this call."""
  compiled = trainer._compile()
  done = 0

  def step(state, tokens):
    nonlocal done
    if done == steps:
      raise Killed
    done += 1
    return compiled(state, tokens)

  trainer._compiled = step
  with pytest.raises(Killed):
    trainer.train_round(state, round_index, sequences)
  trainer._compiled = compiled


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_a_run_stopped_anywhere_ends_with_the_bits_of_one_that_was_not(make_trainer, sequences, uninterrupted, steps):
  trainer = make_trainer("stopped")
  train_until(trainer, trainer.initial(tiny_params()), 1, sequences, steps)
  trainer = make_trainer("stopped")  # a new process knows only the folder
  state = trainer.restore_latest() or trainer.initial(tiny_params())
  assert int(state.step) == steps // 2 * 2  # checkpoints are every 2 steps
  state = trainer.train_round(state, 1, sequences)
  train_until(trainer, state, 2, sequences, steps)
  trainer = make_trainer("stopped")
  state = trainer.restore_latest()
  assert trainer.start_step(2) <= int(state.step) < trainer.start_step(3)
  state = trainer.train_round(state, 2, sequences)
  assert (bits(state), metrics_of(trainer)) == uninterrupted
  assert bits(make_trainer("stopped").restore_latest()) == uninterrupted[0]


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_told_to_end_a_step_is_finished_and_saved_and_the_run_goes_on_from_it(
    make_trainer, sequences, uninterrupted, monkeypatch, steps):
  monkeypatch.setattr(ending._State, "requested", None)
  trainer = make_trainer("stopped")
  compiled, done = trainer._compile(), 0

  def step(state, tokens):
    nonlocal done
    done += 1
    if done == steps:
      ending.request(signal.SIGTERM)
    return compiled(state, tokens)

  trainer._compiled = step
  with pytest.raises(ending.Terminated):
    trainer.train_round(trainer.initial(tiny_params()), 1, sequences)
  assert done == steps == trainer._checkpoints.latest_step()
  monkeypatch.setattr(ending._State, "requested", None)
  trainer = make_trainer("stopped")
  state = trainer.restore_latest()
  for round_index in (1, 2):
    state = trainer.train_round(state, round_index, sequences)
  assert (bits(state), metrics_of(trainer)) == uninterrupted


def test_a_finished_round_is_left_alone(make_trainer, sequences):
  trainer = make_trainer()
  trainer.train_round(trainer.initial(tiny_params()), 1, sequences)
  written = trainer._workdir.metrics.read_bytes()
  trainer = make_trainer()
  state = trainer.restore_latest()
  assert int(state.step) == trainer.start_step(2)
  assert trainer.train_round(state, 1, sequences) is state
  assert trainer._workdir.metrics.read_bytes() == written


def test_the_policy_of_a_round_can_be_restored_while_the_round_runs(make_trainer, sequences):
  trainer = make_trainer(keep_checkpoints=1)
  state = trainer.train_round(trainer.initial(tiny_params()), 1, sequences)
  policy = bits(state.params)
  train_until(trainer, state, 2, sequences, 5)
  assert trainer._checkpoints.steps() == [6, 10]
  assert trainer.start_step(2) == 6
  assert bits(trainer.restore(6).params) == policy


def test_with_a_schedule_per_round_moments_and_rate_start_again(make_trainer, sequences):
  trainer = make_trainer(schedule="round")
  state = trainer.train_round(trainer.initial(tiny_params()), 1, sequences)
  params = jax.tree.map(jnp.copy, state.params)
  twice = trainer.train_round(state, 2, sequences)
  alone = make_trainer("alone", schedule="round")
  begun = alone.initial(params)
  begun = type(begun)(step=begun.step + 6, params=begun.params, opt_state=begun.opt_state)
  assert bits(alone.train_round(begun, 2, sequences)) == bits(twice)
  rates = [line["learning_rate"] for line in metrics_of(trainer)]
  assert rates[:6] == rates[6:]


@pytest.mark.parametrize("poisoned", [1, 2, 4, 5])
def test_a_nan_stops_the_run_names_its_step_and_is_not_saved(make_trainer, sequences, poisoned):
  trainer = make_trainer()
  compiled, calls = trainer._compile(), 0

  def step(state, tokens):
    nonlocal calls
    calls += 1
    if calls == poisoned:
      state = jax.tree.map(lambda x: x * jnp.nan if x.dtype == jnp.float32 else x, state)
    return compiled(state, tokens)

  trainer._compiled = step
  with pytest.raises(TrainingDiverged, match=rf"diverged at step {poisoned} \(round 1\): the loss is nan") as caught:
    trainer.train_round(trainer.initial(tiny_params()), 1, sequences)
  assert "\n" not in str(caught.value)
  assert [line["step"] for line in metrics_of(trainer)] == list(range(1, poisoned))
  assert trainer._checkpoints.steps() == list(range(2, poisoned, 2))


def test_a_gradient_that_overflows_is_a_divergence_though_the_loss_is_finite(make_trainer, sequences):
  trainer = make_trainer()
  params = tiny_params()
  params["final_norm"] = params["final_norm"] * 1e25  # gradients of 1e24, whose squares float32 does not hold
  with pytest.raises(TrainingDiverged, match=r"diverged at step 1 .* loss is \d.*, the gradient norm inf"):
    trainer.train_round(trainer.initial(params), 1, sequences)


def test_lines_of_later_steps_and_a_half_written_one_are_dropped_and_others_kept(tmp_path):
  path = type(tmp_path)(tmp_path / "metrics.jsonl")
  lines = ['{"step": 1, "loss": 3.0}\n', '{"round": 1, "accepted": 5}\n', '{"step": 2, "loss": 2.0}\n',
           '{"step": 3, "loss": 1.0}\n', '{"step": 4, "lo']
  path.write_text("".join(lines))
  drop_steps_after(path, 2)
  assert path.read_text() == "".join(lines[:3])
  drop_steps_after(tmp_path / "missing.jsonl", 2)
  assert not (tmp_path / "missing.jsonl").exists()
