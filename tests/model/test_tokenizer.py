"""A tokenizer gives the ids that others give, begins a text as transformers does, and survives being saved."""

import itertools
import json

import checkpoints
import numpy as np
import pytest
import regex
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import bytes_to_unicode

from policylong.errors import UserError
from policylong.model import gguf_file, hf_config
from policylong.model.tokenizer import beginning, encode, encode_begun, load_tokenizer, tokenizer_of

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


def _directory(folder, change=lambda values: None, **options):
  """An HF directory's tokenizer: byte-level BPE over 256 bytes and a few merges, its tokenizer.json changed."""
  words = checkpoints.byte_level()
  backend = Tokenizer(BPE({token: i for i, token in enumerate(words["tokens"])},
                          [tuple(merge.split(" ")) for merge in words["merges"]]))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(["<s>", "</s>", "<|eot|>"])
  transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>",
                                       **options).save_pretrained(folder)
  values = json.loads((folder / "tokenizer.json").read_text())
  change(values)
  (folder / "tokenizer.json").write_text(json.dumps(values))
  return folder


_CUT = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
_PADDED = {"strategy": {"Fixed": 512}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
           "pad_token": "!"}


@pytest.mark.parametrize("saved", [
    {"truncation": _CUT}, {"truncation": _CUT | {"direction": "Left", "max_length": 1}}, {"padding": _PADDED},
    {"padding": _PADDED | {"strategy": "BatchLongest", "pad_to_multiple_of": 64}},
    {"truncation": _CUT, "padding": _PADDED}])
def test_what_a_tokenizer_saved_of_cutting_and_padding_never_applies(saved, tmp_path):
  plain = load_tokenizer(_directory(tmp_path / "plain"))
  found = load_tokenizer(_directory(tmp_path / "cut", lambda values: values.update(saved)))
  for text in ("hello, hello " * 9, "a", ""):
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "plain")(text, add_special_tokens=False).input_ids
    for tokenizer in (plain, found):
      assert encode(tokenizer, text)[0].tolist() == ids == tokenizer(text, add_special_tokens=False).input_ids
      assert encode(tokenizer, text)[0].tolist() == ids, "nothing that was called since changed it"
  found.save_pretrained(tmp_path / "again")
  written = json.loads((tmp_path / "again" / "tokenizer.json").read_text())
  assert written["truncation"] is None and written["padding"] is None


def _template(single, tokens):
  """A post-processor of tokenizer.json."""
  parts = [{"Sequence": {"id": "A", "type_id": 0}} if part == "$A" else {"SpecialToken": {"id": part, "type_id": 0}}
           for part in single.split()]
  special = {token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]} for token in single.split()
             if token != "$A"}
  return {"type": "TemplateProcessing", "single": parts, "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
          "special_tokens": special}


_ONE = checkpoints.byte_level()["tokens"]


@pytest.mark.parametrize(("change", "options", "begins"), [
    (lambda values: None, {}, []),
    (lambda values: values.update(post_processor=_template("<s> $A", _ONE)), {}, ["<s>"]),
    (lambda values: values.update(post_processor=_template("<s> <|eot|> $A", _ONE)), {}, ["<s>", "<|eot|>"]),
    (lambda values: values.update(post_processor={"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        _template("<s> $A", _ONE)]}), {}, ["<s>"]),  # as Llama 3 has it
    (lambda values: values.update(post_processor=_template("$A </s>", _ONE)), {}, []),
    (lambda values: values.update(post_processor=_template("<s> $A </s>", _ONE)), {}, ["<s>"]),
    (lambda values: None, {"add_bos_token": True}, ["<s>"]),
    (lambda values: values.update(post_processor=_template("<s> $A", _ONE)), {"add_bos_token": False}, ["<s>"]),
    (lambda values: None, {"add_bos_token": True, "add_eos_token": True}, ["<s>"]),
])
def test_texts_begin_as_transformers_begins_them_and_do_not_end(change, options, begins, tmp_path):
  folder = _directory(tmp_path, change, **options)
  tokenizer = load_tokenizer(folder)
  assert tokenizer.convert_ids_to_tokens(beginning(tokenizer).tolist()) == begins
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  for text in ("hello", "hell on\n<s>earth", ""):
    ids = theirs(text).input_ids
    ended = ids[-1:] == [_ONE.index("</s>")]
    assert encode_begun(tokenizer, text).tolist() == ids[:len(ids) - ended]
  tokenizer.save_pretrained(tmp_path / "again")
  assert beginning(load_tokenizer(tmp_path / "again")).tolist() == beginning(tokenizer).tolist()


def test_an_end_that_is_left_out_is_told(tmp_path, caplog):
  folder = _directory(tmp_path, lambda values: values.update(post_processor=_template("$A </s>", _ONE)))
  config = hf_config.from_dict(checkpoints.SMALL, "config.json")
  tokenizer_of(folder, config)
  assert "puts </s> behind every text: left out" in caplog.text


def gguf(path, change=(), fields=()):
  words = {"model": "gpt2", "pre": "gpt-2", **checkpoints.byte_level(), "bos_token_id": 260, "eos_token_id": 261}
  words |= dict(change)
  return checkpoints.write_gguf_of(checkpoints.SMALL, {}, path, fields=fields,
                                   words={key: value for key, value in words.items() if value is not None})


@pytest.mark.parametrize(("change", "begun"), [
    ({}, False), ({"add_bos_token": True}, True), ({"add_bos_token": False}, False), ({"pre": "qwen2"}, False),
    ({"pre": "llama-bpe"}, True), ({"pre": "llama-bpe", "add_bos_token": False}, False),
    ({"add_bos_token": True, "add_eos_token": True}, True), ({"add_eos_token": True}, False)])
def test_a_gguf_file_begins_texts_as_its_metadata_says(change, begun, tmp_path):
  tokenizer = load_tokenizer(gguf(tmp_path / "m.gguf", change))
  assert beginning(tokenizer).tolist() == [260] * begun
  he = _ONE.index("he")
  assert tokenizer("he").input_ids == [260] * begun + [he] + [261] * bool(change.get("add_eos_token"))
  assert encode_begun(tokenizer, "he").tolist() == [260] * begun + [he]
  tokenizer.save_pretrained(tmp_path / "saved")
  assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")("he").input_ids == tokenizer("he").input_ids


def test_a_word_that_is_a_token_needs_no_merges_under_llama3s_rule(tmp_path):
  """Its tokenizer.json says ignore_merges: "old" is one token, though no merge makes it."""
  words = checkpoints.byte_level(special=("old", "<s>", "</s>"))
  kinds = [*words["token_type"][:260], 1, 3, 3]
  change = {**words, "token_type": kinds, "bos_token_id": 261, "eos_token_id": 262}
  whole = load_tokenizer(gguf(tmp_path / "a.gguf", {**change, "pre": "llama-bpe"}))
  merged = load_tokenizer(gguf(tmp_path / "b.gguf", {**change, "pre": "gpt-2"}))
  assert encode(whole, "old")[0].tolist() == [260]
  assert encode(merged, "old")[0].tolist() == [words["tokens"].index(letter) for letter in "old"]


@pytest.mark.parametrize(("change", "said"), [
    ({"pre": "tekken"}, "cuts words by the rule 'tekken'"), ({"pre": None}, r"cuts words by the rule '\(none\)'"),
    ({"model": "llama"}, "of kind 'llama'"), ({"model": "t5"}, "of kind 't5'"),
    ({"add_space_prefix": True}, "add_space_prefix = True"),
    ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces = True"), ({"add_sep_token": True}, "add_sep_token"),
    ({"lowercase": True}, r"tokenizer\.ggml\.lowercase, which could change"),
    ({"precompiled_charsmap": [1, 2]}, "precompiled_charsmap"),
    ({"bos_token_id": 263}, "bos_token_id = 263, but 263 tokens"), ({"eos_token_id": 2**31}, "eos_token_id = "),
    ({"bos_token_id": None, "add_bos_token": True}, "add_bos_token = True and no tokenizer.ggml.bos_token_id"),
    ({"merges": None}, "0 merges"), ({"token_type": [1, 1]}, "2 kinds of token")])
def test_what_is_said_of_tokens_and_not_followed_is_refused_by_name(change, said, tmp_path):
  with pytest.raises(UserError, match=said) as caught:
    load_tokenizer(gguf(tmp_path / "m.gguf", change))
  assert "\n" not in str(caught.value)


def test_what_is_said_of_other_things_is_read_over(tmp_path):
  change = {"scores": [0.0] * 263, "fim_pre_token_id": 1, "seperator_token_id": 2, "mask_token_id": 3,
            "add_space_prefix": False, "eot_token_id": 262}
  tokenizer = load_tokenizer(gguf(tmp_path / "m.gguf", change, [("tokenizer.chat_template.tool", "x")]))
  assert encode(tokenizer, "hello")[0].tolist() == [_ONE.index("hello")]
