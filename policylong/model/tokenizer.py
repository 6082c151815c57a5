"""The tokenizer of a model: from an HF directory, or rebuilt from what a GGUF file holds.

A GGUF file holds a byte-level BPE as its tokens, merges and kinds of token, and names the rule that cuts a text
into words before merging ("pre"). Both ways give a transformers fast tokenizer, with offsets, that can be saved.

What a tokenizer puts around a text is read from it here, and applied in one way everywhere: what it begins a text with
(a Llama's BOS) stands in front of every row that is scored, screened or trained on; an end token behind a text is left
out, because a row goes on behind each of its texts, and an end would cut it. Texts are cut and padded where rows are
made; what tokenizer.json says of that never applies.
"""

import logging
import os
import pathlib
import re

import numpy as np
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from policylong.errors import UserError
from policylong.model import gguf_file
from policylong.model.qwen import ModelConfig
from policylong.model.vocabulary import check_ids

log = logging.getLogger(__name__)

_CONTROL, _USER_DEFINED = 3, 4  # gguf.TokenType
_QWEN2_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                r"\s*[\r\n]+|\s+(?!\S)|\s+")
_LLAMA3_WORDS = _QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SPECIAL = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
            "pad_token": "padding_token_id"}
# The rules that cut words, and the names under which files have each.
_RULES = {"smollm": "smollm", "gpt-2": "gpt-2", "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2", "llama-bpe": "llama-bpe",
          "llama3": "llama-bpe", "llama-v3": "llama-bpe"}
# Fields of a GGUF file's tokenizer: those that are read, those that change no token of a text, and those that do unless
# they have a value which says that they do not. Any other is refused.
_READ = ("model", "pre", "tokens", "token_type", "merges", "add_bos_token", "add_eos_token", *_SPECIAL.values(),
         *gguf_file.ENDS)
_HARMLESS = re.compile(r"scores|token_type_count|(fim_\w+|prefix|suffix|middle|seperator|mask|cls)_token_id")
_ONLY = {"add_space_prefix": False, "remove_extra_whitespaces": False, "add_sep_token": False}


def load_tokenizer(path: str | os.PathLike) -> transformers.PreTrainedTokenizerFast:
  """The fast tokenizer of an HF directory or a GGUF file.

  Raises:
    UserError: there is none, it is damaged, or a GGUF file's kind of tokenizer is not supported.
  """
  path = pathlib.Path(path)
  tokenizer = _from_directory(path) if path.is_dir() else _from_gguf(path)
  backend = tokenizer.backend_tokenizer
  if backend.truncation or backend.padding:
    backend.no_truncation()
    backend.no_padding()
    for name in ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of"):
      tokenizer.init_kwargs.pop(name, None)  # what transformers took from them would be saved again
  return tokenizer


def tokenizer_of(path: str | os.PathLike, config: ModelConfig) -> transformers.PreTrainedTokenizerFast:
  """`load_tokenizer` for a model that reads texts: `check_ids`, and a line where an end token is left out."""
  tokenizer = load_tokenizer(path)
  check_ids(tokenizer.get_vocab(), config.vocab_size, path)
  if left_out := _around(tokenizer)[1]:
    log.warning("the tokenizer of %s puts %s behind every text: left out, since rows go on behind a text", path,
                " ".join(tokenizer.convert_ids_to_tokens(left_out)))
  return tokenizer


def beginning(tokenizer: transformers.PreTrainedTokenizerFast) -> np.ndarray:
  """int32[b]: what transformers' `add_special_tokens` puts in front of a text: a BOS, of many tokenizers nothing."""
  return np.asarray(_around(tokenizer)[0], np.int32)


def encode_begun(tokenizer: transformers.PreTrainedTokenizerFast, text: str) -> np.ndarray:
  """int32[T]: the tokens of a text behind its `beginning`."""
  return np.concatenate([beginning(tokenizer), encode(tokenizer, text)[0]])


def _around(tokenizer: transformers.PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
  """The ids that the tokenizer puts in front of a text and behind it."""
  encoding = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True)
  own = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
  if not own:
    return [], []
  return encoding.ids[:own[0]], encoding.ids[own[-1] + 1:]


def encode(tokenizer: transformers.PreTrainedTokenizerFast, text: str) -> tuple[np.ndarray, np.ndarray]:
  """Token ids int32[T] and character offsets int32[T, 2] of a text; no special token is added."""
  encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
  return np.asarray(encoding.ids, np.int32), np.asarray(encoding.offsets, np.int32).reshape(-1, 2)


def _from_directory(path: pathlib.Path) -> transformers.PreTrainedTokenizerFast:
  if not (path / "tokenizer.json").exists():
    raise UserError(f"{path} has no tokenizer.json: an HF model directory with a fast tokenizer is needed")
  try:
    # not AutoTokenizer: transformers 5 rebuilds some models' tokenizers from parts instead of reading the file
    return transformers.PreTrainedTokenizerFast.from_pretrained(path)
  except Exception as error:  # transformers and tokenizers raise nearly anything for a damaged file
    raise UserError(f"no tokenizer can be read from {path} ({str(error).splitlines()[0]})") from error


def _from_gguf(path: pathlib.Path) -> transformers.PreTrainedTokenizerFast:
  file = gguf_file.open_gguf(path)
  _refuse_unsupported(path, file)

  def get(name: str, default=None):
    return gguf_file.field(file, f"tokenizer.ggml.{name}", default)

  tokens, merges, kinds = (get(name, []) for name in ("tokens", "merges", "token_type"))
  if not merges or len(kinds) != len(tokens):
    raise UserError(f"the tokenizer in {path} has {len(tokens)} tokens, {len(kinds)} kinds of token and "
                    f"{len(merges)} merges; wanted as many kinds as tokens, and merges")
  rule = _RULES[get("pre")]
  # Llama 3's is the one rule under which a word that is a token is never made of merges.
  backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)},
                          merges=[tuple(merge.split(" ", 1)) for merge in merges], ignore_merges=rule == "llama-bpe"))
  _set_words(backend, rule)
  backend.decoder = decoders.ByteLevel()
  for token, kind in zip(tokens, kinds):
    if kind == _CONTROL:
      backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    elif kind == _USER_DEFINED:
      backend.add_tokens([AddedToken(token, special=False, normalized=False)])
  special = {}
  for name, key in _SPECIAL.items():
    if (index := get(key)) is not None:
      if not 0 <= index < len(tokens):
        raise UserError(f"{path} has tokenizer.ggml.{key} = {index}, but {len(tokens)} tokens")
      special[name] = tokens[index]
  # As llama.cpp has it, a file of Llama 3's rule that does not say begins its texts.
  begun = get("add_bos_token", rule == "llama-bpe")
  for added, token in ((begun, "bos_token"), (get("add_eos_token", False), "eos_token")):
    if added and token not in special:
      raise UserError(f"{path} has tokenizer.ggml.add_{token} = True and no tokenizer.ggml.{token}_id to add")
  return transformers.PreTrainedTokenizerFast(
      tokenizer_object=backend, clean_up_tokenization_spaces=False,
      chat_template=gguf_file.field(file, "tokenizer.chat_template"),
      model_max_length=gguf_file.read_config(path).max_positions,
      **({"add_bos_token": begun, "add_eos_token": get("add_eos_token", False)} if begun or get("add_eos_token")
         else {}), **special)


def _refuse_unsupported(path: pathlib.Path, file: gguf_file.File) -> None:
  """Refuses by name what says of a text's tokens something that is not followed here."""
  instead = "give an HF directory of this model instead"
  kind = gguf_file.field(file, "tokenizer.ggml.model", "(none)")
  if kind != "gpt2":
    raise UserError(f"the tokenizer in {path} is of kind {kind!r}; supported is 'gpt2' (byte-level BPE): {instead}")
  rule = gguf_file.field(file, "tokenizer.ggml.pre", "(none)")
  if rule not in _RULES:
    raise UserError(f"the tokenizer in {path} cuts words by the rule {rule!r}; supported are {', '.join(_RULES)}: "
                    f"{instead}")
  for field in file.fields:
    name = field.removeprefix("tokenizer.ggml.")
    if not field.startswith("tokenizer.") or field.startswith(("tokenizer.chat_template", "tokenizer.huggingface.")):
      continue
    if name in _ONLY:
      if (value := gguf_file.field(file, field)) != _ONLY[name]:
        raise UserError(f"{path} has {field} = {value}, which is not supported (wanted {_ONLY[name]}): {instead}")
    elif name == field or (name not in _READ and not _HARMLESS.fullmatch(name)):
      raise UserError(f"{path} has {field}, which could change a text's tokens and is not supported: {instead}")


def _set_words(backend: Tokenizer, rule: str) -> None:
  """How a text is cut into words, by the name of the rule."""
  whole_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  if rule == "smollm":
    # every digit alone first, then GPT-2's words
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  elif rule == "gpt-2":
    words = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
  elif rule == "qwen2":
    backend.normalizer = normalizers.NFC()
    words = [pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated"), whole_bytes]
  else:
    words = [pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated"), whole_bytes]
  backend.pre_tokenizer = pre_tokenizers.Sequence(words)
