"""A tiny random decoder, a config around it, and sequences on disk."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from policylong import config as config_lib
from policylong import paper
from policylong.devices.mesh import make_mesh
from policylong.model.qwen import ModelConfig, declare

LENGTH = 32
TINY = ModelConfig(family="llama", vocab_size=64, embed_dim=32, mlp_dim=64, num_layers=2, num_heads=8, num_kv_heads=4,
                   head_dim=8, norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, max_positions=64, tied=True)


def training_config(**changes) -> config_lib.Training:
  return config_lib.Training(**{
      "steps_per_round": 6, "batch_size": 4, "accumulation": 1, "peak_learning_rate": 1e-2, "warmup_fraction": 0.2,
      "schedule": "run", "document_masking": False, "longce": False, "longfilter_share": None, "short_window": 8,
      "adam_b1": 0.9, "adam_b2": 0.95, "weight_decay": 0.1, "clip_norm": 1.0, "compute_dtype": "float32",
      "remat": "none", "context_attention": "gather", "checkpoint_every": 2, "keep_checkpoints": 2} | changes)


def whole_config(rounds=2, wandb_project=None, **changes) -> config_lib.Config:
  """Only `seed`, `rounds`, `synthesis`, `training` and `mesh` matter to training; the rest must merely be valid."""
  values = paper.config()
  values.update({"seed": 3, "rounds": rounds, "wandb_project": wandb_project})
  values.corpus.sources, values.eval.tasks = values.corpus.sources[:1], ()
  values.retrieval.update({"embedder": "hashed", "embedder_path": "", "index": "exact"})
  values.screening.update({
      "roots_per_round": 4, "root_tokens": 16, "min_root_tokens": 8, "skip_tokens": 2, "alpha": 1.0,
      "max_anchors_per_root": 4, "query_window": 4, "top_k": 2, "control_chunks": 0, "max_chunk_tokens": 16,
      "bucket_multiple": 8, "tokens_per_batch": 64, "roots_per_shard": 2, "budget": None})
  values.synthesis.update({"sequence_length": LENGTH, "separator": ""})
  values.mesh.update({"fsdp": 1, "context": 1})
  training = training_config(**changes)
  values.training.update(dataclasses.asdict(training))
  return config_lib.parse(values)


def mesh_of(data=1, fsdp=1, context=1, tensor=1) -> jax.sharding.Mesh:
  sizes = config_lib.Mesh(data=data, fsdp=fsdp, context=context, tensor=tensor)
  return make_mesh(sizes, jax.devices()[:data * fsdp * context * tensor])


def tiny_params(config=TINY, seed=0):
  """Fresh parameters as the declarations ask for, by numpy: nothing to compile."""
  rng = np.random.default_rng(seed)

  def make(weight):
    start = {"normal": 0.02 * rng.standard_normal(weight.shape), "ones": np.ones(weight.shape),
             "zeros": np.zeros(weight.shape)}[weight.init]
    return jnp.asarray(start, jnp.float32)

  return jax.tree.map(make, declare(config))


def write_records(path, records) -> None:
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def write_sequences(directory, sequences, files=2) -> list:
  """`sequences` int[n, L] as raw little-endian int32, dealt over `files` files."""
  directory.mkdir(parents=True, exist_ok=True)
  paths = []
  for part, share in enumerate(np.array_split(sequences, files)):
    paths.append(directory / f"part-{part:05d}.array_record")
    write_records(paths[-1], [sequence.astype("<i4").tobytes() for sequence in share])
  return paths
