"""Small models in the shapes of published families, as HF directories: what models.md and its references are made of.

Both environments write the same files from here: config.json by hand, in the spelling that each family was published
with, and seeded weights under HF's names. Nothing of the package or of transformers is used.
"""

import json
import pathlib

import numpy as np
import seeded
from safetensors.numpy import save_file

ORIGINAL = 64  # the window before it is stretched; logits are compared over LENGTH = 4 x ORIGINAL positions
LENGTH = 256
VOCAB = 97
POSITIONS = np.unique(np.concatenate([np.arange(0, LENGTH, 7), [ORIGINAL - 1, ORIGINAL, LENGTH - 1]]))  # stored
COLUMNS = np.arange(0, VOCAB, 4)

_COMMON = {"vocab_size": VOCAB, "num_hidden_layers": 2, "max_position_embeddings": ORIGINAL, "hidden_act": "silu",
           "intermediate_size": 56, "initializer_range": 0.02, "use_cache": True, "torch_dtype": "float32",
           "bos_token_id": 1, "eos_token_id": 2, "attention_dropout": 0.0}
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": ORIGINAL}
# Heads, tying, bases and epsilons are the published ones, or in their ratio.
FAMILIES = {
    "Llama 3": {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2,
                "head_dim": 32, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": False,
                "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rope_scaling": None},
    "Llama 3.1": {"model_type": "llama", "hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 1,
                  "head_dim": 24, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": False,
                  "attention_bias": False, "mlp_bias": False, "max_position_embeddings": 16 * ORIGINAL,
                  "rope_scaling": {**_LLAMA3, "factor": 8.0}},
    "Llama 3.2": {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 1,
                  "head_dim": 32, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True,
                  "attention_bias": False, "mlp_bias": False, "max_position_embeddings": 16 * ORIGINAL,
                  "rope_scaling": {**_LLAMA3, "factor": 32.0}},
    "SmolLM2": {"model_type": "llama", "hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3,
                "rms_norm_eps": 1e-5, "rope_theta": 100_000, "tie_word_embeddings": True, "rope_interleaved": False,
                "is_llama_config": True, "rope_scaling": None, "attention_bias": False, "pretraining_tp": 1},
    "Mistral 0.3": {"model_type": "mistral", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2,
                    "head_dim": 24, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0, "tie_word_embeddings": False,
                    "sliding_window": None},
    "Qwen2": {"model_type": "qwen2", "hidden_size": 112, "num_attention_heads": 7, "num_key_value_heads": 1,
              "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "tie_word_embeddings": False, "sliding_window": 131_072,
              "use_sliding_window": False, "max_window_layers": 28},
    "Qwen2.5": {"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
                "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "tie_word_embeddings": True, "sliding_window": 32_768,
                "use_sliding_window": False, "use_mrope": False, "max_window_layers": 1},
    "Qwen3": {"model_type": "qwen3", "hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 32, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000, "tie_word_embeddings": False,
              "attention_bias": False, "sliding_window": None, "use_sliding_window": False, "max_window_layers": 2,
              "rope_scaling": None},
    "SmolLM3": {"model_type": "smollm3", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 1,
                "num_hidden_layers": 5, "rms_norm_eps": 1e-6, "rope_theta": 5_000_000.0, "tie_word_embeddings": True,
                "attention_bias": False, "mlp_bias": False, "no_rope_layer_interval": 4,
                "no_rope_layers": [1, 1, 1, 0, 1], "layer_types": ["full_attention"] * 5, "sliding_window": None,
                "use_sliding_window": False, "max_window_layers": 28, "rope_scaling": None, "pretraining_tp": 2,
                "pad_token_id": 2},
}
# What of a family's file is changed; "head": "own" writes another lm_head beside a tied config, "alone" leaves the
# embedding out of the file, which transformers then takes from the head.
_UNSCALED = {"rope_scaling": None, "max_position_embeddings": ORIGINAL}
FEATURES = {
    "as published": {},
    "default": _UNSCALED,
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}, "max_position_embeddings": ORIGINAL},
    "llama3": {"rope_scaling": {**_LLAMA3, "factor": 8.0}, "max_position_embeddings": LENGTH},
    "llama3, new spelling": {"rope_scaling": None, "rope_theta": None, "max_position_embeddings": LENGTH,
                             "rope_parameters": {**_LLAMA3, "factor": 4.0, "high_freq_factor": 6.0,
                                                 "rope_theta": 10_000.0}},
    "yarn, model card": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
                         "max_position_embeddings": ORIGINAL},
    "yarn, all settings": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0,
                                            "mscale": 1.5, "mscale_all_dim": 0.5, "truncate": False, "finetuned": True},
                           "original_max_position_embeddings": ORIGINAL, "max_position_embeddings": LENGTH},
    "yarn, attention_factor": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3},
                               "max_position_embeddings": 2 * ORIGINAL},
    "tied": {**_UNSCALED, "tie_word_embeddings": True},
    "untied": {**_UNSCALED, "tie_word_embeddings": False},
    "tied, own head": {**_UNSCALED, "tie_word_embeddings": True, "head": "own"},
    "tied, head alone": {**_UNSCALED, "tie_word_embeddings": True, "head": "alone"},
}


def fields(family: str, feature: str) -> dict:
  """The config.json of a cell."""
  values = _COMMON | FAMILIES[family] | FEATURES[feature]
  values.pop("head", None)
  return {key: value for key, value in values.items() if value is not None or key in ("rope_scaling", "sliding_window")}


def shapes(family: str, feature: str) -> dict[str, tuple[int, ...]]:
  """The tensors of a cell's checkpoint by HF name."""
  values, head = fields(family, feature), FEATURES[feature].get("head")
  width, hidden, heads, groups = (values[name] for name in (
      "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"))
  size = values.get("head_dim", width // heads)
  layer = {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,),
           "self_attn.q_proj.weight": (heads * size, width), "self_attn.k_proj.weight": (groups * size, width),
           "self_attn.v_proj.weight": (groups * size, width), "self_attn.o_proj.weight": (width, heads * size),
           "mlp.gate_proj.weight": (hidden, width), "mlp.up_proj.weight": (hidden, width),
           "mlp.down_proj.weight": (width, hidden)}
  if values["model_type"] == "qwen2":
    layer |= {f"self_attn.{name}_proj.bias": layer[f"self_attn.{name}_proj.weight"][:1] for name in "qkv"}
  if values["model_type"] == "qwen3":
    layer |= {"self_attn.q_norm.weight": (size,), "self_attn.k_norm.weight": (size,)}
  whole = {"model.embed_tokens.weight": (VOCAB, width), "model.norm.weight": (width,)}
  if head or not values["tie_word_embeddings"]:
    whole["lm_head.weight"] = (VOCAB, width)
  if head == "alone":
    del whole["model.embed_tokens.weight"]
  return whole | {f"model.layers.{i}.{name}": shape for i in range(values["num_hidden_layers"])
                  for name, shape in layer.items()}


def write(family: str, feature: str, directory: pathlib.Path) -> pathlib.Path:
  """A cell's config.json and model.safetensors; the weights depend on the family alone."""
  directory.mkdir(parents=True)
  (directory / "config.json").write_text(json.dumps(fields(family, feature), indent=1))
  save_file({name: seeded.weight(family, name, shape) for name, shape in shapes(family, feature).items()},
            directory / "model.safetensors", metadata={"format": "pt"})
  return directory


def tokens(family: str) -> np.ndarray:
  """Token ids int64[1, LENGTH]."""
  return np.random.default_rng(len(family) + 7).integers(0, VOCAB, (1, LENGTH))


def cells() -> list[tuple[str, str]]:
  """Every family with every feature."""
  return [(family, feature) for family in FAMILIES for feature in FEATURES]


def key(family: str, feature: str) -> str:
  """The name of a cell in the file of references, and of its folder."""
  return f"{family}--{feature}".replace(" ", "_").replace(",", "")
