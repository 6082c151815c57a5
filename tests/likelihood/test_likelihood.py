"""The likelihood op against float64 numpy, which shares no code with it.

Tolerance 2e-5 nats: float32 sums over a vocabulary of 151,936 (measured: about 1e-6). Logits of 1e4 have a
spacing of 1e-3 in float32, so there the tolerance is a few of those for nll and lse.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from policylong.errors import UserError
from policylong.likelihood import next_token_loss, sharded_token_likelihood
from policylong.likelihood import token_likelihood as traced_token_likelihood

TOLERANCE = 2e-5
# In float32: a probability carries lse's error of 1e-6 and is multiplied by hidden states of up to 4.
GRADIENT_TOLERANCE = 5e-6
IMPLEMENTATIONS = ["streaming", "reference"]
token_likelihood = jax.jit(traced_token_likelihood,
                           static_argnames=("implementation", "token_block", "vocab_block"))


def random_case(T, D, V, *, scale=1.0, dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  hidden = jnp.asarray(rng.standard_normal((T, D)), dtype)
  matrix = jnp.asarray(rng.standard_normal((V, D)) * scale / np.sqrt(D), dtype)
  return hidden, matrix, jnp.asarray(rng.integers(0, V, T), jnp.int32)


def float64_likelihood(hidden, matrix, targets):
  logits = np.asarray(hidden, np.float64) @ np.asarray(matrix, np.float64).T
  greatest = logits.max(1, keepdims=True)
  lse = greatest + np.log(np.exp(logits - greatest).sum(1, keepdims=True))
  log_p = logits - lse
  entropy = -(np.exp(log_p) * log_p).sum(1)
  return -log_p[np.arange(len(targets)), np.asarray(targets)], entropy, lse[:, 0]


def assert_close(values, expected, tolerance=TOLERANCE):
  for name, value, wanted in zip(("nll", "entropy", "lse"), values, expected):
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(value, np.float64), wanted, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("T, V, token_block, vocab_block", [
  (37, 1000, 16, 128),  # neither divides, the last block of the vocabulary is uneven
  (16, 1024, 16, 128),  # both divide
  (5, 100, 512, 2048),  # smaller than one tile
  (1, 129, 8, 128),  # a last block of one row
  (20, 300, 8, 100),  # a block that does not fold
])
def test_agrees_with_float64(implementation, T, V, token_block, vocab_block):
  hidden, matrix, targets = random_case(T, 24, V, scale=4.0)
  values = token_likelihood(hidden, matrix, targets, implementation=implementation, token_block=token_block,
                            vocab_block=vocab_block)
  assert_close(values, float64_likelihood(hidden, matrix, targets))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_agrees_with_float64_at_the_vocabulary_of_qwen(implementation):
  hidden, matrix, targets = random_case(24, 64, 151_936, scale=3.0, dtype=jnp.bfloat16)
  # The last row, and a row of the last uneven block.
  targets = targets.at[0].set(151_935).at[1].set(151_936 - 300)
  values = token_likelihood(hidden, matrix, targets, implementation=implementation)
  assert_close(values, float64_likelihood(hidden, matrix, targets))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_entropy_of_a_uniform_distribution_is_log_v(implementation):
  V = 5000
  for logit in (0.0, 100.0, -100.0):
    hidden, matrix = jnp.full((3, 1), logit), jnp.ones((V, 1))
    values = token_likelihood(hidden, matrix, jnp.array([0, 17, V - 1]), implementation=implementation)
    assert_close(values, (np.full(3, np.log(V)), np.full(3, np.log(V)), np.full(3, np.log(V) + logit)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("row", [0, 100, 4095, 4999])
def test_a_certain_prediction_has_entropy_zero(implementation, row):
  matrix = jnp.full((5000, 1), -1.0).at[row].set(1.0)
  values = token_likelihood(jnp.full((2, 1), 1e4), matrix, jnp.array([row, (row + 1) % 5000]),
                            implementation=implementation)
  assert_close(values, ([0.0, 2e4], [0.0, 0.0], [1e4, 1e4]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_logits_of_ten_thousand_overflow_nothing(implementation):
  hidden, matrix, targets = random_case(33, 16, 3000, scale=3000.0)
  nll, entropy, lse = float64_likelihood(hidden, matrix, targets)
  assert np.abs(lse).max() > 1e4
  values = token_likelihood(hidden, matrix, targets, implementation=implementation, vocab_block=256)
  assert_close((values.nll, values.lse), (nll, lse), tolerance=1e-2)  # 10 spacings of float32 at 1e4
  np.testing.assert_allclose(values.entropy, entropy, atol=1e-2)


def test_the_order_of_the_vocabulary_does_not_matter():
  # Rising logits move the running maximum in every block, falling ones only in the first.
  logits = np.linspace(-300.0, 300.0, 4096 + 77)
  expected = float64_likelihood(np.ones((1, 1)), logits[:, None], [9])
  for matrix, target in ((logits, 9), (logits[::-1].copy(), len(logits) - 10)):
    values = token_likelihood(jnp.ones((1, 1)), jnp.asarray(matrix[:, None], jnp.float32),
                              jnp.array([target]), vocab_block=512)
    assert_close(values, expected, tolerance=1e-4)  # three spacings of float32 at 600


def test_a_nan_stays_visible():
  hidden, matrix, targets = random_case(4, 8, 500)
  values = token_likelihood(hidden.at[2, 0].set(jnp.nan), matrix, targets, vocab_block=128)
  for value in values:
    assert np.isnan(value[2]) and np.isfinite(np.delete(value, 2)).all()


def test_leading_dimensions_are_kept():
  hidden, matrix, targets = random_case(12, 8, 50)
  flat = token_likelihood(hidden, matrix, targets)
  shaped = token_likelihood(hidden.reshape(3, 4, 8), matrix, targets.reshape(3, 4))
  for x, y in zip(flat, shaped):
    np.testing.assert_array_equal(x.reshape(3, 4), y)


def test_an_unknown_implementation_is_refused_by_name():
  with pytest.raises(UserError, match=r"'chunky' does not exist: use one of streaming, reference"):
    token_likelihood(*random_case(2, 4, 8), implementation="chunky")


# --------------------------------------------------------------------------------------------------------------
# Gradients


def float64_gradients(hidden, matrix, targets, weights):
  hidden, matrix = np.asarray(hidden, np.float64), np.asarray(matrix, np.float64)
  nll, _, lse = float64_likelihood(hidden, matrix, targets)
  d_logits = np.exp(hidden @ matrix.T - lse[:, None])
  d_logits[np.arange(len(targets)), np.asarray(targets)] -= 1.0
  d_logits *= np.asarray(weights, np.float64)[:, None]
  return (weights * nll).sum(), d_logits @ matrix, d_logits.T @ hidden


@pytest.mark.parametrize("T, V, token_block, vocab_block", [(37, 1000, 16, 128), (8, 256, 8, 128), (5, 60, 8, 128)])
def test_gradient_is_softmax_minus_onehot(T, V, token_block, vocab_block):
  hidden, matrix, targets = random_case(T, 24, V, scale=4.0)
  weights = jnp.asarray(np.random.default_rng(1).uniform(0, 1, T), jnp.float32).at[0].set(0.0)

  def loss(hidden, matrix):
    total, weight = next_token_loss(hidden, matrix, targets, weights, token_block=token_block,
                                    vocab_block=vocab_block)
    return total / weight * np.sum(weights)
  total, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, matrix)
  expected_total, *expected = float64_gradients(hidden, matrix, targets, weights)
  np.testing.assert_allclose(total, expected_total, rtol=1e-6)
  for gradient, wanted in zip(gradients, expected):
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=GRADIENT_TOLERANCE)
  assert np.all(np.asarray(gradients[0][0]) == 0.0), "a token of weight 0 has no gradient"


def test_gradient_in_bfloat16_is_within_its_rounding():
  hidden, matrix, targets = random_case(64, 32, 1100, scale=4.0, dtype=jnp.bfloat16)
  weights = jnp.ones(64)
  gradients = jax.jit(jax.grad(lambda h, w: next_token_loss(
      h, w, targets, weights, token_block=16, vocab_block=256)[0], (0, 1)))(hidden, matrix)
  for gradient, wanted in zip(gradients, float64_gradients(hidden, matrix, targets, weights)[1:]):
    assert gradient.dtype == jnp.bfloat16
    # Two roundings to 8 bits, of d_logits and of the result.
    np.testing.assert_allclose(np.asarray(gradient, np.float64), wanted, rtol=2 ** -7, atol=2 ** -7 * 0.5)


# --------------------------------------------------------------------------------------------------------------
# The vocabulary sharded over devices


def mesh_of(data, tensor):
  return jax.make_mesh((data, tensor), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


@pytest.mark.parametrize("data, tensor", [(1, 8), (2, 4), (8, 1)])
def test_a_sharded_vocabulary_gives_the_same(data, tensor):
  hidden, matrix, targets = random_case(48, 16, 8 * 75, scale=4.0)
  values = jax.jit(lambda *arrays: sharded_token_likelihood(
      *arrays, mesh=mesh_of(data, tensor), vocab_axis="tensor", batch_axes=("data",), token_block=8,
      vocab_block=32))(hidden.reshape(8, 6, 16), matrix, targets.reshape(8, 6))
  assert_close([x.reshape(-1) for x in values], float64_likelihood(hidden, matrix, targets))


def test_a_sharded_vocabulary_costs_one_maximum_and_three_sums():
  hidden, matrix, targets = random_case(16, 16, 64)
  text = str(jax.make_jaxpr(lambda *arrays: sharded_token_likelihood(
      *arrays, mesh=mesh_of(1, 8), vocab_axis="tensor"))(hidden[None], matrix, targets[None]))
  assert (text.count("pmax"), text.count("psum")) == (1, 3), text


def test_a_vocabulary_that_does_not_split_is_refused():
  hidden, matrix, targets = random_case(2, 4, 30)
  with pytest.raises(UserError, match="vocabulary of 30 cannot be split over 8 devices"):
    sharded_token_likelihood(hidden[None], matrix, targets[None], mesh=mesh_of(1, 8), vocab_axis="tensor")


@pytest.mark.parametrize("data, tensor", [(1, 8), (2, 4), (8, 1)])
def test_the_sharded_loss_has_the_same_value_and_gradients(data, tensor):
  hidden, matrix, targets = random_case(48, 16, 8 * 75, scale=4.0)
  weights = jnp.asarray(np.random.default_rng(1).uniform(0, 1, 48), jnp.float32)
  axis = "tensor"

  def body(hidden, matrix, targets, weights):
    total, weight = next_token_loss(hidden, matrix, targets, weights, token_block=8, vocab_block=32,
                                    axis_name=axis)
    return jax.lax.psum(total, "data"), jax.lax.psum(weight, "data")
  tokens = PartitionSpec("data")
  sharded = jax.shard_map(body, mesh=mesh_of(data, tensor), out_specs=PartitionSpec(),
                          in_specs=(tokens, PartitionSpec(axis), tokens, tokens))
  (total, weight), gradients = jax.jit(jax.value_and_grad(
      lambda h, w: sharded(h, w, targets, weights), (0, 1), has_aux=True))(hidden, matrix)
  expected_total, *expected = float64_gradients(hidden, matrix, targets, weights)
  np.testing.assert_allclose(weight, np.sum(weights), rtol=1e-6)
  np.testing.assert_allclose(total, expected_total, rtol=1e-6)
  for gradient, wanted in zip(gradients, expected):
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=GRADIENT_TOLERANCE)


# --------------------------------------------------------------------------------------------------------------
# Memory, by the compiler's own account; nothing runs.

T, V, D = 4096, 151_936, 896


def temporaries(function):
  hidden = jax.ShapeDtypeStruct((T, D), jnp.bfloat16)
  matrix = jax.ShapeDtypeStruct((V, D), jnp.bfloat16)
  targets = jax.ShapeDtypeStruct((T,), jnp.int32)
  return jax.jit(function).lower(hidden, matrix, targets).compile().memory_analysis().temp_size_in_bytes


def test_scoring_never_holds_the_logits():
  assert temporaries(token_likelihood) <= 125e6


def test_training_holds_no_more_than_its_gradients_and_a_tile():
  def loss(hidden, matrix, targets):
    total, weight = next_token_loss(hidden, matrix, targets, jnp.ones(T))
    return total / weight
  assert temporaries(loss) <= 125e6
  # One float32 gradient of the hidden states (15 MB), and tiles.
  assert temporaries(jax.grad(loss, (0, 1))) <= 125e6
