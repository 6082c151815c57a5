"""Shapes of published models, for compiling programs without their weights (`policylong.aot`).

Facts from the models' config.json; the weights' own file is what counts wherever it is there.
"""

import pathlib

from policylong.errors import UserError
from policylong.model import hf
from policylong.model.qwen import ModelConfig


def _qwen25(embed_dim: int, mlp_dim: int, layers: int, heads: int, kv_heads: int, *, vocab_size: int = 151_936,
            max_positions: int = 32_768, tied: bool = True) -> ModelConfig:
  return ModelConfig(family="qwen2", vocab_size=vocab_size, embed_dim=embed_dim, mlp_dim=mlp_dim, num_layers=layers,
                     num_heads=heads, num_kv_heads=kv_heads, head_dim=embed_dim // heads, norm_eps=1e-6, rope_theta=1e6,
                     rope_scaling=None, max_positions=max_positions, tied=tied)


PUBLISHED = {
    "Qwen2.5-0.5B": _qwen25(896, 4864, 24, 14, 2),
    "Qwen2.5-1.5B": _qwen25(1536, 8960, 28, 12, 2, max_positions=131_072),
    "Qwen2.5-3B": _qwen25(2048, 11_008, 36, 16, 2),
    "Qwen2.5-7B": _qwen25(3584, 18_944, 28, 28, 4, vocab_size=152_064, max_positions=131_072, tied=False),
    "Qwen3-Embedding-0.6B": ModelConfig(family="qwen3", vocab_size=151_669, embed_dim=1024, mlp_dim=3072, num_layers=28,
                                        num_heads=16, num_kv_heads=8, head_dim=128, norm_eps=1e-6, rope_theta=1e6,
                                        rope_scaling=None, max_positions=32_768, tied=True),
}


def model_shape(path: str, field: str = "model.path") -> ModelConfig:
  """The shape of the model at `path`, or where nothing is there, of the published model that the path is named after.

  Raises:
    UserError: neither.
  """
  if pathlib.Path(path).exists():
    return hf.read_model_config(path)
  name = pathlib.PurePath(path).name.partition("@")[0]
  if name not in PUBLISHED:
    raise UserError(f"{field} is {path}: nothing is there, and {name!r} is none of the known shapes "
                    f"({', '.join(PUBLISHED)})")
  return PUBLISHED[name]
