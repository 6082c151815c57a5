"""What benchmarks are told of a checkpoint is what transformers would tell them, wherever it came from."""

import dataclasses
import gc
import json
import shutil

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
from tokenizers import AddedToken

from policylong import config as config_lib
from policylong.convert import hf_to_orbax
from policylong.devices.mesh import local_copy, make_mesh
from policylong.errors import UserError
from policylong.evaluation.policy import Policy, load_policy
from policylong.likelihood.greedy import greedy_likelihood
from policylong.model import hf
from policylong.model.stored import open_model
from policylong.model.tokenizer import load_tokenizer
from policylong.screening.scorer import Scorer
from policylong.storage.workdir import Workdir
from policylong.training.checkpoint import Checkpoints
from policylong.training.state import TrainState
from tests.training.tiny_training import whole_config

# The issue's own bound; float32 on both sides stays near 1e-5.
TOLERANCE = 1e-3


def mesh_of(devices):
  return make_mesh(config_lib.Mesh(data=devices, fsdp=1, context=1, tensor=1), jax.devices()[:devices])


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
  """case -> an HF directory."""
  return {case: checkpoints.write_hf(models, case, tmp_path_factory.mktemp(case)) for case in seeded.CASES}


def open_small(folder, devices=1):
  return load_policy(str(folder), dtype="float32", batch_tokens=64, mesh=mesh_of(devices))


def check_likelihoods(policy, wanted):
  found = policy.loglikelihoods([(one["context"], one["continuation"]) for one in wanted])
  np.testing.assert_allclose([logprob for logprob, _ in found], [one["logprob"] for one in wanted], rtol=0,
                             atol=TOLERANCE)
  assert [greedy for _, greedy in found] == [one["greedy"] for one in wanted]


@pytest.mark.parametrize("case", ["qwen2_untied", "qwen3", "qwen2_yarn"])
def test_loglikelihoods_are_those_of_transformers(case, folders, references):
  check_likelihoods(open_small(folders[case]), references[case]["likelihoods"])


def test_eight_devices_say_the_same(folders, references):
  check_likelihoods(open_small(folders["qwen3_tied"], devices=8), references["qwen3_tied"]["likelihoods"])


def test_smollm2_loglikelihoods_are_those_of_transformers(material, references):
  policy = load_policy(str(material / "smollm2.gguf"), dtype="float32", mesh=mesh_of(1))
  wanted = [one for one in references["smollm2"]["likelihoods"] if len(one["context"]) <= 200][::3]
  assert sum(one["greedy"] for one in wanted) > 5
  check_likelihoods(policy, wanted + [one for one in references["smollm2"]["likelihoods"] if not one["greedy"]][:6])


def test_continuations_of_one_context_are_read_once(folders, references, monkeypatch):
  policy = open_small(folders["qwen3"])
  context = references["qwen3"]["greedy"][3]["prompt"]
  requests = [(context, [token]) for token in (7, 8, 9, 7)] + [(context, [7, 9]), (context[:4], [*context[4:], 11])]
  read = []
  choices = Scorer.choices
  def counting(self, rows, *arguments):
    read.extend(rows)
    return choices(self, rows, *arguments)
  monkeypatch.setattr(Scorer, "choices", counting)
  done = []
  together = policy.loglikelihoods(requests, done.append)
  assert len(read) == 2 and sum(done) == len(requests)  # context, and context with 7
  apart = [policy.loglikelihoods([request])[0] for request in requests]
  np.testing.assert_allclose([x for x, _ in together], [x for x, _ in apart], rtol=0, atol=1e-5)
  assert [x for _, x in together] == [x for _, x in apart] and together[0] == together[3]


def test_nothing_to_continue_with_is_certain(folders):
  assert open_small(folders["qwen3"]).loglikelihoods([([4], []), ([4, 5], [])]) == [(0.0, True)] * 2


def test_token_nlls_add_up_to_loglikelihoods(folders, references):
  policy = open_small(folders["llama"])
  wanted = references["llama"]["likelihoods"][-3:]
  rows = [one["context"] + one["continuation"] for one in wanted]
  nlls = policy.token_nlls(rows)
  for row, nll, one in zip(rows, nlls, wanted):
    assert nll.shape == (len(row),) and np.isnan(nll[0]) and not np.isnan(nll[1:]).any()
    assert -nll[len(one["context"]):].sum() == pytest.approx(one["logprob"], abs=TOLERANCE)


@pytest.mark.parametrize("winner", [0, 2])
def test_of_equal_logits_the_first_is_the_greedy_one(winner):
  """70 tokens: more than are looked at at a time."""
  hidden = np.random.default_rng(0).standard_normal((70, 8)).astype(np.float32)
  matrix = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
  matrix[winner] = 3 * hidden.mean(0)
  matrix[4] = matrix[winner]
  logits = hidden.astype(np.float64) @ matrix.T.astype(np.float64)
  for target in range(5):
    nll, greedy = greedy_likelihood(hidden, matrix, np.full(70, target))
    wanted = np.log(np.exp(logits).sum(1)) - logits[:, target]
    np.testing.assert_allclose(nll, wanted, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(greedy, logits.argmax(1) == target)
    assert not (target == 4 and np.asarray(greedy).any())


# ------------------------------------------------------------------------------------------------------------
# Where a generation ends


def test_a_generation_ends_at_the_end_token_without_it(folders, references):
  wanted = references["qwen3"]["greedy"]
  policy = open_small(folders["qwen3"])
  done = []
  found = policy.generate([one["prompt"] for one in wanted], [24] * len(wanted), progress=done.append)
  assert [x.tokens.tolist() for x in found] == [one["tokens"] for one in wanted]
  assert min(len(x.tokens) for x in found) == 0 and sum(done) == len(wanted)
  assert found[1].text == policy.tokenizer.decode(wanted[1]["tokens"])


def test_end_tokens_are_also_read_from_generation_config(models, references, tmp_path):
  folder = checkpoints.write_hf(models, "qwen3", tmp_path / "model")
  tokens = references["qwen3"]["greedy"][1]["tokens"]
  (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, tokens[6]]}))
  (found,) = open_small(folder).generate([references["qwen3"]["greedy"][1]["prompt"]], 24)
  assert found.tokens.tolist() == tokens[:tokens.index(tokens[6])]


class Words:
  """A byte-level tokenizer stand-in: token i stands for the bytes of `WORDS[i]`."""
  WORDS = (b"ab", b"c\n", b"\nQ", b": ", b"\xe2", b"\x82\xac", b"x", b"\n", b"<end>")

  def __init__(self):
    self.added_tokens_decoder = {8: AddedToken("<end>", special=True)}

  def decode(self, tokens, skip_special_tokens, clean_up_tokenization_spaces):
    assert skip_special_tokens and not clean_up_tokenization_spaces
    return b"".join(self.WORDS[token] for token in tokens if token != 8).decode(errors="replace")


class Script:
  """Stands for the generator: gives one token after another until it is told to end."""

  def __init__(self, tokens):
    self.tokens = tokens

  def generate(self, requests, *, stop_ids, finished, **_):
    self.requests, self.stop_ids = requests, stop_ids
    found = []
    for i, request in enumerate(requests):
      tokens = []
      for start in range(0, request.most_new, 4):  # four a call, as programs do
        tokens += self.tokens[start:min(start + 4, request.most_new)]
        if finished(i, tokens):
          break
      found.append(np.array(tokens, np.int32))
    return found


@pytest.mark.parametrize(("tokens", "stop", "kept", "text"), [
    ([0, 6, 1, 2, 3, 0], ["\nQ: "], [0, 6, 1], "abxc\n"),
    ([0, 6, 1, 2, 3, 0], ["\n\nQ"], [0, 6], "abxc"),       # begins within a token
    ([0, 6, 1, 2, 3, 0], ["x", "b"], [], "a"),             # the first in the text, not in the list
    ([0, 4, 5, 6, 0, 0], ["x"], [0, 4, 5], "ab€"),         # a character of two tokens before it
    ([0, 4, 5, 6, 0, 0], ["€"], [0], "ab"),                # and as the stop itself
    ([0, 6, 0, 4], ["zz"], [0, 6, 0, 4], "abxab\ufffd"),   # cut within a character by the number of tokens
    ([0, 6, 0, 6], [""], [0, 6, 0, 6], "abxabx"),
    ([0, 7, 7, 6], ["\n\n"], [0], "ab"),
])
def test_a_stop_string_ends_a_text_wherever_its_tokens_begin(tokens, stop, kept, text, monkeypatch):
  policy = object.__new__(Policy)
  policy.tokenizer, policy.name, policy.window, policy._vocab_size, policy._end_tokens = Words(), "test", 99, 9, ()
  policy._generator = Script(tokens)
  (found,) = policy.generate([[0]], len(tokens), stop=stop)
  assert (found.tokens.tolist(), found.text) == (kept, text)


def test_a_prompt_is_drawn_for_by_the_number_that_is_given():
  policy = object.__new__(Policy)
  policy.tokenizer, policy.name, policy.window, policy._vocab_size, policy._end_tokens = Words(), "test", 99, 9, ()
  policy._generator = Script([0])
  policy.generate([[0], [1]], 1, temperature=0.5, numbers=[7, 2 ** 31 - 1])
  assert [request.number for request in policy._generator.requests] == [7, 2 ** 31 - 1]
  with pytest.raises(ValueError, match="needs a number for each prompt"):
    policy.generate([[0], [1]], 1, temperature=0.5)
  with pytest.raises(ValueError):
    policy.generate([[0], [1]], 1, temperature=0.5, numbers=[7])


def test_a_stop_string_that_is_a_special_token_is_that_token(monkeypatch):
  policy = object.__new__(Policy)
  policy.tokenizer, policy.name, policy.window, policy._vocab_size, policy._end_tokens = Words(), "test", 99, 9, (5,)
  policy._generator = Script([0])
  policy.generate([[0]], 1, stop=["<end>"])
  assert policy._generator.stop_ids == [5, 8]


def test_smollm2_stops_at_a_string_of_several_tokens(material, references):
  policy = load_policy(str(material / "smollm2.gguf"), dtype="float32", mesh=mesh_of(1))
  one = references["smollm2"]["greedy"][12]
  whole = policy.tokenizer.decode(one["tokens"])
  stop = whole[len(whole) // 3:len(whole) // 3 + 9]
  (found,) = policy.generate([one["prompt"]], 16, stop=[stop])
  assert found.text == whole[:whole.index(stop)] and len(found.text) > 3
  assert whole.startswith(policy.tokenizer.decode(found.tokens)) and len(found.tokens) < 14


# ------------------------------------------------------------------------------------------------------------
# Where a policy comes from


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
  """A working directory with checkpoints 2 and 4 of a run on "llama" with another RoPE base; the second is doubled."""
  base = folders["llama"]
  config = whole_config()
  model = dataclasses.replace(config.model, path=str(base), rope_theta=2e4)
  workdir = Workdir(tmp_path_factory.mktemp("run"))
  workdir.claim(dataclasses.replace(config, model=model))
  shape = hf.read_model_config(base)
  params = hf.load_params(base, shape, jnp.float32)
  saving = Checkpoints(workdir.checkpoints, keep_newest=2, keep=lambda step: False)
  for step, scale in ((2, 1.0), (4, 2.0)):
    changed = params | {"head": params["head"] * scale}
    saving.save(step, TrainState(jnp.int32(step), changed, {"mu": jnp.zeros(3)}), {}, {})
  saving.close()
  return workdir


def test_a_run_is_opened_at_its_newest_checkpoint_or_at_one(run, folders):
  row = list(range(3, 30))
  plain = open_small(folders["llama"]).token_nlls([row])[0]
  of_step = {}
  for path, step in ((run.directory, 4), (run.checkpoints / "2", 2)):
    policy = open_small(path)
    assert policy.name == f"{run.directory} (step {step})" and policy.window == 64
    of_step[step] = policy.token_nlls([row])[0]
  base = hf.read_model_config(folders["llama"]).with_rope(2e4, None)
  params = hf.load_params(folders["llama"], base, jnp.float32)
  direct = Policy(params, base, load_tokenizer(folders["llama"]), name="x", end_tokens=[2], mesh=mesh_of(1),
                  dtype="float32", batch_tokens=64).token_nlls([row])[0]
  np.testing.assert_allclose(of_step[2][1:], direct[1:], rtol=0, atol=1e-5)
  assert np.abs(of_step[2] - plain)[1:].max() > 0.01  # the run's own RoPE base
  assert np.abs(of_step[4] - of_step[2])[1:].max() > 0.01


def test_opening_a_run_removes_nothing_of_a_save_that_goes_on(run):
  unfinished = run.checkpoints / "6.orbax-checkpoint-tmp"
  (unfinished / "state").mkdir(parents=True)
  open_small(run.directory)
  assert (unfinished / "state").exists()
  unfinished.rmtree()


def test_an_orbax_directory_of_convert_is_opened(folders, tmp_path):
  hf_to_orbax(folders["qwen3"], tmp_path / "orbax", jnp.float32)
  row = list(range(3, 30))
  np.testing.assert_array_equal(open_small(tmp_path / "orbax").token_nlls([row])[0],
                                open_small(folders["qwen3"]).token_nlls([row])[0])


def bytes_on_devices():
  """Of all arrays of this process, each buffer once."""
  return sum({(shard.device, shard.data.unsafe_buffer_pointer()): shard.data.nbytes
              for array in jax.live_arrays() for shard in array.addressable_shards}.values())


@pytest.fixture(scope="module")
def kept_as(models, folders, run, tmp_path_factory):
  """What a model's weights are kept as -> the model."""
  folder = tmp_path_factory.mktemp("kept")

  def stored_in(dtype):
    def change(weights):
      weights |= {name: value.astype(dtype) for name, value in weights.items()}
    return open_model(checkpoints.write_hf(models, "llama", folder / dtype, change))
  hf_to_orbax(folders["llama"], folder / "orbax", jnp.float32)
  found = {dtype: stored_in(dtype) for dtype in ("float64", "float32", "float16", "bfloat16")}
  path = checkpoints.write_gguf(models, "llama", folder / "model.gguf")
  config = hf.read_model_config(path)
  return found | {"orbax": open_model(folder / "orbax"), "run": open_model(run.directory), "gguf": dataclasses.replace(
      found["float32"], config=config, load=lambda dtype, mesh: hf.load_params(path, config, dtype, mesh))}


@pytest.mark.parametrize(("kind", "dtype"), [*((kind, "bfloat16") for kind in (
    "float64", "float32", "float16", "bfloat16", "gguf", "orbax", "run")), ("float32", "float32"), ("run", "float32")])
def test_weights_are_on_each_device_once_and_in_the_dtype_asked_for(kind, dtype, kept_as, monkeypatch):
  """float32 first, then `dtype`, would be three times as many bytes. What is rounded is so as numpy has it."""
  wanted = jax.tree.map(lambda x: np.asarray(x).astype(dtype), kept_as[kind].load(jnp.float32, None))
  gc.collect()
  held, before = [], bytes_on_devices()
  monkeypatch.setattr("policylong.evaluation.policy.Generator", lambda *arguments, **settings: None)
  monkeypatch.setattr("policylong.screening.scorer.local_copy",
                      lambda *arguments: held.append(bytes_on_devices()) or local_copy(*arguments))
  found = load_policy(kept_as[kind], dtype=dtype, batch_tokens=64, mesh=mesh_of(2))._scorer.params
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  assert {(leaf.dtype.name, leaf.sharding.is_fully_replicated, len(leaf.sharding.device_set))
          for leaf in jax.tree.leaves(found)} == {(dtype, True, 2)}
  size = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(wanted))
  assert len(held) == len(jax.tree.leaves(found)) and 0.99 * size < max(held) - before < 1.01 * size


def test_what_cannot_be_opened_is_told_in_one_sentence(run, folders, tmp_path):
  (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
  (tmp_path / "empty" / "config.json").write_text((run.directory / "config.json").read_text())
  for path, words in ((tmp_path / "no", "No such file or directory"), (tmp_path / "empty", "checkpoints has none"),
                      (run.checkpoints / "3", "3 is no whole checkpoint; .*checkpoints has step 2, 4")):
    with pytest.raises(UserError, match=words):
      open_small(path)
  (run.checkpoints / "3" / "state").mkdir(parents=True)
  with pytest.raises(UserError, match=r"checkpoints/3/state cannot be read"):
    open_small(run.checkpoints / "3")
  shutil.rmtree(run.checkpoints / "3")


@pytest.mark.parametrize(("prompts", "new", "words"), [
    ([[3], [4] * 60], 5, r"prompt 1 has 60 tokens, and 5 more are to follow: the window of .*qwen3\S* is 64 tokens"),
    ([[]], 5, "prompt 0 has no token"),
    ([[3, 97]], 5, "prompt 0 has token ids from 3 to 97; .* knows 0 to 96"),
    ([[-1]], 5, "prompt 0 has token ids from -1"),
])
def test_a_prompt_that_cannot_be_continued_is_told_in_one_sentence(prompts, new, words, folders):
  policy = open_small(folders["qwen3"])
  with pytest.raises(UserError, match=words):
    policy.generate(prompts, new)
  policy.generate([[4] * 59], 5)  # fits exactly


def test_a_pair_or_row_beyond_the_window_is_told(folders):
  policy = open_small(folders["qwen3"])
  with pytest.raises(UserError, match="context 0 has 60 tokens, and 5 more"):
    policy.loglikelihoods([([4] * 60, [4] * 6)])
  # The last token is not read: 65 tokens fill the window of 64, behind which there are 97 that may come.
  row = [3 + i % 90 for i in range(65)]
  (whole, _), (most, _), *after = policy.loglikelihoods(
      [(row[:60], row[60:]), (row[:60], row[60:64]), *((row[:64], [token]) for token in range(97))])
  assert sum(np.exp(value) for value, _ in after) == pytest.approx(1, abs=1e-5)
  assert whole == pytest.approx(most + after[row[64]][0], abs=1e-4)
  with pytest.raises(UserError, match="row 0 has 65 tokens: the window"):
    policy.token_nlls([[4] * 65])
