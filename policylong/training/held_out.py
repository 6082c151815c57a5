"""The loss on conversations that are not trained on: of the assistant's tokens, whatever training learns."""

from typing import NamedTuple

import jax
import numpy as np

from policylong import config as config_lib
from policylong.devices import mesh as meshes
from policylong.model.qwen import ModelConfig, Params
from policylong.training.batches import place
from policylong.training.step import NO_TARGET, TOKEN_AXES, Batch, make_packed_batch, summed_loss


class Loss(NamedTuple):
  """Mean nll in nats a token, and over how many tokens."""
  nats: float
  tokens: int


class HeldOut:
  """Packed sequences in host memory, and the program that reads them; compiled once."""

  def __init__(self, packed: np.ndarray, recipe: config_lib.Recipe, model_config: ModelConfig,
               mesh: jax.sharding.Mesh):
    """Computes as training does: in its dtype, a microbatch at a time.

    Args:
      packed: int32[n, 3, L], see `make_packed_batch`.
      recipe: of the training.
      model_config: what the model is.
      mesh: where its parameters lie.
    """
    rows = recipe.batch_size // recipe.accumulation
    # Empty rows fill the last batch up: nothing in them is a target.
    padded = np.concatenate([packed, np.zeros((-len(packed) % rows, *packed.shape[1:]), np.int32)])
    self._host = make_packed_batch(padded.reshape(-1, rows, *packed.shape[1:]), mesh.shape["context"])
    self._shape = (rows, packed.shape[-1])
    self._mesh = mesh
    self._sharding = meshes.sharding(mesh, TOKEN_AXES[1:], self._shape)
    context = recipe.context_attention if mesh.shape["context"] > 1 else None

    def loss(params: Params, batch: Batch) -> jax.Array:
      return summed_loss(params, model_config, batch, compute_dtype=np.dtype(recipe.compute_dtype), remat="none",
                         context=context)[0]
    self._loss = jax.jit(loss)

  def loss(self, params: Params) -> Loss:
    """The mean over all held-out answers' tokens."""
    with jax.set_mesh(self._mesh):
      batches = [jax.tree.map(lambda rows, i=i: rows[i], self._host) for i in range(len(self._host.tokens))]
      sums = [self._loss(params, place(batch, self._shape, self._sharding)) for batch in batches]
    tokens = int((self._host.targets != NO_TARGET).sum())
    return Loss(float(np.sum(jax.device_get(sums), dtype=np.float64)) / tokens, tokens)
