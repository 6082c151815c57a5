"""Fine-tuning from files to an export: it learns answers, holds some out, survives kills, and refuses in a sentence."""

import dataclasses
import json
import math
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from configs import sft
from policylong import config as config_lib
from policylong import convert
from policylong.corpus.conversations import Conversation
from policylong.errors import UserError
from policylong.model import stored
from policylong.model.tokenizer import load_tokenizer
from policylong.sft import tuning
from policylong.storage.workdir import Workdir
from policylong.synthesis import storage
from policylong.synthesis.storage import read_tokens, sequence_paths
from policylong.training.metrics import MetricsLog
from tests.small_chat import QWEN2_SHAPED, QWEN3_SHAPED, conversation, small_tuning, write_chats, write_model

REPOSITORY = pathlib.Path(__file__).parents[2]
BAD = ["not json", '{"text": "x"}', [{"role": "user", "content": "Hi"}], [{"role": "ghost", "content": "4"}],
       [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "word " * 300}]]
SKIPPED = {"not JSON": 1, "messages missing": 1, "no assistant turn": 1, "longer than 128 tokens": 1,
           "a role other than system, developer, user, assistant, tool": 1}


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
  """The same small programs are compiled by every run here: JAX's own cache keeps them."""
  before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir",
                                                         "jax_persistent_cache_min_compile_time_secs")}
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, material):
  folder = tmp_path_factory.mktemp("sft")
  write_model(folder / "model", material)
  write_chats(folder / "chats.jsonl", [*map(conversation, range(60)), *BAD])
  return folder


def config_of(folder, **changes):
  values = small_tuning(folder / "model", folder / "chats.jsonl")
  for dotted, value in changes.items():
    group, name = dotted.split("__")
    values[group][name] = value
  return config_lib.parse(values, config_lib.FineTuning)


@pytest.fixture(scope="module")
def done(folder):
  """(working directory, what final.json says) of a run that nobody disturbed."""
  return Workdir(folder / "whole"), tuning.run(config_of(folder), folder / "whole")


def texts_of(paths, tokenizer) -> list[str]:
  """The packed conversations, as text."""
  found = []
  for tokens, segments, _ in read_tokens(paths).reshape(-1, 3, 128):
    found += [tokenizer.decode(tokens[segments == i]) for i in range(1, segments.max() + 1)]
  return found


def test_the_loss_on_held_out_answers_falls(done):
  _, final = done
  loss = final["held_out"]
  assert loss["before"] == pytest.approx(math.log(49152), abs=0.2)  # a random model knows nothing
  assert loss["after"] < loss["before"] - 1  # six steps teach which few of 49,152 tokens are ever said
  assert final["step"] == 6 and loss["tokens"] > 100


def test_every_conversation_is_either_held_out_or_trained_on_and_what_is_skipped_is_counted(done, folder):
  workdir, _ = done
  tokenizer = load_tokenizer(folder / "model")
  trained = texts_of(sequence_paths(workdir.sequences), tokenizer)
  held_out = texts_of(sequence_paths(workdir.held_out_sequences), tokenizer)
  wanted = [tokenizer.apply_chat_template(conversation(i), tokenize=False) for i in range(60)]
  assert sorted(trained + held_out) == sorted(wanted)
  counts = json.loads(workdir.sequences_json.read_text())
  # A fifth of all that are well formed, of which the one that is too long may be one.
  assert len(held_out) in (11, 12) and counts["held_out_conversations"] == len(held_out)
  assert counts["trained_conversations"] == len(trained) and counts["skipped"] == SKIPPED
  assert counts["trained_tokens"] == sum(len(tokenizer(text).input_ids) for text in trained)
  lengths = np.array([len(tokenizer(text).input_ids) for text in trained])
  assert counts["mean_attended_tokens"] == pytest.approx((lengths**2).sum() / lengths.sum())


def test_only_answers_are_learnt_or_everything(done, folder, tmp_path, monkeypatch):
  workdir, _ = done
  tokenizer = load_tokenizer(folder / "model")
  for tokens, _, learnt in read_tokens(sequence_paths(workdir.sequences)).reshape(-1, 3, 128):
    said = tokenizer.decode(tokens[learnt == 1])
    assert said and all(part.startswith("It is ") or not part for part in said.split("<|im_end|>"))
  monkeypatch.setattr(tuning, "Trainer", Stop.now)
  with pytest.raises(Stop):
    tuning.run(config_of(folder, data__loss_on="everything"), tmp_path)
  packed = read_tokens(sequence_paths(Workdir(tmp_path).sequences)).reshape(-1, 3, 128)
  np.testing.assert_array_equal(packed[:, 2], packed[:, 1] > 0)
  held_out = [read_tokens(sequence_paths(run.held_out_sequences)) for run in (workdir, Workdir(tmp_path))]
  np.testing.assert_array_equal(*held_out)


class Stop(BaseException):
  """A kill, as the process itself sees it."""

  @classmethod
  def now(cls, *_, **__):
    raise cls


def stopped(config, directory, monkeypatch, owner, name, call, after=False):
  """Runs until the call number `call` of a function, and stops there, before it or `after` it."""
  function, calls = getattr(owner, name), iter(range(1, 1 << 30))

  def dying(*arguments, **keywords):
    mine = next(calls) == call
    if mine and not after:
      raise Stop
    result = function(*arguments, **keywords)
    if mine:
      raise Stop
    return result

  with monkeypatch.context() as patched:
    patched.setattr(owner, name, dying)
    with pytest.raises(Stop):
      tuning.run(config, directory)


def files_of(workdir: Workdir) -> dict[str, bytes]:
  whole = pathlib.Path(workdir.directory)
  return {str(path.relative_to(whole)): path.read_bytes() for pattern in ("*.json", "sequences/**/*", "model/**/*")
          for path in sorted(whole.glob(pattern)) if path.is_file()}


def test_stopped_anywhere_and_started_again_it_ends_with_the_same_bytes(done, folder, monkeypatch):
  whole, final = done
  config, directory = config_of(folder), folder / "stopped"
  stopped(config, directory, monkeypatch, storage._Shard, "write", 2)
  stopped(config, directory, monkeypatch, storage._Shard, "close", 2)
  stopped(config, directory, monkeypatch, tuning, "write_json", 1)
  stopped(config, directory, monkeypatch, tuning, "write_json", 2, after=True)
  stopped(config, directory, monkeypatch, MetricsLog, "write", 4, after=True)
  stopped(config, directory, monkeypatch, tuning, "write_json", 1)
  assert tuning.run(config, directory) == final
  workdir = Workdir(directory)
  assert files_of(workdir) == files_of(whole) and len(files_of(whole)) > 6
  models = [stored.open_model(str(run.directory)).load(None, None) for run in (whole, workdir)]
  jax.tree.map(np.testing.assert_array_equal, *models)
  losses = [[json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()] for run in (whole, workdir)]
  assert len(losses[0]) == 6 and losses[0] == losses[1]


def test_conversations_that_changed_since_they_were_packed_are_refused(folder, tmp_path, monkeypatch):
  chats = write_chats(tmp_path / "chats.jsonl", map(conversation, range(20)))
  config = config_of(folder, data__path=str(chats))
  monkeypatch.setattr(tuning, "Trainer", Stop.now)
  for _ in range(2):
    with pytest.raises(Stop):
      tuning.run(config, tmp_path / "run")
  write_chats(chats, map(conversation, range(21)))
  assert "began with other conversations than" in refusal(config, tmp_path / "run")
  write_chats(chats, map(conversation, range(20)))
  with pytest.raises(Stop):
    tuning.run(config, tmp_path / "run")


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Lima"}}}


@pytest.mark.parametrize("answer, why", [
    ({"content": "", "tool_calls": [CALL]}, r"the chat template does not show tool calls \(4\)\): take a model whose"),
    ({"content": "", "tool_calls": []}, r"an empty answer \(4\)\): every line must be"),
    ({"content": "Two.", "reasoning_content": "Count on."},
     r"the chat template does not show an answer's reasoning \(4\)\): take a model whose chat template knows this"),
    ({"content": "Two.", "weight": 0}, r"every assistant turn has weight 0 \(4\)\): every line"),
])
def test_no_empty_answer_and_no_half_of_one_is_learnt(folder, tmp_path, answer, why):
  """SmolLM2's template knows neither tools nor reasoning."""
  chats = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", **answer}] for i in range(4)]
  path = write_chats(tmp_path / "chats.jsonl", chats)
  with pytest.raises(UserError, match=rf"has no conversation to train on \(skipped: {why}"):
    tuning.run(config_of(folder, data__path=str(path), data__held_out=0.0), tmp_path / "run")


def test_of_a_conversation_the_answers_that_count_are_learnt_and_the_others_counted(folder, tmp_path, monkeypatch):
  turns = [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "Wrong.", "weight": 0},
           {"from": "human", "value": "Two?"}, {"from": "gpt", "value": ""},
           {"from": "human", "value": "Three?"}, {"from": "gpt", "value": "Right."}]
  (tmp_path / "chats.jsonl").write_text("".join(
      json.dumps({"conversations": [{"from": "human", "value": f"{i}"}, turns[1], *turns]}) + "\n" for i in range(6)))
  monkeypatch.setattr(tuning, "Trainer", Stop.now)
  with pytest.raises(Stop):
    tuning.run(config_of(folder, data__path=str(tmp_path / "chats.jsonl"), data__held_out=0.0), tmp_path / "run")
  workdir, tokenizer = Workdir(tmp_path / "run"), load_tokenizer(folder / "model")
  packed = read_tokens(sequence_paths(workdir.sequences)).reshape(-1, 3, 128)
  said = "".join(tokenizer.decode(tokens[learnt == 1]) for tokens, _, learnt in packed)
  assert said == 6 * "Right.<|im_end|>"
  assert json.loads(workdir.sequences_json.read_text())["skipped"] == {"an empty answer": 6}


def test_a_finished_run_is_left_alone(done, folder):
  workdir, final = done
  before = {path: path.stat().st_mtime_ns for path in pathlib.Path(workdir.directory).rglob("*")}
  assert tuning.run(config_of(folder), workdir.directory) == final
  assert {path: path.stat().st_mtime_ns for path in pathlib.Path(workdir.directory).rglob("*")} == before


def test_the_export_has_the_weights_and_chats_in_the_same_template(done, folder, tmp_path):
  workdir, _ = done
  assert convert.orbax_to_hf(pathlib.Path(workdir.directory), tmp_path / "hf", np.dtype(np.float32)) < 1e-5
  messages = conversation(3)
  exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
  start = load_tokenizer(folder / "model")
  assert exported.apply_chat_template(messages, tokenize=False) == start.apply_chat_template(messages, tokenize=False)
  prompts = [words.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
             for words in (exported, start)]
  assert prompts[0] == prompts[1]
  weights = load_file(tmp_path / "hf" / "model.safetensors")
  params = stored.open_model(str(workdir.checkpoints / "6")).load(None, None)
  np.testing.assert_array_equal(weights["model.embed_tokens.weight"], params["embedding"])
  np.testing.assert_array_equal(weights["model.layers.1.mlp.down_proj.weight"], params["layers"]["down"][1].T)
  assert np.abs(weights["model.embed_tokens.weight"]
                - load_file(folder / "model" / "model.safetensors")["model.embed_tokens.weight"]).max() > 1e-3


def test_a_run_goes_on_from_a_runs_checkpoint(done, folder, tmp_path):
  workdir, final = done
  again = tuning.run(config_of(folder, model__path=str(workdir.directory), training__steps=1), tmp_path / "again")
  assert again["held_out"]["before"] == final["held_out"]["after"]
  earlier = stored.open_model(str(workdir.checkpoints / "4"))
  assert earlier.name.endswith("(step 4)") and earlier.config == stored.open_model(folder / "model").config
  with pytest.raises(UserError, match=r"3 is no whole checkpoint; .* has step 4, 6"):
    stored.open_model(str(workdir.checkpoints / "3"))


def test_a_checkpoint_of_a_run_in_rounds_is_of_its_base_model_with_the_runs_rope(done, folder, tmp_path):
  workdir, _ = done
  (tmp_path / "checkpoints").symlink_to(workdir.checkpoints)
  base = {"path": str(folder / "model"), "rope_theta": 1e6, "yarn_factor": None}
  longer = {"sequence_length": 1 << 20}
  (tmp_path / "config.json").write_text(json.dumps({"model": base, "synthesis": longer}))
  found = stored.open_model(tmp_path)
  as_base = stored.open_model(folder / "model").config.with_rope(theta=1e6, yarn_factor=None)
  assert found.config == dataclasses.replace(as_base, max_positions=1 << 20)
  assert found.tokenizer.chat_template == load_tokenizer(folder / "model").chat_template
  jax.tree.map(np.testing.assert_array_equal, found.load(None, None),
               stored.open_model(str(workdir.directory)).load(None, None))
  (tmp_path / "config.json").write_text(json.dumps({"model": {**base, "path": "moved"}, "synthesis": longer}))
  with pytest.raises(UserError, match="started from moved, which is not there"):
    stored.open_model(tmp_path)


def test_where_the_template_ends_answers_otherwise_the_end_token_follows_it(folder, tmp_path, material, monkeypatch):
  model = write_model(tmp_path / "base", material, QWEN2_SHAPED)
  tokenizer = load_tokenizer(model)
  tokenizer.eos_token = "<|endoftext|>"  # as Qwen2.5's base models have it
  tokenizer.save_pretrained(model)
  monkeypatch.setattr(tuning, "Trainer", Stop.now)
  with pytest.raises(Stop):
    tuning.run(config_of(folder, model__path=str(model)), tmp_path / "run")
  assert load_tokenizer(tmp_path / "run" / "model" / "tokenizer").eos_token == "<|im_end|>"


def test_a_template_whose_beginnings_are_no_beginnings_gives_an_example_an_answer(folder, tmp_path, material,
                                                                                monkeypatch):
  model = write_model(tmp_path / "base", material, QWEN3_SHAPED)
  monkeypatch.setattr(tuning, "Trainer", Stop.now)
  with pytest.raises(Stop):
    tuning.run(config_of(folder, model__path=str(model), data__held_out=0.0), tmp_path / "run")
  counts = json.loads(Workdir(tmp_path / "run").sequences_json.read_text())
  answers = [sum(m["role"] == "assistant" for m in conversation(i)) for i in range(60)]
  found = texts_of(sequence_paths(Workdir(tmp_path / "run").sequences), load_tokenizer(model))
  assert len(found) == sum(answers) and all(text.count("<think>") == 1 for text in found)
  assert counts["conversations_cut_into_answers"] == sum(n > 1 for n in answers)


def refusal(config, directory) -> str:
  with pytest.raises(UserError) as caught:
    tuning.run(config, directory)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_bad_input_is_one_sentence_each(done, folder, tmp_path, material):
  def told(name, **changes):
    return refusal(config_of(folder, **changes), tmp_path / name)

  write_chats(tmp_path / "bad.jsonl", BAD)
  sentence = told("bad", data__path=str(tmp_path / "bad.jsonl"), data__held_out=0.0)
  assert "no conversation to train on (skipped: a role other than" in sentence
  assert "longer than 128 tokens (1)" in sentence and "every line must be" in sentence
  assert told("held", data__path=str(tmp_path / "bad.jsonl")) == sentence  # nothing can be used, held out or not
  seed = config_of(folder).seed
  long = [[{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "word " * 300}] for i in range(20)]
  first = min(long, key=lambda messages: Conversation(0, messages).draw(seed))
  assert Conversation(0, first).draw(seed) < Conversation(0, conversation(1)).draw(seed)  # it is held out
  write_chats(tmp_path / "half.jsonl", [first, conversation(1)])
  sentence = told("half", data__path=str(tmp_path / "half.jsonl"), data__held_out=0.1)
  assert "none of the 1 conversations" in sentence and "longer than 128 tokens (1)): raise it" in sentence
  write_chats(tmp_path / "same.jsonl", [conversation(3)] * 4)
  sentence = told("same", data__path=str(tmp_path / "same.jsonl"), data__held_out=0.05)
  assert "takes all 4 conversations" in sentence and "copies of one count as one" in sentence
  (tmp_path / "empty.jsonl").write_text("")
  assert ": it is empty" in told("empty", data__path=str(tmp_path / "empty.jsonl"))
  assert "data.path is nowhere.jsonl, and no such file" in told("nowhere", data__path="nowhere.jsonl")
  assert "model.sha256" in told("hash", model__path=str(done[0].directory), model__sha256="ab")
  assert "no chat template" in told("plain", model__path=str(write_model(tmp_path / "plain_model", material, "")))
  assert "needs 2 devices" in told("mesh", mesh__context=1)


@pytest.mark.parametrize("changes, words", [
    ({"training__steps": None}, "training.steps is None and training.epochs is None: set exactly one"),
    ({"training__epochs": 1.0}, "training.steps is 6 and training.epochs is 1.0: set exactly one"),
    ({"data__loss_on": "prompts"}, "data.loss_on is 'prompts'; it must be one of answers, everything"),
    ({"data__held_out": 0.9}, "data.held_out is 0.9; it must be between 0.0 and 0.5"),
    ({"data__sequence_length": 100}, "data.sequence_length is 100, not divisible by 8"),
    ({"training__batch_size": 2}, "is 1 sequences, not divisible by mesh.data"),
])
def test_a_config_that_contradicts_itself_is_one_sentence(folder, changes, words):
  with pytest.raises(config_lib.ConfigError, match=words):
    config_of(folder, **changes)


def test_both_configs_are_valid_and_epochs_make_steps():
  small = config_lib.parse(sft.get_config(), config_lib.FineTuning)
  assert small.training.as_training(101).steps_per_round == 50  # 2 passes, 4 a step
  paper = config_lib.parse(sft.get_config("paper"), config_lib.FineTuning)
  assert paper.training.as_training(7).steps_per_round == 250
  assert paper.training.as_training(7).document_masking  # no conversation sees another, whatever the config
  assert paper.training.batch_size * paper.data.sequence_length == 2 << 20


def command(*arguments, **keywords):
  environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
  return subprocess.Popen([sys.executable, "-m", *arguments], cwd=REPOSITORY, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords)


@pytest.mark.slow
def test_smollm2_learns_held_out_answers_is_killed_and_goes_on_and_its_export_is_its_own(material, tmp_path):
  """Real weights, the commands, and SIGKILL."""
  data = write_chats(tmp_path / "chats.jsonl", map(conversation, range(60)))
  flags = ["policylong.sft", "--config=configs/sft.py", f"--workdir={tmp_path / 'run'}", f"--config.data.path={data}",
           f"--config.model.path={material / 'smollm2.gguf'}", "--config.data.sequence_length=512",
           "--config.data.held_out=0.2", "--config.training.batch_size=2", "--config.training.accumulation=2",
           "--config.training.steps=6", "--config.training.epochs=None", "--config.training.checkpoint_every=2"]
  process = command(*flags)
  metrics = tmp_path / "run" / "metrics.jsonl"
  while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
    pass
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -9
  process = command(*flags)
  said, errors = process.communicate()
  assert process.returncode == 0, errors[-3000:]
  assert "nats a token before" in said and said.splitlines()[-1] == f"workdir: {tmp_path / 'run'}"
  loss = json.loads((tmp_path / "run" / "final.json").read_text())["held_out"]
  assert 0 < loss["after"] < 0.8 * loss["before"]
  assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 7))
  process = command("policylong.convert", "orbax-to-hf", f"--model={tmp_path / 'run'}", f"--output={tmp_path / 'hf'}")
  said, errors = process.communicate()
  assert process.returncode == 0 and "differ from the source's by at most" in said, errors[-3000:]
  assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf").eos_token == "<|im_end|>"
