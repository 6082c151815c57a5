"""End tokens are kept in every form that a model takes; ids without a row in the embedding are found at the door."""

import json
import subprocess
import sys

import checkpoints
import jax
import numpy as np
import pytest
import transformers

from policylong import convert, score
from policylong.errors import UserError
from policylong.model import gguf_file, hf, hf_config, stored
from policylong.model.qwen import init_params
from policylong.model.tokenizer import load_tokenizer
from policylong.model.vocabulary import end_tokens

S, END, TURN = 260, 261, 262  # the special tokens of checkpoints.byte_level


def words(path):
  """The tokenizer of `checkpoints.byte_level`, through a GGUF file, without an end token."""
  fields = {"model": "gpt2", "pre": "gpt-2", **checkpoints.byte_level(), "bos_token_id": S}
  return load_tokenizer(checkpoints.write_gguf_of(checkpoints.SMALL, {}, path, words=fields))


def write_hf(folder, *, end=None, config=None, generation=None):
  """A small random model whose files name these end tokens."""
  tokenizer = words(folder.parent / f"{folder.name}.gguf")
  if end is not None:
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
  shape = hf_config.from_dict(checkpoints.SMALL, "config.json")
  hf.export_hf(init_params(shape, jax.random.key(0), np.float32), shape, tokenizer, folder)
  fields = json.loads((folder / "config.json").read_text())
  fields.pop("eos_token_id")
  (folder / "config.json").write_text(json.dumps(fields | ({} if config is None else {"eos_token_id": config})))
  (folder / "generation_config.json").unlink()
  if generation is not None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
  return folder


KINDS = [({"end": END}, {END}), ({"config": END}, {END}), ({"config": [END, TURN]}, {END, TURN}),
         ({"generation": [TURN, END]}, {END, TURN}), ({"end": END, "generation": TURN}, {END, TURN}),
         ({"end": END, "config": TURN, "generation": [S]}, {S, END, TURN}), ({}, set())]


@pytest.mark.parametrize(("named", "ends"), KINDS)
def test_all_end_tokens_go_through_every_form(named, ends, tmp_path):
  source = write_hf(tmp_path / "hf", **named)
  assert stored.open_model(source).end_tokens == ends
  convert.hf_to_orbax(source, tmp_path / "orbax", np.dtype("float32"))
  assert stored.open_model(tmp_path / "orbax").end_tokens == ends
  convert.orbax_to_hf(tmp_path / "orbax", tmp_path / "back", np.dtype("float32"))
  assert stored.open_model(tmp_path / "back").end_tokens == ends
  for file in ("config.json", "generation_config.json"):
    written = json.loads((tmp_path / "back" / file).read_text()).get("eos_token_id")
    assert (set() if written is None else {written} if isinstance(written, int) else set(written)) == ends
  theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "back")
  assert set(np.atleast_1d(theirs.eos_token_id).tolist()) - {None} == ends
  if isinstance(theirs.eos_token_id, list) and "end" in named:
    assert theirs.eos_token_id[0] == END, "the tokenizer's own comes first"


@pytest.mark.parametrize(("fields", "ends"), [
    ({"eos_token_id": END}, {END}), ({"eos_token_id": END, "eot_token_id": TURN}, {END, TURN}),
    ({"eom_token_id": TURN}, {TURN}), ({"eos_token_id": END, "eot_token_id": TURN, "eom_token_id": S}, {S, END, TURN}),
    ({}, set())])
def test_a_gguf_file_names_ends_of_a_text_a_turn_and_a_message(fields, ends, tmp_path):
  fields = {"model": "gpt2", "pre": "gpt-2", **checkpoints.byte_level(), **fields}
  path = checkpoints.write_gguf_of(checkpoints.SMALL, {}, tmp_path / "m.gguf", words=fields)
  assert gguf_file.end_tokens(path) == ends == end_tokens(load_tokenizer(path), path)


@pytest.mark.parametrize(("file", "value"), [
    ("generation_config.json", {"eos_token_id": "</s>"}), ("config.json", {"eos_token_id": [261, "x"]}),
    ("config.json", {"eos_token_id": -1}), ("generation_config.json", {"eos_token_id": True}),
    ("generation_config.json", [1])])
def test_a_file_that_names_no_token_ids_is_refused(file, value, tmp_path):
  words(tmp_path / "m.gguf").save_pretrained(tmp_path / "hf")
  (tmp_path / "hf" / file).write_text(json.dumps(value))
  with pytest.raises(UserError, match=file) as caught:
    end_tokens(load_tokenizer(tmp_path / "hf"), tmp_path / "hf")
  assert "\n" not in str(caught.value)


def enlarged(folder, count):
  """A model whose tokenizer has tokens that its embedding has no rows for."""
  write_hf(folder, end=END)
  tokenizer = load_tokenizer(folder)
  tokenizer.add_tokens([f"<new{i}>" for i in range(count)], special_tokens=True)
  tokenizer.save_pretrained(folder)
  return folder


def test_ids_beyond_the_embedding_are_refused_when_a_model_is_opened(tmp_path):
  def refused(call, count):
    with pytest.raises(UserError, match=rf"{count} tokens beyond the model's embedding of 263 rows .*'<new0>' with id "
                                        "263") as caught:
      call()
    assert "\n" not in str(caught.value)
  one, more = enlarged(tmp_path / "one", 1), enlarged(tmp_path / "more", 7)
  (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "hello"}\n')
  refused(lambda: stored.open_model(one), 1)
  refused(lambda: stored.open_model(more), 7)
  refused(lambda: score.score(str(more), str(tmp_path / "in.jsonl")), 7)
  refused(lambda: convert.hf_to_orbax(more, tmp_path / "orbax", np.dtype("float32")), 7)
  special = ("<s>", "</s>", "<e>", "<new0>", "<new1>")
  fields = {"model": "gpt2", "pre": "gpt-2", **checkpoints.byte_level(special=special)}
  path = checkpoints.write_gguf_of(checkpoints.SMALL, {}, tmp_path / "m.gguf", words=fields)
  refused(lambda: stored.open_model(path), 2)


@pytest.mark.parametrize("command", ["sft", "main"])
def test_runs_refuse_them_before_any_work(command, tmp_path):
  model = enlarged(tmp_path / "model", 2)
  (tmp_path / "docs.jsonl").write_text('{"id": "a", "text": "hello"}\n')
  (tmp_path / "chats.jsonl").write_text("{}\n")
  flags = {"sft": ["--config=configs/sft.py", f"--config.data.path={tmp_path / 'chats.jsonl'}"],
           "main": ["--config=configs/demo.py", "--config.model.sha256="]}[command]
  found = subprocess.run([sys.executable, "-m", f"policylong.{command}", *flags, f"--workdir={tmp_path / 'run'}",
                          f"--config.model.path={model}"], capture_output=True, text=True)
  assert found.returncode == 1
  assert found.stderr.splitlines()[-1].startswith(f"error: the tokenizer of {model} has 2 tokens beyond")
