"""The schedule against its formula, the update against AdamW written out in float64."""

import math

import jax
import numpy as np
import optax
import pytest
from tiny_training import TINY, tiny_params, training_config

from policylong.model.qwen import ModelConfig
from policylong.training.optimizer import learning_rate, make_optimizer, matrices


def test_warm_up_is_linear_and_the_cosine_ends_just_above_zero():
  training = training_config(steps_per_round=5, peak_learning_rate=4e-5, warmup_fraction=0.2)
  rates = [float(learning_rate(training, 2)(step)) for step in range(10)]
  expected = [2e-5, 4e-5] + [4e-5 * (1 + math.cos(math.pi * n / 9)) / 2 for n in range(1, 9)]
  assert rates == pytest.approx(expected, rel=1e-6)  # float32 cosine
  assert rates[-1] > 0


def test_a_schedule_per_round_starts_again():
  training = training_config(steps_per_round=5, warmup_fraction=0.4, schedule="round")
  rates = [float(learning_rate(training, 2)(step)) for step in range(10)]
  assert rates[:5] == rates[5:]
  assert rates[:2] == pytest.approx([5e-3, 1e-2])


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_schedules_of_only_cosine_and_only_warm_up(fraction):
  training = training_config(steps_per_round=4, warmup_fraction=fraction, peak_learning_rate=1.0)
  rates = [float(learning_rate(training, 1)(step)) for step in range(4)]
  cosine = [(1 + math.cos(math.pi * n / 5)) / 2 for n in range(1, 5)]
  assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0] if fraction else cosine, rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_norms_and_biases_do_not_decay_and_everything_else_does(family):
  config = ModelConfig(**{**vars(TINY), "family": family, "tied": False})
  paths = jax.tree_util.tree_flatten_with_path(matrices(config))[0]
  kept = {jax.tree_util.keystr(path, simple=True, separator="/").split("/")[-1] for path, decays in paths if not decays}
  extra = {"llama": set(), "qwen2": {"q_bias", "k_bias", "v_bias"}, "qwen3": {"q_norm", "k_norm"}}[family]
  assert kept == {"attention_norm", "mlp_norm", "final_norm"} | extra


@pytest.mark.parametrize(("b1", "b2"), [(0.0, 0.0), (1 - 2**-24, 0.95), (0.9, 1 - 2**-24)])
def test_adamw_is_defined_up_to_the_bounds_of_the_config_and_not_beyond(b1, b2):
  training_config(adam_b1=b1, adam_b2=b2)

  def first(b1, b2):
    grads = np.array([0.5, -2.0], np.float32)
    optimizer = optax.adamw(1e-2, b1=b1, b2=b2, weight_decay=0.0)
    return np.asarray(optimizer.update(grads, optimizer.init(grads), grads)[0])

  np.testing.assert_allclose(first(b1, b2), [-1e-2, 1e-2], rtol=1e-3)  # by the sign of the gradient
  # 1 - 2^-26 is 1 in float32: NaN, or a division by zero that leaves every weight where it is
  assert np.isnan(first(1.0, b2)).all() and not np.nan_to_num(first(b1, 1 - 2**-26)).any()


def test_three_updates_equal_adamw_written_out_in_float64():
  training = training_config(steps_per_round=6, peak_learning_rate=0.02, weight_decay=0.1, clip_norm=1.0)
  optimizer = make_optimizer(training, 1, TINY)
  params = tiny_params()
  state = optimizer.init(params)

  @jax.jit
  def apply(grads, state, params):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  leaves, structure = jax.tree.flatten(params)
  decays = jax.tree.leaves(matrices(TINY))
  rng = np.random.default_rng(1)
  theta = [np.asarray(p, np.float64) for p in leaves]
  m, v = [0 * p for p in theta], [0 * p for p in theta]
  for n, scale in enumerate([1.0, 1e-4, 0.3], start=1):  # the second is far below the clip norm
    grads = [scale * rng.standard_normal(p.shape).astype(np.float32) for p in theta]
    norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads))
    rate = 0.02 if n == 1 else 0.01 * (1 + math.cos(math.pi * (n - 1) / 6))
    for i, g in enumerate(grads):
      g = g * min(1.0, 1.0 / norm)
      m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.95 * v[i] + 0.05 * g * g
      step = (m[i] / (1 - 0.9**n)) / (np.sqrt(v[i] / (1 - 0.95**n)) + 1e-8)
      theta[i] = theta[i] - rate * (step + (0.1 * theta[i] if decays[i] else 0))
    params, state = apply(structure.unflatten(grads), state, params)
  for found, wanted in zip(jax.tree.leaves(params), theta):
    # three float32 updates of size 0.02: rounding of the parameters and of m / sqrt(v), a few 1e-7 each
    np.testing.assert_allclose(found, wanted, atol=2e-6)
