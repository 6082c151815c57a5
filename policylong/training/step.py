"""One training step: next-token loss, gradients over microbatches, one update.

The loss is the mean over all predictions of the whole batch that have a target, however they are spread over
sequences, microbatches and devices: a token counts the same wherever it stands, unless it was given a weight
(`policylong.screening.long_gap`).

Letters: A microbatches, B sequences of one microbatch, L tokens of a sequence, D model, V vocabulary, C devices of
the context axis.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from policylong import config as config_lib
from policylong.attention.zigzag import zigzag
from policylong.devices import mesh as meshes
from policylong.devices.elementwise import cast
from policylong.likelihood.api import next_token_loss
from policylong.model.qwen import ModelConfig, Params, hidden_states, output_matrix
from policylong.training.optimizer import learning_rate, make_optimizer, matrices
from policylong.training.state import TrainState, abstract_state, shardings

# Logical axes of a step's tokens [A, B, L].
TOKEN_AXES = (None, "batch", "sequence")
# The target of a token that nothing follows.
NO_TARGET = -1


class Batch(NamedTuple):
  """int32[A, B, L] each, along L in the zig-zag layout of the mesh's context axis.

  tokens, and what follows each (NO_TARGET: no loss). Of packed sequences also which document of its sequence a token
  belongs to, and its place there. Of weighed ones float32 weights of the targets; else all weigh 1.
  """
  tokens: np.ndarray | jax.Array
  targets: np.ndarray | jax.Array
  segment_ids: np.ndarray | jax.Array | None = None
  positions: np.ndarray | jax.Array | None = None
  weights: np.ndarray | jax.Array | None = None


class Metrics(NamedTuple):
  """Of one step, on the devices: mean loss in nats a token, norm before clipping, the rate applied."""
  loss: jax.Array
  grad_norm: jax.Array
  learning_rate: jax.Array


def token_sharding(mesh: jax.sharding.Mesh, shape: tuple[int, int, int]) -> NamedSharding:
  """Where tokens [A, B, L] lie: sequences over data and fsdp, their tokens over context."""
  return meshes.sharding(mesh, TOKEN_AXES, shape)


def abstract_batch(training: config_lib.Training, shape: tuple[int, int, int], sharding: NamedSharding) -> Batch:
  """The shapes of a step's Batch [A, B, L]."""
  tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
  if training.record_rows == 1:
    return Batch(tokens, tokens)
  if training.record_rows == 2:
    return Batch(tokens, tokens, weights=jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding))
  return Batch(tokens, tokens, tokens, tokens)


def make_batch(tokens: np.ndarray, context: int) -> Batch:
  """Sequences int32[..., L] as a step of a mesh with C = `context` takes them; on the host.

  The last token has no target; it keeps its place, so that the length stays divisible by the context axis.
  """
  return Batch(zigzag(tokens, context, -1), zigzag(_following(tokens, NO_TARGET), context, -1))


def make_weighed_batch(weighed: np.ndarray, context: int) -> Batch:
  """The same of weighed sequences int32[..., 2, L]: token ids, and the bits of their float32 weights as targets."""
  tokens, bits = np.moveaxis(weighed, -2, 0)
  weights = _following(np.ascontiguousarray(bits).view(np.float32), 0)
  return make_batch(tokens, context)._replace(weights=zigzag(weights, context, -1))


def make_packed_batch(packed: np.ndarray, context: int) -> Batch:
  """The same of packed sequences int32[..., 3, L]: token ids, the document of each, and whether it is to be learnt.

  A document's first token is nobody's target: what stands before it is another document.
  """
  tokens, segments, learnt = np.moveaxis(packed, -2, 0)
  first = np.ones_like(segments, bool)
  first[..., 1:] = segments[..., 1:] != segments[..., :-1]
  index = np.broadcast_to(np.arange(tokens.shape[-1], dtype=np.int32), tokens.shape)
  positions = index - np.maximum.accumulate(np.where(first, index, 0), axis=-1)
  targets = np.full_like(tokens, NO_TARGET)
  targets[..., :-1] = np.where((learnt == 1) & ~first, tokens, NO_TARGET)[..., 1:]
  return Batch(*(zigzag(array, context, -1) for array in (tokens, targets, segments, positions)))


def _following(values: np.ndarray, end) -> np.ndarray:
  """What stands behind each value along the last axis; `end` behind the last one."""
  return np.concatenate([values[..., 1:], np.full_like(values[..., :1], end)], axis=-1)


def mean_loss(params: Params, model_config: ModelConfig, tokens: Int[Array, "B L"], targets: Int[Array, "B L"],
              segment_ids: Int[Array, "B L"] | None = None, positions: Int[Array, "B L"] | None = None,
              weights: Float[Array, "B L"] | None = None, *, compute_dtype: jnp.dtype, remat: str,
              context: str | None, count: jax.Array | None = None) -> Float[Array, ""]:
  """Mean next-token loss (nats) of the predictions that have a target, each times its weight where there are weights.

  Args:
    params: in any float dtype.
    model_config: what the model is.
    tokens, targets, segment_ids, positions, weights: as in a `Batch`. Without segment ids attention is causal over
      the whole sequence, across the documents that it joins: that is what a long sequence is made for.
    compute_dtype, remat, context: as `hidden_states` takes them.
    count: what the sum is divided by; None: the sum of the weights, the number of these predictions without any.
  """
  total, own = summed_loss(params, model_config, Batch(tokens, targets, segment_ids, positions, weights),
                           compute_dtype=compute_dtype, remat=remat, context=context)
  return total / (own if count is None else count)


def summed_loss(params: Params, model_config: ModelConfig, batch: Batch, *, compute_dtype: jnp.dtype, remat: str,
                context: str | None) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """(sum of weight times nll of all targets in nats, sum of the weights) of a Batch of [B, L], over all devices."""
  mesh = meshes.current()
  positions = batch.positions
  if positions is None:
    order = np.arange(batch.tokens.shape[1], dtype=np.int32)
    positions = jnp.asarray(zigzag(order, mesh.shape["context"] if mesh else 1, 0))[None]
  hidden = hidden_states(params, model_config, batch.tokens, positions=positions, segment_ids=batch.segment_ids,
                         compute_dtype=compute_dtype, remat=remat, context=context)
  matrix = output_matrix(params, model_config).astype(compute_dtype)
  learnt = (batch.targets != NO_TARGET).astype(jnp.float32)
  return _summed_nll(hidden, matrix, jnp.maximum(batch.targets, 0),
                     learnt if batch.weights is None else learnt * batch.weights)


def _summed_nll(hidden, matrix, targets, weights):
  rules = dict(meshes.RULES)

  def spread(*arrays):
    sums = next_token_loss(*arrays, axis_name="tensor", column_axes=rules["embed"])
    return jax.tree.map(lambda x: lax.psum(x, rules["batch"] + rules["sequence"]), sums)

  if meshes.current() is None:
    return next_token_loss(hidden, matrix, targets, weights)
  specs = [meshes.partition_spec(axes) for axes in (("batch", "sequence", None), ("vocab", "embed"),
                                                    *[("batch", "sequence")] * 2)]
  return jax.shard_map(spread, in_specs=tuple(specs), out_specs=PartitionSpec())(hidden, matrix, targets, weights)


def make_train_step(model_config: ModelConfig, training: config_lib.Training, rounds: int,
                    mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
  """The step as one jitted function (state, Batch) -> (state, Metrics); the state is donated.

  The layers' matrices are cast to the compute dtype once a step. Norms and biases stay float32, and so
  does the embedding: the gradient of a frequent token is a sum of hundreds of rows, which bfloat16
  would swallow. Each microbatch's sum is divided by the number of predictions of the whole batch, so its gradients,
  summed in float32, are those of the batch's mean up to rounding. Lower or call it inside `jax.set_mesh(mesh)`.
  """
  optimizer = make_optimizer(training, rounds, model_config)
  schedule = learning_rate(training, rounds)
  compute_dtype = jnp.dtype(training.compute_dtype)
  is_matrix = matrices(model_config)["layers"]

  context = training.context_attention if mesh.shape["context"] > 1 else None

  def gradients(params: Params, batch: Batch) -> tuple[jax.Array, Params]:
    layers = jax.tree.map(lambda p, matrix: cast(p, compute_dtype) if matrix else p, params["layers"], is_matrix)
    compute = {**params, "layers": layers}
    value_and_grad = jax.value_and_grad(mean_loss)
    count = jnp.sum(batch.targets != NO_TARGET).astype(jnp.float32)

    def share(micro: Batch) -> tuple[jax.Array, Params]:
      found = value_and_grad(compute, model_config, *micro, compute_dtype=compute_dtype, remat=training.remat,
                             context=context, count=count)
      return jax.tree.map(lambda x: x.astype(jnp.float32), found)

    if len(batch.tokens) == 1:  # nothing to add up, and no second set of float32 gradients
      return share(jax.tree.map(lambda x: x[0], batch))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (jnp.zeros(()), params))
    return lax.scan(lambda total, micro: (jax.tree.map(jnp.add, total, share(micro)), None), zeros, batch)[0]

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    loss, grads = gradients(state.params, batch)
    with jax.named_scope("update"):
      metrics = Metrics(loss, optax.global_norm(grads), schedule(state.step))
      updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
      params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics

  placed = shardings(abstract_state(model_config, optimizer, mesh))
  return jax.jit(step, donate_argnums=0, out_shardings=(placed, NamedSharding(mesh, PartitionSpec())))
