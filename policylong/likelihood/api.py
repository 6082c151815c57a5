"""Likelihood of tokens under an output matrix: one op, several implementations.

Logits are hidden @ output_matrix^T and are never stored whole by `streaming`. Every row of the matrix
counts, also rows beyond the tokenizer's vocabulary with which some checkpoints are padded (Qwen2.5 has
151,936 rows for 151,665 tokens): transformers does the same, so its perplexities are comparable.

Letters: T tokens, D model, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from policylong.devices import mesh as meshes
from policylong.errors import UserError
from policylong.likelihood import loss, reference, streaming

IMPLEMENTATIONS = ("streaming", "reference")


class Likelihood(NamedTuple):
  """What a prediction says, in nats, float32."""
  nll: Float[Array, "..."]  # of the target
  entropy: Float[Array, "..."]  # of the whole distribution
  lse: Float[Array, "..."]  # log of the partition sum: logit - lse is a log-probability


def token_likelihood(
    hidden: Float[Array, "*tokens D"], output_matrix: Float[Array, "V D"], targets: Int[Array, "*tokens"], *,
    implementation: str | None = None, token_block: int | None = None, vocab_block: int | None = None,
    axis_name: str | None = None) -> Likelihood:
  """nll of each target, entropy of each prediction and logsumexp, for scoring (see `next_token_loss`).

  Args:
    hidden: final hidden states, after the last norm. bfloat16 operands are multiplied as they are and
      accumulated in float32; all that follows is float32.
    output_matrix: one row a token of the vocabulary (the embedding, if tied).
    targets: rows of the matrix, 0 .. V - 1.
    implementation: "streaming" (the choice of None) or "reference".
    token_block, vocab_block: the tile of logits that is held at a time; None chooses by platform.
    axis_name: inside `jax.shard_map`, the mesh axis over which the rows of the matrix are sharded, in
      order; targets still count over the whole vocabulary. Streaming only.

  Returns:
    float32 arrays in the shape of targets, in nats.

  Raises:
    UserError: the implementation does not exist, or cannot be sharded.
  """
  T, D = targets.size, hidden.shape[-1]
  _check_shapes(hidden, output_matrix, targets)
  if implementation is None:
    implementation = "streaming"
  if implementation not in IMPLEMENTATIONS:
    raise UserError(f"likelihood implementation {implementation!r} does not exist: "
                    f"use one of {', '.join(IMPLEMENTATIONS)}")
  arrays = (hidden.reshape(T, D), output_matrix, targets.reshape(T))
  if implementation == "reference":
    if axis_name is not None:
      raise UserError(f"likelihood implementation 'reference' cannot shard the vocabulary over {axis_name!r}: "
                      "use 'streaming'")
    values = reference.token_likelihood(*arrays)
  else:
    values = streaming.token_likelihood(*arrays, *_blocks(token_block, vocab_block), axis_name)
  return Likelihood(*(x.reshape(targets.shape) for x in values))


def next_token_loss(
    hidden: Float[Array, "*tokens D"], output_matrix: Float[Array, "V D"], targets: Int[Array, "*tokens"],
    weights: Float[Array, "*tokens"], *, token_block: int | None = None, vocab_block: int | None = None,
    axis_name: str | None = None, column_axes: tuple[str, ...] = ()) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """(sum of weights * nll in nats, sum of weights): divide for the mean, after summing over devices.

  For training: the gradient keeps one float32 a token (lse) and computes the logits again, tile by tile;
  sums over tokens and over the vocabulary are float32, the gradients have the dtypes of their arrays.
  Arguments as in `token_likelihood`; inside `jax.shard_map`, `column_axes` are the mesh axes over which the
  columns of the matrix are sharded. They are gathered once, their gradient is reduced block by block.
  """
  if not column_axes:
    _check_shapes(hidden, output_matrix, targets)
  T, D = targets.size, hidden.shape[-1]
  token_block, vocab_block = _blocks(token_block, vocab_block)
  nll = loss.nll(hidden.reshape(T, D), output_matrix, targets.reshape(T), token_block, vocab_block, axis_name,
                 column_axes)
  weights = weights.reshape(T).astype(jnp.float32)
  return jnp.sum(weights * nll), jnp.sum(weights)


def sharded_token_likelihood(
    hidden: Float[Array, "B S D"], output_matrix: Float[Array, "V D"], targets: Int[Array, "B S"], *,
    mesh: Mesh, vocab_axis: str, batch_axes: tuple[str, ...] = (), token_block: int | None = None,
    vocab_block: int | None = None) -> Likelihood:
  """`token_likelihood` with the matrix's rows sharded over one mesh axis and the batch over others.

  Raises:
    UserError: the axis does not divide the vocabulary, or the batch axes the batch.
  """
  tokens = PartitionSpec(batch_axes or None)
  for what, size, axes in (("vocabulary", output_matrix.shape[0], (vocab_axis,)),
                           ("batch", hidden.shape[0], batch_axes)):
    shards = functools.reduce(lambda n, axis: n * mesh.shape[axis], axes, 1)
    if size % shards:
      raise UserError(f"the {what} of {size} cannot be split over {shards} devices (mesh axes {axes}): "
                      f"{size} is not a multiple of {shards}")
  body = functools.partial(token_likelihood, token_block=token_block, vocab_block=vocab_block,
                           axis_name=vocab_axis)
  return jax.shard_map(body, mesh=mesh, in_specs=(tokens, PartitionSpec(vocab_axis), tokens),
                       out_specs=tokens)(hidden, output_matrix, targets)


def _blocks(token_block: int | None, vocab_block: int | None) -> tuple[int, int]:
  """The tile of logits, by platform where it is left open."""
  best = {"cpu": streaming.CPU_BLOCKS, "gpu": streaming.GPU_BLOCKS, "cuda": streaming.GPU_BLOCKS}.get(
      meshes.platform(), streaming.ACCELERATOR_BLOCKS)
  return best[0] if token_block is None else token_block, best[1] if vocab_block is None else vocab_block


def _check_shapes(hidden, output_matrix, targets) -> None:
  if hidden.shape[:-1] != targets.shape or hidden.shape[-1] != output_matrix.shape[1]:
    raise ValueError(f"hidden {hidden.shape}, output matrix {output_matrix.shape} and targets "
                     f"{targets.shape} do not agree")
