"""The same program on eight devices as on one: same loss, same gradients, weights where the rules say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policylong import config as config_lib
from policylong.devices import mesh as meshes
from policylong.model import qwen

CONFIGS = {
    "qwen2": qwen.ModelConfig("qwen2", 128, 32, 64, 3, 4, 2, 8, 1e-6, 1e4, None, 64, True),
    "qwen3": qwen.ModelConfig("qwen3", 128, 32, 64, 3, 8, 2, 16, 1e-6, 1e4, None, 64, False),
}
MESHES = {"qwen2": [(8, 1, 1, 1), (2, 2, 1, 2)], "qwen3": [(1, 8, 1, 1), (1, 2, 2, 2), (1, 2, 4, 1)]}
# float32 sums in another order over the devices, three layers deep
LOSS_TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 2e-6


def make_loss(config):
  def loss(params, tokens):
    hidden = qwen.hidden_states(params, config, tokens, compute_dtype=jnp.float32, remat="full")
    scores = hidden @ qwen.output_matrix(params, config).T
    return -jnp.take_along_axis(jax.nn.log_softmax(scores)[:, :-1], tokens[:, 1:, None], -1).mean()
  return jax.jit(jax.value_and_grad(loss))


def varied(config):
  """Matrices large enough to matter, biases and norms that differ from their start."""
  rng = np.random.default_rng(0)

  def draw(weight):
    noise = 0.1 * rng.standard_normal(weight.shape, np.float32)
    return noise + 1 if weight.init == "ones" else noise
  return jax.tree.map(draw, qwen.declare(config))


@pytest.fixture(scope="module")
def single():
  """family -> host parameters, tokens, loss and gradients on one device."""
  tokens = np.random.default_rng(1).integers(0, 128, (8, 32)).astype(np.int32)
  params = {family: varied(config) for family, config in CONFIGS.items()}
  return {family: (params[family], tokens, *make_loss(config)(params[family], tokens))
          for family, config in CONFIGS.items()}


@pytest.mark.parametrize(("family", "sizes"), [(family, sizes) for family in MESHES for sizes in MESHES[family]])
def test_loss_and_gradients_are_those_of_one_device(family, sizes, single):
  config, (host, tokens, loss, gradients) = CONFIGS[family], single[family]
  mesh = meshes.make_mesh(config_lib.Mesh(*sizes))
  abstract = qwen.abstract_params(config, jnp.float32, mesh)
  params = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), host, abstract)
  placed = jax.device_put(tokens, meshes.sharding(mesh, ("batch", "sequence"), tokens.shape))
  with jax.set_mesh(mesh):
    found, found_gradients = make_loss(config)(params, placed)
  assert abs(float(found) - float(loss)) < LOSS_TOLERANCE * float(loss)
  largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
  for a, b in zip(jax.tree.leaves(found_gradients), jax.tree.leaves(gradients)):
    np.testing.assert_allclose(a, b, rtol=0, atol=GRADIENT_TOLERANCE * largest)


def test_fresh_parameters_are_the_same_on_a_mesh_and_lie_on_it():
  config = CONFIGS["qwen3"]
  mesh = meshes.make_mesh(config_lib.Mesh(1, 2, 2, 2))
  split = qwen.init_params(config, jax.random.key(3), jnp.float32, mesh)
  whole = qwen.init_params(config, jax.random.key(3), jnp.float32)
  assert split["layers"]["gate"].addressable_shards[0].data.shape == (3, 32 // 4, 64 // 2)
  jax.tree.map(np.testing.assert_array_equal, split, whole)
  weights = jax.tree.leaves(qwen.declare(config))
  assert sum(leaf.size for leaf in jax.tree.leaves(whole)) == qwen.num_params(config)
  for weight, leaf in zip(weights, jax.tree.leaves(whole)):
    spread = {"normal": 0.02, "ones": 0.0, "zeros": 0.0}[weight.init]
    assert abs(float(leaf.std()) - spread) < 1e-3  # a thousand draws or more
