"""Random small models whose weights both environments make alike, from numpy's seeds alone."""

import zlib

import numpy as np

# What every case shares; each then sets its own shape. Head counts, head sizes, epsilons and bases differ
# between the cases on purpose, so that no single wrong reading of them passes.
_COMMON = {"vocab_size": 97, "num_hidden_layers": 3, "max_position_embeddings": 64, "hidden_act": "silu",
           "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
CASES = {
    "qwen2_tied": {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 56, "num_attention_heads": 4,
                   "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
    "qwen2_untied": {"model_type": "qwen2", "hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 6,
                     "num_key_value_heads": 3, "rms_norm_eps": 1e-3, "tie_word_embeddings": False,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "qwen3": {"model_type": "qwen3", "hidden_size": 40, "intermediate_size": 64, "num_attention_heads": 6,
              "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
              "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    "qwen3_tied": {"model_type": "qwen3", "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
                   "num_key_value_heads": 1, "head_dim": 6, "rms_norm_eps": 1e-2, "tie_word_embeddings": True,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
    "llama": {"model_type": "llama", "hidden_size": 64, "intermediate_size": 48, "num_attention_heads": 8,
              "num_key_value_heads": 2, "rms_norm_eps": 1e-2, "tie_word_embeddings": False,
              "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "llama_tied": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
                   "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "qwen2_yarn": {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 48, "num_attention_heads": 2,
                   "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
                   "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
                                       "original_max_position_embeddings": 16}},
    "qwen3_yarn": {"model_type": "qwen3", "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
                   "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
                   "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 8.0, "beta_fast": 6.0,
                                       "beta_slow": 2.0, "mscale": 1.5, "mscale_all_dim": 0.5, "truncate": False,
                                       "original_max_position_embeddings": 32}},
}


def fields(case: str) -> dict:
  """The config.json fields of a case."""
  return _COMMON | CASES[case]


def weight(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """A weight by its HF name, float32: norms around 1, biases and matrices large enough to matter."""
  draw = np.random.default_rng([zlib.crc32(case.encode()), zlib.crc32(name.encode())]).uniform(-1, 1, shape)
  if "norm" in name:
    draw = 1 + 0.6 * draw
  elif len(shape) == 2 and "embed_tokens" not in name:
    draw = draw * (3 / shape[1]) ** 0.5  # unit variance in, unit variance out
  return draw.astype(np.float32)


def tokens(case: str) -> np.ndarray:
  """Token ids int64[2, 40]."""
  return np.random.default_rng(zlib.crc32(case.encode())).integers(0, 97, (2, 40))
