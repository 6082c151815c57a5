"""What is compiled: a config's programs, traced on shapes alone and lowered for TPUs."""

import functools
import math

from policylong.errors import UserError
from policylong.padding import bucket

PROGRAMS = ("train", "score", "verify", "embed")


def shape_of(config, program: str):
  """The shape of the model that a program runs.

  Raises:
    UserError: nothing is known of it.
  """
  from policylong.model.shapes import model_shape
  if program == "embed":
    if config.retrieval.embedder != "qwen3":
      raise UserError(f"--program is 'embed' and retrieval.embedder {config.retrieval.embedder!r}: it is compiled for "
                      "qwen3 only")
    return model_shape(config.retrieval.embedder_path, "retrieval.embedder_path")
  return model_shape(config.model.path).with_rope(theta=config.model.rope_theta, yarn_factor=config.model.yarn_factor)


def lowered(config, model, mesh, program: str):
  """(lowered program, tokens a step, model FLOPs a step)."""
  if program == "train":
    traced, tokens, model_flops = _traced_training(config, model, mesh)
  else:
    traced, tokens, model_flops = _traced_forward(config, model, mesh, program)
  return traced.lower(lowering_platforms=("tpu",)), tokens, model_flops


def _traced_training(config, model, mesh):
  import jax

  from policylong.training import flops
  from policylong.training.optimizer import make_optimizer
  from policylong.training.state import abstract_state
  from policylong.training.step import abstract_batch, make_train_step, token_sharding

  training, length = config.training, config.synthesis.sequence_length
  shape = (training.accumulation, training.batch_size // training.accumulation, length)
  batch = abstract_batch(training, shape, token_sharding(mesh, shape))
  state = abstract_state(model, make_optimizer(training, config.rounds, model), mesh)
  step = make_train_step(model, training, config.rounds, mesh)
  with jax.set_mesh(mesh):
    traced = step.trace(state, batch)
  return traced, math.prod(shape), math.prod(shape) * flops.train_flops_per_token(model, length)


def _traced_forward(config, model, mesh, program):
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  from policylong.devices.mesh import AXES, on_each_device
  from policylong.model.qwen import abstract_params
  from policylong.retrieval.qwen_embedder import checked_dim, encode
  from policylong.screening.scorer import Programs
  from policylong.training.flops import score_flops

  def of_rows(*length):
    return jax.ShapeDtypeStruct((rows, *length), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(AXES)))

  screening, width = config.screening, longest_row(config, program)
  arrays: tuple
  if program == "embed":
    rows, read, dtype = mesh.size * config.retrieval.embedder_batch, 0, "bfloat16"
    dim = checked_dim(config.retrieval.dim, model.embed_dim, config.retrieval.embedder_path)
    function = on_each_device(functools.partial(encode, config=model, dim=dim), mesh, 2)
    arrays = of_rows(width), of_rows()
  else:
    rows, dtype = mesh.size * max(1, screening.tokens_per_batch // width), config.model.scoring_dtype
    programs = Programs(model, mesh, jnp.dtype(dtype))
    if program == "score":
      function, arrays, read = programs.traces, (of_rows(width),), rows * width
    else:
      anchors = screening.max_anchors_per_root
      function, arrays, read = programs.likelihoods, (of_rows(width), of_rows(anchors)), rows * anchors
  whole = NamedSharding(mesh, PartitionSpec())
  params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
                        abstract_params(model, jnp.dtype(dtype)))
  with jax.set_mesh(mesh):
    traced = function.trace(params, *arrays)
  return traced, rows * width, score_flops(model, rows, width, read)


def longest_row(config, program: str) -> int:
  """The padded length of the longest rows that a program without training gets."""
  if program == "embed":
    return config.retrieval.embedder_max_tokens
  screening = config.screening
  longest = screening.root_tokens + (screening.max_chunk_tokens if program == "verify" else 0)
  return bucket(longest, screening.bucket_multiple)
