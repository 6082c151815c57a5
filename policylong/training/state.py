"""What training carries from step to step, and where it lies on the devices."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from policylong.model.qwen import ModelConfig, Params, abstract_params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """step: int32[], finished updates of the whole run; params: float32 master weights; opt_state: optax's."""
  step: jax.Array
  params: Params
  opt_state: optax.OptState


def abstract_state(model_config: ModelConfig, optimizer: optax.GradientTransformation,
                   mesh: jax.sharding.Mesh) -> TrainState:
  """Shapes, dtypes and shardings of the state: moments lie as their parameters do, scalars everywhere.

  Raises:
    UserError: the mesh does not divide a dimension of the model.
  """
  params = abstract_params(model_config, jnp.float32, mesh)
  everywhere = NamedSharding(mesh, PartitionSpec())
  opt_state = optax.tree.map_params(
      optimizer, lambda leaf, param: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding),
      jax.eval_shape(optimizer.init, params), params,
      transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere))
  return TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere), params, opt_state)


def initial_state(params: Params, optimizer: optax.GradientTransformation, abstract: TrainState) -> TrainState:
  """The state before the first step. Takes the parameters over: the caller's arrays are gone afterwards."""
  def make(params):
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

  return jax.jit(make, donate_argnums=0, out_shardings=shardings(abstract))(
      jax.tree.map(lambda x, want: jax.device_put(x, want.sharding), params, abstract.params))


def restart_optimizer(state: TrainState, optimizer: optax.GradientTransformation,
                      abstract: TrainState) -> TrainState:
  """The same parameters and step with moments and schedule at their start; takes the state over."""
  def make(state):
    return dataclasses.replace(state, opt_state=optimizer.init(state.params))

  return jax.jit(make, donate_argnums=0, out_shardings=shardings(abstract))(state)


def shardings(abstract: TrainState) -> TrainState:
  """The sharding of each leaf of an abstract state."""
  return jax.tree.map(lambda leaf: leaf.sharding, abstract)
