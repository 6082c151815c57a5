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
from transformers.convert_slow_tokenizer import bytes_to_unicode

# The shape of a model for `byte_level` tokens.
SMALL = {"model_type": "llama", "vocab_size": 263, "max_position_embeddings": 128, "hidden_size": 32,
         "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
         "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True}


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


def byte_level(merges=(("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o")), special=("<s>", "</s>", "<|eot|>")
               ) -> dict[str, list]:
  """A small byte-level BPE as a GGUF file has it: tokens, merges, and token_type (1 normal, 3 control)."""
  tokens = [*bytes_to_unicode().values(), *(a + b for a, b in merges), *special]
  return {"tokens": tokens, "merges": [f"{a} {b}" for a, b in merges],
          "token_type": [1] * (len(tokens) - len(special)) + [3] * len(special)}


def write_gguf(models: dict, case: str, path: pathlib.Path, extra=(), **options) -> pathlib.Path:
  """A case as a GGUF file; see `write_gguf_of`. `extra` adds (key, float) fields."""
  config = models[case]["config"]
  config = config | {"rope_theta": config["rope_parameters"]["rope_theta"]}
  return write_gguf_of(config, tensors(models, case), path, fields=extra, **options)


def write_gguf_of(config: dict, weights: dict[str, np.ndarray], path: pathlib.Path, *, fields=(), words=None,
                  rope_freqs=None, split: int = 0, big_endian: bool = False) -> pathlib.Path:
  """A GGUF file as llama.cpp's converter lays it out.

  `fields` are (key, value), `words` fields of its tokenizer without "tokenizer.ggml." in front; `split` is the number
  of tensors in a part, of which the first one's path is returned. A weight may be a (bytes, quantised type).
  """
  family, heads = config["model_type"], config["num_attention_heads"]
  head_dim = config.get("head_dim") or config["hidden_size"] // heads
  path.parent.mkdir(parents=True, exist_ok=True)
  writer = gguf.GGUFWriter(path, family, split_max_tensors=split,
                           endianess=gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE)
  writer.add_vocab_size(config["vocab_size"])
  writer.add_context_length(config["max_position_embeddings"])
  writer.add_embedding_length(config["hidden_size"])
  writer.add_block_count(config["num_hidden_layers"])
  writer.add_feed_forward_length(config["intermediate_size"])
  writer.add_head_count(heads)
  writer.add_head_count_kv(config["num_key_value_heads"])
  writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
  writer.add_rope_freq_base(config["rope_theta"])
  writer.add_key_length(head_dim)
  for key, value in [*fields, *((f"tokenizer.ggml.{key}", value) for key, value in (words or {}).items())]:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
           list: writer.add_array}[type(value)]
    add(key, value)
  names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, family.upper()), config["num_hidden_layers"])
  if rope_freqs is not None:
    writer.add_tensor("rope_freqs.weight", np.asarray(rope_freqs, np.float32))
  for name, array in weights.items():
    theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if isinstance(array, tuple):
      writer.add_tensor(theirs, array[0], raw_dtype=array[1])
      continue
    if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
      halves = array.reshape(-1, 2, head_dim // 2, array.shape[1])  # [head, half, pair, D] -> [head, pair, half, D]
      array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
    writer.add_tensor(theirs, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))[0] if split else path
