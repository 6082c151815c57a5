"""The same program on eight devices as on one: same loss, same gradients, weights where the rules say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policylong import config as config_lib
from policylong import mesh as meshes
from policylong.model import qwen

CONFIGS = {
    "qwen2": qwen.ModelConfig("qwen2", 128, 32, 64, 3, 4, 2, 8, 1e-6, 1e4, None, 64, True),
    "qwen3": qwen.ModelConfig("qwen3", 128, 32, 64, 3, 8, 2, 16, 1e-6, 1e4, None, 64, False),
}
MESHES = [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2), (2, 2, 2, 1)]
# float32 sums in another order over the devices, three layers deep
LOSS_TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 2e-6


def make_loss(config):
  def loss(params, tokens):
    hidden = qwen.hidden_states(params, config, tokens, compute_dtype=jnp.float32, remat=True)
    scores = hidden @ qwen.output_matrix(params, config).T
    return -jnp.take_along_axis(jax.nn.log_softmax(scores)[:, :-1], tokens[:, 1:, None], -1).mean()
  return jax.jit(jax.value_and_grad(loss))


def varied(params):
  """Biases and norms that differ from their start, and weights large enough to matter."""
  leaves, structure = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  return structure.unflatten([np.asarray(leaf) * 5 + 0.1 * rng.standard_normal(leaf.shape, np.float32)
                              for leaf in leaves])


@pytest.fixture(scope="module", params=CONFIGS)
def single(request):
  """config, host parameters, tokens, loss and gradients on one device."""
  config = CONFIGS[request.param]
  params = varied(qwen.init_params(config, jax.random.key(0), jnp.float32))
  tokens = np.random.default_rng(1).integers(0, 128, (8, 32)).astype(np.int32)
  loss, gradients = make_loss(config)(params, tokens)
  return config, params, tokens, loss, gradients


@pytest.mark.parametrize("sizes", MESHES)
def test_loss_and_gradients_are_those_of_one_device(sizes, single):
  config, host, tokens, loss, gradients = single
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
