"""AdamW under a clipped gradient, with a linear warm-up and a cosine to zero."""

import jax
import jax.numpy as jnp
import optax

from policylong.config import Training
from policylong.model.qwen import ModelConfig, Params, declare


def schedule_steps(training: Training, rounds: int) -> int:
  """Steps of one schedule: the whole run's, or one round's if `training.schedule` is "round"."""
  return training.steps_per_round * (rounds if training.schedule == "run" else 1)


def learning_rate(training: Training, rounds: int) -> optax.Schedule:
  """The rate of the update that follows `step` finished ones; steps are counted over the whole run.

  With T steps in a schedule, W = round(warmup_fraction T) of them warm-up, update n = 1 .. T has the rate
    peak n / W                                    for n <= W,
    peak (1 + cos(pi (n - W) / (T + 1 - W))) / 2  after it,
  so no update is spent at rate zero: the first has peak / W, and zero would be number T + 1.
  """
  total = schedule_steps(training, rounds)
  warmup = round(training.warmup_fraction * total)

  def schedule(step):
    n = jnp.asarray(step % total + 1, jnp.float32)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * (n - warmup) / (total + 1 - warmup)))
    return training.peak_learning_rate * jnp.where(n <= warmup, n / max(warmup, 1), cosine)

  return schedule


def matrices(model_config: ModelConfig) -> Params:
  """True for each matrix, False for each norm and bias, in the structure of the parameters.

  Norms are declared to start as ones and biases as zeros; every matrix starts random. (The rank cannot
  tell: stacked over the layers, a bias per head has three dimensions.)
  """
  return jax.tree.map(lambda weight: weight.init == "normal", declare(model_config))


def make_optimizer(training: Training, rounds: int, model_config: ModelConfig) -> optax.GradientTransformation:
  """Clip by global norm, then AdamW [E]; weight decay on matrices only, not on norms and biases [D].

  The embedding is a matrix and decays with the others. The source does not say what decays; to leave out
  the one-dimensional parameters is the custom of the field.
  """
  return optax.chain(
      optax.clip_by_global_norm(training.clip_norm),
      optax.adamw(learning_rate(training, rounds), b1=training.adam_b1, b2=training.adam_b2,
                  weight_decay=training.weight_decay, mask=matrices(model_config)))
