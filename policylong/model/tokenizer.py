"""The tokenizer of a model: from an HF directory, or rebuilt from what a GGUF file holds.

A GGUF file holds a byte-level BPE as its tokens, merges and kinds of token, and names the rule that cuts a text
into words before merging ("pre"). Both ways give a transformers fast tokenizer, with offsets, that can be saved.
"""

import json
import os
import pathlib

import numpy as np

# Only its tokenizers and configs are used; it need not say at each start that PyTorch is not there.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from policylong.errors import UserError
from policylong.model import gguf_file

_CONTROL, _USER_DEFINED = 3, 4  # gguf.TokenType
_QWEN2_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                r"\s*[\r\n]+|\s+(?!\S)|\s+")
_LLAMA3_WORDS = _QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SPECIAL = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
            "pad_token": "padding_token_id"}


def load_tokenizer(path: str | os.PathLike) -> transformers.PreTrainedTokenizerFast:
  """The fast tokenizer of an HF directory or a GGUF file.

  Raises:
    UserError: there is none, it is damaged, or a GGUF file's kind of tokenizer is not supported.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    return _from_gguf(path)
  if not (path / "tokenizer.json").exists():
    raise UserError(f"{path} has no tokenizer.json: an HF model directory with a fast tokenizer is needed")
  try:
    # not AutoTokenizer: transformers 5 rebuilds some models' tokenizers from parts instead of reading the file
    return transformers.PreTrainedTokenizerFast.from_pretrained(path)
  except Exception as error:  # transformers and tokenizers raise nearly anything for a damaged file
    raise UserError(f"no tokenizer can be read from {path} ({str(error).splitlines()[0]})") from error


def end_tokens(tokenizer: transformers.PreTrainedTokenizerFast, path: str | os.PathLike) -> frozenset[int]:
  """What ends a generation: the tokenizer's end token, and those of an HF directory's generation_config.json.

  Raises:
    UserError: that file is damaged.
  """
  found = {tokenizer.eos_token_id} - {None}
  where = pathlib.Path(path) / "generation_config.json"
  if where.exists():
    try:
      named = json.loads(where.read_text()).get("eos_token_id")
      found |= set(named if isinstance(named, list) else [] if named is None else [int(named)])
    except (ValueError, TypeError, AttributeError) as error:
      raise UserError(f"{where} cannot be read ({error}): repair or remove it") from error
  return frozenset(found)


def encode(tokenizer: transformers.PreTrainedTokenizerFast, text: str) -> tuple[np.ndarray, np.ndarray]:
  """Token ids int32[T] and character offsets int32[T, 2] of a text; no special token is added."""
  encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
  return np.asarray(encoding.ids, np.int32), np.asarray(encoding.offsets, np.int32).reshape(-1, 2)


def _from_gguf(path: pathlib.Path) -> transformers.PreTrainedTokenizerFast:
  reader = gguf_file.open_gguf(path)
  kind = gguf_file.field(reader, "tokenizer.ggml.model", "(none)")
  if kind != "gpt2":
    raise UserError(f"the tokenizer in {path} is of kind {kind!r}; supported is 'gpt2' (byte-level BPE): "
                    "give an HF directory of this model instead")
  tokens = gguf_file.field(reader, "tokenizer.ggml.tokens", [])
  merges = gguf_file.field(reader, "tokenizer.ggml.merges", [])
  kinds = gguf_file.field(reader, "tokenizer.ggml.token_type", [])
  if not merges or len(kinds) != len(tokens):
    raise UserError(f"the tokenizer in {path} has {len(tokens)} tokens, {len(kinds)} kinds of token and "
                    f"{len(merges)} merges; wanted as many kinds as tokens, and merges")
  backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)},
                          merges=[tuple(merge.split(" ", 1)) for merge in merges]))
  _set_words(backend, path, gguf_file.field(reader, "tokenizer.ggml.pre", "(none)"))
  backend.decoder = decoders.ByteLevel()
  for token, kind in zip(tokens, kinds):
    if kind == _CONTROL:
      backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    elif kind == _USER_DEFINED:
      backend.add_tokens([AddedToken(token, special=False, normalized=False)])
  special = {name: gguf_file.field(reader, f"tokenizer.ggml.{key}") for name, key in _SPECIAL.items()}
  return transformers.PreTrainedTokenizerFast(
      tokenizer_object=backend, clean_up_tokenization_spaces=False,
      chat_template=gguf_file.field(reader, "tokenizer.chat_template"),
      model_max_length=gguf_file.read_config(path).max_positions,
      **{name: tokens[index] for name, index in special.items() if index is not None})


def _set_words(backend: Tokenizer, path: pathlib.Path, rule: str) -> None:
  """How a text is cut into words, by the name that the GGUF file gives the rule."""
  whole_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  if rule == "smollm":
    # every digit alone first, then GPT-2's words
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  elif rule == "gpt-2":
    words = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
  elif rule == "qwen2":
    backend.normalizer = normalizers.NFC()
    words = [pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated"), whole_bytes]
  elif rule == "llama-bpe":
    words = [pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated"), whole_bytes]
  else:
    raise UserError(f"the tokenizer in {path} cuts words by the rule {rule!r}; supported are smollm, qwen2, gpt-2 "
                    "and llama-bpe: give an HF directory of this model instead")
  backend.pre_tokenizer = pre_tokenizers.Sequence(words)
