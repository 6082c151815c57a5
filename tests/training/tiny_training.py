"""A tiny random decoder, a config around it, and sequences on disk."""

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from policylong import config as config_lib
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
  source = config_lib.Source(name="a", kind="text", path="x", id_field="id", text_field="text", split="")
  return config_lib.Config(
      seed=3, rounds=rounds, max_staleness=0, method="policylong",
      method_options=config_lib.MethodOptions(
          search="embeddings", nextlong_k=None, nextlong_position="head", quest_least_score=3.0,
          quest_split_ratio=0.2, utk_share=0.3, prolong_long_share=0.6, given_boundaries=""),
      eval=config_lib.Eval(tasks=(), lengths=(), samples=1, protocol="nvidia", documents=source, short_window=1,
                           ruler_dir=""),
      model=config_lib.Model(path="x", sha256="", rope_theta=None, yarn_factor=None, scoring_dtype="float32"),
      corpus=config_lib.Corpus(sources=(source,), root_sources=("a",), chunk_chars=2048, cache_dir="x"),
      retrieval=config_lib.Retrieval(
          embedder="hashed", embedder_path="", embedder_sha256="", embedder_max_tokens=64, embedder_batch=8,
          query_instruction="", index="exact", leaves=None, target_recall=0.95),
      screening=config_lib.Screening(
          roots_per_round=4, root_tokens=16, min_root_tokens=8, skip_tokens=2, alpha=1.0, max_anchors_per_root=4,
          query_window=4, top_k=2, near_copy_ngram=13, control_chunks=0, epsilon=0.4, epsilon_from_control=None,
          control_margin=None, negatives="positives", negatives_per_positive=1, max_chunk_tokens=16,
          bucket_multiple=8, tokens_per_batch=64, roots_per_shard=2),
      synthesis=config_lib.Synthesis(sequence_length=LENGTH, separator=""),
      training=training_config(**changes), mesh=config_lib.Mesh(data=1, fsdp=1, context=1, tensor=1),
      report=config_lib.Report(roots=1, anchors_per_root=1), wandb_project=wandb_project)


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
