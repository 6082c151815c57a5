"""A mesh fits its devices or says why not, and the rules place what is declared."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from policylong import config
from policylong.devices import mesh
from policylong.errors import UserError


@pytest.mark.parametrize(("sizes", "shape"), [
    ((1, 8, 1, 1), (1, 8, 1, 1)), ((2, -1, 2, 1), (2, 2, 2, 1)), ((-1, 1, 1, 1), (8, 1, 1, 1)),
    ((1, 1, 1, -1), (1, 1, 1, 8)),
])
def test_a_mesh_has_the_sizes_asked_for_and_minus_one_takes_what_is_left(sizes, shape):
  made = mesh.make_mesh(config.Mesh(*sizes))
  assert tuple(made.shape.items()) == tuple(zip(mesh.AXES, shape))


@pytest.mark.parametrize(("sizes", "said"), [
    ((1, 3, 1, 1), "needs 3 devices, but there are 8"), ((2, 8, 1, 1), "needs 16 devices, but there are 8"),
    ((3, -1, 1, 1), "needs a multiple of 3 devices, but there are 8"),
])
def test_a_mesh_that_does_not_match_the_devices_says_both_numbers(sizes, said):
  with pytest.raises(UserError, match=re.escape(said)):
    mesh.make_mesh(config.Mesh(*sizes))


def test_a_mesh_can_be_made_of_some_devices():
  assert mesh.make_mesh(config.Mesh(1, -1, 1, 1), jax.devices()[:2]).shape["fsdp"] == 2


def test_weights_lie_over_fsdp_context_and_tensor_and_batches_over_data_and_fsdp():
  assert mesh.partition_spec(("layers", "embed", "mlp")) == P(None, ("fsdp", "context"), ("tensor",))
  assert mesh.partition_spec(("batch", "sequence", None)) == P(("data", "fsdp"), ("context",), None)


def test_no_weight_uses_a_mesh_axis_twice():
  from policylong.model import qwen
  for family in ("qwen2", "qwen3", "llama"):
    model = qwen.ModelConfig(family, 64, 16, 32, 2, 4, 2, 8, 1e-6, 1e4, None, 64, False)
    for weight in jax.tree.leaves(qwen.declare(model)):
      used = [axis for axes in mesh.partition_spec(weight.axes) for axis in axes or ()]
      assert len(used) == len(set(used))


def test_a_dimension_that_the_mesh_does_not_divide_is_named():
  made = mesh.make_mesh(config.Mesh(1, 2, 2, 2))
  with pytest.raises(UserError, match=r"kv_heads dimension is 3, not divisible by mesh\.tensor = 2"):
    mesh.sharding(made, ("embed", "kv_heads", "head_dim"), (64, 3, 8))
  with pytest.raises(UserError, match=r"embed dimension is 6, not divisible by mesh\.fsdp \* mesh\.context = 4"):
    mesh.sharding(made, ("vocab", "embed"), (64, 6))


def test_constrain_places_an_activation_on_the_set_mesh_and_leaves_it_alone_without():
  x = jnp.ones((8, 4, 2))
  place = lambda x: mesh.constrain(x, ("batch", "sequence", None))  # noqa: E731
  assert len(jax.jit(place)(x).sharding.device_set) == 1
  with jax.set_mesh(mesh.make_mesh(config.Mesh(2, 2, 2, 1))):
    assert jax.jit(place)(x).sharding.spec == P(("data", "fsdp"), "context")
