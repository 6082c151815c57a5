"""LongCE's weights and LongFilter's scores are those of the formulas, token by token, and a step weighs its loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_training import LENGTH, TINY, mesh_of, tiny_params, write_records

from policylong.model.qwen import hidden_states, output_matrix
from policylong.screening import long_gap
from policylong.training.batches import Batches
from policylong.training.step import Batch, mean_loss, token_sharding

ROWS = np.random.default_rng(7).integers(1, TINY.vocab_size, (4, LENGTH)).astype(np.int32)
WINDOW = 8


@functools.cache
def params(spread):
  """So many times the usual spread: without it what stands far away hardly matters."""
  return jax.tree.map(lambda x: spread * x if x.ndim > 1 else x, tiny_params())


@jax.jit
def log_probabilities(params, tokens):
  """[T - 1, V] by plain attention and full logits."""
  hidden = hidden_states(params, TINY, tokens[None], compute_dtype=jnp.float32,
                         attention_implementation="reference")[0]
  return jax.nn.log_softmax(hidden @ output_matrix(params, TINY).T)[:-1]


def nlls(tokens):
  """float32[T], NaN at token 0."""
  found = np.asarray(log_probabilities(params(10), jnp.asarray(tokens)), np.float64)
  return np.concatenate([[np.nan], -found[np.arange(len(tokens) - 1), tokens[1:]]])


@functools.cache
def weights():
  """float64[4, LENGTH], each token's short context read by itself: windows of 8 tokens that move on by 2."""
  found = np.ones(ROWS.shape)
  for i, row in enumerate(ROWS):
    long = nlls(row)
    for t in range(WINDOW, LENGTH):
      start = (t - WINDOW) // 2 * 2
      found[i, t] = min(np.exp(nlls(row[start:t + 1])[-1] - long[t]), 5.0)
  return found


def test_weights_are_those_of_the_formula():
  gap, _ = long_gap.gaps(lambda rows: [nlls(row).astype(np.float32) for row in rows], list(ROWS), WINDOW)
  found = long_gap.longce_weights(gap)
  assert found.dtype == np.float32 and (found[:, :WINDOW] == 1).all()
  np.testing.assert_allclose(found, weights(), rtol=2e-6)
  assert (found == 5).any() and (found < 1).any() and ((found > 1) & (found < 5)).any()


def test_a_sequences_score_is_that_of_the_formula():
  gap, long = long_gap.gaps(lambda rows: [nlls(row).astype(np.float32) for row in rows], list(ROWS), WINDOW)
  wanted = []
  for row in ROWS:
    whole, terms = nlls(row), []
    for t in range(WINDOW, LENGTH):
      short = nlls(row[(t - WINDOW) // 2 * 2:t + 1])[-1]
      terms.append(np.exp(-whole[t]) * (short - whole[t]))
    wanted.append(sum(terms) / len(terms))
  np.testing.assert_allclose(long_gap.longfilter_scores(gap, long), wanted, rtol=1e-5)
  assert np.ptp(wanted) > 1e-3, wanted


@pytest.mark.parametrize(("context", "accumulation"), [(1, 1), (2, 2)])
def test_a_steps_loss_and_gradients_are_weighted(tmp_path, context, accumulation):
  records = [np.stack([row, w.astype(np.float32).view(np.int32)]) for row, w in zip(ROWS, weights())]
  write_records(tmp_path / "part-00000.array_record", [record.astype("<i4").tobytes() for record in records])
  shape, mesh = (accumulation, 4 // accumulation, LENGTH), mesh_of(context=context)
  batch = next(Batches([tmp_path / "part-00000.array_record"], shape=shape, sharding=token_sharding(mesh, shape),
                       vocab_size=TINY.vocab_size, seed=0, round_index=1, rows=2))

  def loss(params, micro):
    return mean_loss(params, TINY, *micro, compute_dtype=jnp.float32, remat="none",
                     context="gather" if context > 1 else None, count=jnp.float32(4 * (LENGTH - 1)))
  spread = jax.device_put(params(3), NamedSharding(mesh, PartitionSpec()))
  with jax.set_mesh(mesh):
    found = [jax.jit(jax.value_and_grad(loss))(spread, Batch(*(x if x is None else x[i] for x in batch)))
             for i in range(accumulation)]

  def whole(params):
    terms = jax.vmap(lambda row, weight: -jnp.sum(weight[1:] * jnp.take_along_axis(
        log_probabilities(params, row), row[1:, None], axis=1)[:, 0]))(ROWS, weights().astype(np.float32))
    return jnp.sum(terms) / (4 * (LENGTH - 1))
  wanted, gradient = jax.jit(jax.value_and_grad(whole))(params(3))
  assert sum(float(value) for value, _ in found) == pytest.approx(float(wanted), rel=2e-6)
  for a, b in zip(*(jax.tree.leaves(tree) for tree in (
      jax.tree.map(lambda *terms: sum(terms), *(gradients for _, gradients in found)), gradient))):
    # float32 sums of about 120 terms, in another order
    np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))
