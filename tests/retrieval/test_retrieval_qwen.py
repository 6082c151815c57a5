"""Qwen3-Embedding's way to a vector, on a random small Qwen3: last token, instruction on queries only."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from policylong.errors import UserError
from policylong.model import hf
from policylong.model.qwen import ModelConfig, hidden_states, init_params
from policylong.retrieval.qwen_embedder import END, QwenEmbedder

WORDS = ["the", "of", "river", "canal", "clock", "bread", "bees", "who", "what", "rain", "clay", "Instruct", "Query",
         "find", "a", "passage", ":", "."]
TEXTS = ["the river", "the canal of clay . the clock of bread", "bees", "", "rain " * 45, "what of the rain " * 9]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """A directory with a random Qwen3 and a tokenizer of whole words."""
  config = ModelConfig(family="qwen3", vocab_size=24, embed_dim=64, mlp_dim=48, num_layers=2, num_heads=4,
                       num_kv_heads=2, head_dim=16, norm_eps=1e-6, rope_theta=1e6, rope_scaling=None, max_positions=128,
                       tied=True)
  vocabulary = {word: i for i, word in enumerate([*WORDS, "[UNK]", END])}
  backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  backend.add_special_tokens([END])
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token=END)
  params = jax.tree.map(lambda leaf: leaf * 5, init_params(config, jax.random.key(0), jnp.float32))
  directory = tmp_path_factory.mktemp("qwen") / "embedder"
  hf.export_hf(params, config, tokenizer, directory)
  return directory


def embedder(checkpoint, **changed) -> QwenEmbedder:
  return QwenEmbedder(checkpoint, **{"sha256": "", "max_tokens": 64, "batch": 2, "instruction": "", "dim": None,
                                     "dtype": "float32", **changed})


def one_by_one(checkpoint, texts: list[str], dim: int = 64) -> np.ndarray:
  """The definition: the first numbers of the state at the end token of each unpadded text, scaled to length 1."""
  config = hf.read_model_config(checkpoint)
  params = hf.load_params(checkpoint, config, jnp.float32)
  ids = {word: i for i, word in enumerate([*WORDS, "[UNK]", END])}
  vectors = []
  for text in texts:
    # the tokenizer's Whitespace rule, for these texts
    words = text.replace(":", " : ").split()[:63]
    tokens = [*(ids.get(word, ids["[UNK]"]) for word in words), ids[END]]
    last = np.asarray(hidden_states(params, config, jnp.array([tokens]), compute_dtype=jnp.float32))[0, -1]
    last = last[:dim].astype(np.float64)
    vectors.append(last / np.linalg.norm(last))
  return np.array(vectors)


@pytest.fixture(scope="module")
def wanted(checkpoint) -> np.ndarray:
  return one_by_one(checkpoint, TEXTS)


def test_a_vector_is_the_state_of_the_end_token(checkpoint, wanted):
  found = embedder(checkpoint).embed_documents(TEXTS)
  np.testing.assert_allclose(found, wanted, atol=1e-5)  # float32, other shapes
  assert embedder(checkpoint).dim == found.shape[1] == 64


def test_fewer_numbers_are_the_first_ones_scaled_to_length_1(checkpoint, wanted):
  dim = 40
  found = embedder(checkpoint, dim=dim)
  assert found.dim == dim
  vectors = found.embed_documents(TEXTS)
  np.testing.assert_allclose(vectors, one_by_one(checkpoint, TEXTS, dim), atol=1e-5)
  # The same as cutting the whole vector afterwards, as sentence-transformers does, and scaling it again.
  cut = wanted[:, :dim]
  np.testing.assert_allclose(vectors, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-5)


def test_only_queries_carry_the_instruction(checkpoint):
  asked = embedder(checkpoint, instruction="find a passage")
  np.testing.assert_array_equal(asked.embed_documents(TEXTS), embedder(checkpoint).embed_documents(TEXTS))
  np.testing.assert_allclose(asked.embed_queries(["who"]),
                             one_by_one(checkpoint, ["Instruct: find a passage\nQuery:who"]), atol=1e-5)
  plain = embedder(checkpoint)
  np.testing.assert_array_equal(plain.embed_queries(["who"]), plain.embed_documents(["who"]))


def test_padding_and_company_change_no_bit(checkpoint):
  encoder = embedder(checkpoint)
  together = encoder.embed_documents(TEXTS)
  np.testing.assert_array_equal(np.concatenate([encoder.embed_documents([text]) for text in TEXTS]), together)
  np.testing.assert_array_equal(encoder.embed_documents(TEXTS[::-1] * 3)[:len(TEXTS)], together[::-1])


@pytest.mark.parametrize("count", [1, 3])
def test_the_number_of_devices_changes_no_bit_and_all_of_them_work(checkpoint, monkeypatch, count):
  all_devices, texts = jax.local_devices(), TEXTS * 40
  assert len(all_devices) == 8
  wanted = embedder(checkpoint).embed_documents(texts)
  monkeypatch.setattr(jax, "local_devices", lambda: all_devices[:count])
  encoder = embedder(checkpoint)
  np.testing.assert_array_equal(encoder.embed_documents(texts), wanted)
  vectors = encoder._encode(np.zeros((count * 2, 64), np.int32), np.ones(count * 2, np.int32))
  assert vectors.sharding.device_set == set(all_devices[:count])
  assert {shard.data.shape for shard in vectors.addressable_shards} == {(2, 64)}


def test_bfloat16_stays_near_float32(checkpoint, wanted):
  # a random model with weights of 0.1 magnifies rounding more than a trained one: 0.994 was seen
  rough = embedder(checkpoint, dtype="bfloat16").embed_documents(TEXTS).astype(np.float64)
  assert np.sum(rough * wanted, axis=1).min() > 0.99


def test_a_long_text_is_cut_before_the_end_token(checkpoint):
  encoder = embedder(checkpoint, max_tokens=8)
  seven, eight, seven_others = encoder.embed_documents(["rain " * 7, "rain " * 8, "rain " * 6 + "clay"])
  np.testing.assert_array_equal(seven, eight)
  assert not np.array_equal(seven, seven_others)


def test_the_version_follows_instruction_and_length(checkpoint):
  versions = {embedder(checkpoint, **changed).version
              for changed in ({}, {"instruction": "find"}, {"max_tokens": 32}, {"dtype": "bfloat16"}, {"batch": 3},
                              {"dim": 32}, {"dim": 64})}
  assert len(versions) == 5  # the batch changes nothing, nor does naming all 64 numbers


def test_mistakes_are_one_sentence(checkpoint, tmp_path):
  with pytest.raises(UserError, match=r"129.*128 positions"):
    embedder(checkpoint, max_tokens=129)
  for dim in (31, 65):
    with pytest.raises(UserError, match=f"retrieval.dim is {dim}; the vectors .* have 64 numbers, of which 32 or more"):
      embedder(checkpoint, dim=dim)
  with pytest.raises(UserError, match="sha256"):
    embedder(checkpoint, sha256="00ff")
  with pytest.raises(UserError):
    embedder(tmp_path / "nowhere")


@pytest.mark.parametrize("head", ["without a head", "with one"])
def test_a_bare_decoder_that_ties_no_head_is_read_as_it_is(head, checkpoint, wanted, tmp_path):
  """As the larger Qwen3-Embedding models are stored: no tie, names without "model.", and no lm_head.weight."""
  directory = shutil.copytree(checkpoint, tmp_path / "bare")
  weights = load_file(directory / "model.safetensors")
  bare = {name.removeprefix("model."): array for name, array in weights.items()}
  if head == "with one":
    bare["lm_head.weight"] = 2 * bare["embed_tokens.weight"]
  save_file(bare, directory / "model.safetensors", metadata={"format": "pt"})
  fields = json.loads((directory / "config.json").read_text())
  (directory / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": False}))
  np.testing.assert_allclose(embedder(directory).embed_documents(TEXTS), wanted, atol=1e-5)
