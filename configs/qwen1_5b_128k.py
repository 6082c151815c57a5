"""Qwen2.5-1.5B in the setting of policylong/paper.py.

  python -m policylong.main --config=configs/qwen1_5b_128k.py:v5p:4x4x4 --workdir=DIR_THAT_ALL_HOSTS_SHARE \\
    --config.model.path=DIR_OF_QWEN2.5-1.5B --config.retrieval.embedder_path=DIR_OF_QWEN3_EMBEDDING_0.6B

on every host of the slice; memory and estimated speed are in docs/pods.md.
"""

from ml_collections import ConfigDict

from policylong import paper

SLICES = {
    "v5p:4x4x4": {"fsdp": 16, "context": 4, "accumulation": 2, "remat": "all_but_attention"},
    "v5e:8x8": {"fsdp": 8, "context": 8, "accumulation": 2, "remat": "full"},
    "v6e:8x8": {"fsdp": 16, "context": 4, "accumulation": 2, "remat": "all_but_attention"},
}


def get_config(slice_: str = "v5p:4x4x4") -> ConfigDict:
  """The run on a slice of `SLICES`."""
  config = paper.on_slice(SLICES, slice_)
  config.model.path = "models/Qwen2.5-1.5B"
  return config
