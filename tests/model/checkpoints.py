"""Small checkpoints for the tests: HF directories and GGUF files from the seeds of tests/reference."""

import json
import pathlib

import gguf
import numpy as np
import seeded
from safetensors.numpy import save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast


def tensors(models: dict, case: str) -> dict[str, np.ndarray]:
  """A case's weights by HF name."""
  return {name: seeded.weight(case, name, tuple(shape)) for name, shape in models[case]["tensors"].items()}


def tokenizer() -> PreTrainedTokenizerFast:
  """97 words, "w0" .. "w96"."""
  backend = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0", bos_token="w1", eos_token="w2")


def write_hf(models: dict, case: str, directory: pathlib.Path, change=lambda weights: None,
             fields=None) -> pathlib.Path:
  """An HF directory; `change` may edit the weights, `fields` the config."""
  directory.mkdir(parents=True, exist_ok=True)
  weights = tensors(models, case)
  change(weights)
  save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
  (directory / "config.json").write_text(json.dumps(models[case]["config"] | (fields or {})))
  tokenizer().save_pretrained(directory)
  return directory


def write_gguf(models: dict, case: str, path: pathlib.Path, extra=()) -> pathlib.Path:
  """A GGUF file as llama.cpp's converter lays it out; `extra` adds (key, float) fields."""
  config = models[case]["config"]
  family, heads = config["model_type"], config["num_attention_heads"]
  head_dim = config.get("head_dim") or config["hidden_size"] // heads
  writer = gguf.GGUFWriter(path, family)
  writer.add_vocab_size(config["vocab_size"])
  writer.add_context_length(config["max_position_embeddings"])
  writer.add_embedding_length(config["hidden_size"])
  writer.add_block_count(config["num_hidden_layers"])
  writer.add_feed_forward_length(config["intermediate_size"])
  writer.add_head_count(heads)
  writer.add_head_count_kv(config["num_key_value_heads"])
  writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
  writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
  writer.add_key_length(head_dim)
  for key, value in extra:
    writer.add_float32(key, value)
  names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, family.upper()), config["num_hidden_layers"])
  for name, array in tensors(models, case).items():
    if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
      halves = array.reshape(-1, 2, head_dim // 2, array.shape[1])  # [head, half, pair, D] -> [head, pair, half, D]
      array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
    writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path
