"""The paper's setting: Qwen2.5-3B from 32K to 131,072 tokens in 4 rounds of 1B tokens.

  python -m policylong.main --config=configs/qwen3b_128k.py:v5p:4x4x4 --workdir=DIR_THAT_ALL_HOSTS_SHARE \\
    --config.model.path=DIR_OF_QWEN2.5-3B --config.retrieval.embedder_path=DIR_OF_QWEN3_EMBEDDING_0.6B

on every host of the slice; the argument is a key of SLICES, and docs/pods.md says what each of them holds and how fast
it should be. `:runlocal` is the same run, shrunk to eight simulated devices of a laptop and SmolLM2-135M.

What the setting is stands in policylong/paper.py, each value with its source.
"""

from ml_collections import ConfigDict

from policylong import paper

# Slice -> how a step lies on it: sequences over fsdp, the tokens of each over context, as few as leave 16K tokens or
# more to a device; accumulation, and what is kept for the backward pass, as memory allows.
SLICES = {
    "v5p:4x4x4": {"fsdp": 16, "context": 4, "accumulation": 2, "remat": "all_but_attention"},
    "v5e:8x8": {"fsdp": 8, "context": 8, "accumulation": 2, "remat": "full"},
    "v6e:8x8": {"fsdp": 16, "context": 4, "accumulation": 2, "remat": "all_but_attention"},
}


def get_config(slice_: str = "v5p:4x4x4") -> ConfigDict:
  """The run on a slice of `SLICES`, or "runlocal"."""
  if slice_ == "runlocal":
    return shrunk(paper.config())
  return paper.on_slice(SLICES, slice_)


def shrunk(config: ConfigDict) -> ConfigDict:
  """The same program, small: eight simulated devices, ring attention, what `make material` fetches.

  It shows that everything works together, in two and a half minutes, and nothing else: a step teaches little, and
  epsilon lets a fifth of random contexts pass, so that a handful of roots has positives.
  """
  config.rounds = 2
  config.model.update({"path": "material/smollm2.gguf", "rope_theta": 1e6})
  config.corpus.sources = ({"name": "sotu", "kind": "text", "path": "material/sotu/[12][90]*.txt", "id_field": "",
                            "text_field": "", "split": ""},)
  config.corpus.cache_dir = "runs/cache"
  # No second model to fetch: n-grams, hashed.
  config.retrieval.update({"embedder": "hashed", "embedder_path": "", "index": "exact"})
  # A small model gains less from a context, so epsilon comes from the control (see configs/demo.py).
  config.screening.update({
      "roots_per_round": 4, "roots_per_shard": 1, "root_tokens": 128, "min_root_tokens": 64, "alpha": 1.0,
      "max_anchors_per_root": 2, "top_k": 2, "control_chunks": 3, "max_chunk_tokens": 128,
      # One program for all rows; those of a root, with the root alone, are one batch of the eight devices.
      "bucket_multiple": 256, "tokens_per_batch": 256,
      "epsilon": None, "epsilon_from_control": 0.2, "budget": None})
  config.synthesis.sequence_length = 512
  config.eval.update({"tasks": ("position_loss",), "lengths": (256,), "samples": 2})
  config.eval.documents.update({"kind": "text", "path": "material/sotu/18*.txt"})
  config.training.update({"steps_per_round": 1, "batch_size": 2, "context_attention": "ring"})
  config.mesh.update({"fsdp": 2, "context": 4, "simulated_devices": 8})
  return config
