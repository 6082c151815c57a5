"""The tokenizer rebuilt from a GGUF file gives the ids that others give, and survives being saved."""

import itertools

import checkpoints
import numpy as np
import pytest
import regex
from transformers.convert_slow_tokenizer import bytes_to_unicode

from policylong.errors import UserError
from policylong.model import gguf_file
from policylong.model.tokenizer import encode, load_tokenizer

# where white space meets a digit: the digit is cut off first, so the space before it stays whole
DIGIT_TEXTS = ["a\n\n5 and  7", "   42", "x =\t\t1\n\n2\n   3", "year 2024  1999", "٣٤٥ １２ x²"]


@pytest.fixture(scope="module")
def tokenizer(material):
  return load_tokenizer(material / "smollm2.gguf")


def test_ids_are_those_of_transformers(tokenizer, smollm2):
  cases = smollm2["tokenizer"] + list(smollm2["texts"].values())
  for case in cases:
    assert encode(tokenizer, case["text"])[0].tolist() == case["ids"], case["text"]
    assert tokenizer(case["text"], add_special_tokens=False)["input_ids"] == case["ids"]


def brute_force(reader, text: str) -> list[int]:
  """Byte-level BPE from the file's own lists: digits apart, GPT-2's words, then the best merge again and again."""
  ids = {token: i for i, token in enumerate(gguf_file.field(reader, "tokenizer.ggml.tokens"))}
  ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(gguf_file.field(reader, "tokenizer.ggml.merges"))}
  letters = bytes_to_unicode()
  found = []
  for piece in regex.findall(r"\p{N}|\P{N}+", text):
    for word in regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", piece):
      parts = [letters[byte] for byte in word.encode()]
      while True:
        pairs = [(ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(parts))]
        if not pairs or min(pairs)[0] == len(ranks):
          break
        i = min(pairs)[1]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
      found += [ids[part] for part in parts]
  return found


def test_ids_are_those_of_a_plain_byte_pair_encoding(tokenizer, smollm2, material):
  reader = gguf_file.open_gguf(material / "smollm2.gguf")
  plain = [case["text"] for case in smollm2["tokenizer"] if "<|" not in case["text"]]
  for text in DIGIT_TEXTS + plain:
    assert encode(tokenizer, text)[0].tolist() == brute_force(reader, text), text


def test_offsets_cover_a_text_and_decoding_gives_it_back(tokenizer, smollm2):
  for case in smollm2["texts"].values():
    ids, offsets = encode(tokenizer, case["text"])
    assert ids.dtype == np.int32 and offsets.shape == (len(ids), 2)
    assert offsets[0, 0] == 0 and offsets[-1, 1] == len(case["text"])
    assert (offsets[1:, 0] <= offsets[:-1, 1]).all()
    assert tokenizer.decode(ids) == case["text"]
    for (start, end), token in zip(offsets, ids):
      if case["text"].isascii():
        assert tokenizer.decode([token]) == case["text"][start:end]


def test_an_empty_text_has_no_tokens(tokenizer):
  ids, offsets = encode(tokenizer, "")
  assert ids.shape == (0,) and offsets.shape == (0, 2)


def test_saved_and_loaded_it_is_the_same(tokenizer, smollm2, tmp_path):
  tokenizer.save_pretrained(tmp_path)
  again = load_tokenizer(tmp_path)
  assert (again.eos_token_id, again.bos_token_id, len(again)) == (2, 1, 49152)
  assert again.chat_template == tokenizer.chat_template
  for text in DIGIT_TEXTS + [case["text"] for case in smollm2["tokenizer"]]:
    assert encode(again, text)[0].tolist() == encode(tokenizer, text)[0].tolist()


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"has no tokenizer\.json"):
    load_tokenizer(tmp_path)
  checkpoints.tokenizer().save_pretrained(tmp_path)
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(UserError, match="no tokenizer can be read from"):
    load_tokenizer(tmp_path)


def test_a_gguf_file_without_a_tokenizer_is_refused(models, tmp_path):
  file = checkpoints.write_gguf(models, "llama", tmp_path / "a.gguf")
  with pytest.raises(UserError, match=r"of kind '\(none\)'; supported is 'gpt2'"):
    load_tokenizer(file)
