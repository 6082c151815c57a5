"""all-MiniLM-L6-v2 against transformers, and what its vectors do not depend on."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from policylong.errors import UserError
from policylong.material import MINILM_SHA256
from policylong.retrieval.buckets import bucket_lengths, encode_in_buckets
from policylong.retrieval.minilm import MiniLM

REFERENCE = pathlib.Path(__file__).parents[1] / "reference" / "minilm_embeddings.npz"


@pytest.fixture(scope="module")
def reference() -> tuple[list[str], np.ndarray]:
  """Texts, and their vectors by torch and transformers (make_embedder_references.py)."""
  stored = np.load(REFERENCE, allow_pickle=False)
  return [str(text) for text in stored["texts"]], stored["vectors"]


@pytest.fixture(scope="module")
def minilm(material) -> MiniLM:
  return MiniLM(material / "minilm", sha256=MINILM_SHA256, max_tokens=256, batch=2)


def test_float32_equals_transformers(material, reference):
  texts, wanted = reference
  found = MiniLM(material / "minilm", sha256="", max_tokens=256, batch=2, dtype="float32").embed_documents(texts)
  # float32 sums of 384 and 1536 terms in another order, through six layers; 3e-7 was seen
  np.testing.assert_allclose(found, wanted, atol=1e-5)
  assert np.sum(found.astype(np.float64) * wanted, axis=1).min() > 0.999999


def test_bfloat16_turns_no_vector_by_more_than_two_degrees(minilm, reference):
  texts, wanted = reference
  found = minilm.embed_documents(texts)
  assert np.sum(found.astype(np.float64) * wanted, axis=1).min() > 0.9995  # cos 1.8 degrees


def test_vectors_have_length_one(minilm, reference):
  lengths = np.linalg.norm(minilm.embed_documents(reference[0]).astype(np.float64), axis=1)
  np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_a_vector_has_the_same_bits_in_whatever_company(minilm, reference):
  texts, _ = reference
  together = minilm.embed_documents(texts)
  backwards = minilm.embed_documents(texts[::-1])[::-1]
  in_threes = np.concatenate([minilm.embed_documents(texts[i:i + 3]) for i in range(0, len(texts), 3)])
  crowded = minilm.embed_documents([*texts[5:], *texts, *texts[:7]])[len(texts) - 5:][:len(texts)]
  for other in (backwards, in_threes, crowded):
    np.testing.assert_array_equal(other, together)


def test_a_long_text_is_its_first_tokens(material):
  embedder = MiniLM(material / "minilm", sha256="", max_tokens=16, batch=4)
  words = ["river", "stone", "bridge", "water", "boat", "harvest", "grain", "wool", "timber", "coast", "frost", "month",
           "toll", "house"]
  # each of these words is one token; [CLS] and [SEP] take the other two of the 16 places
  whole, shorter, longer = embedder.embed_documents([" ".join(words), " ".join(words[:13]), " ".join(words * 3)])
  np.testing.assert_array_equal(longer, whole)
  assert not np.array_equal(shorter, whole)


def test_similar_sentences_are_nearer_than_others(minilm):
  query = minilm.embed_queries(["How long does it take to sail across the ocean?"])[0]
  near, far = minilm.embed_documents(["The voyage over the Atlantic lasted five weeks.",
                                      "The committee raised the tax on imported wool."])
  assert query @ near > query @ far + 0.2


def test_no_text_gives_no_vector(minilm):
  assert minilm.embed_documents([]).shape == (0, 384)


def test_the_version_follows_what_changes_a_vector_and_nothing_else(material, minilm):
  def version(**changed):
    return MiniLM(material / "minilm", **{"sha256": "", "max_tokens": 256, "batch": 2, **changed}).version

  assert version() == version(batch=7) == minilm.version
  assert len({version(), version(max_tokens=128), version(dtype="float32")}) == 3


def test_wrong_or_damaged_files_are_refused_in_one_sentence(material, tmp_path):
  def load(path, sha256="", max_tokens=64):
    return MiniLM(path, sha256=sha256, max_tokens=max_tokens, batch=1)

  with pytest.raises(UserError, match=f"sha256 {MINILM_SHA256}, wanted 00ff"):
    load(material / "minilm", sha256="00ff")
  with pytest.raises(UserError, match=r"513.*512 positions"):
    load(material / "minilm", max_tokens=513)
  with pytest.raises(UserError, match="embedder_path must be a folder"):
    load(tmp_path / "nowhere")
  copy = tmp_path / "copy"
  shutil.copytree(material / "minilm", copy)
  config = json.loads((copy / "config.json").read_text())
  for changed, message in (({"model_type": "mpnet"}, "model_type 'mpnet', wanted 'bert'"),
                           ({"hidden_size": 768}, r"shape \[384\S* 384\], wanted \[768, 768\]"),
                           ({"num_hidden_layers": 7}, "lacks a tensor")):
    (copy / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(UserError, match=message):
      load(copy)
  (copy / "config.json").write_text(json.dumps(config))
  weights = (copy / "model.safetensors").read_bytes()
  (copy / "model.safetensors").write_bytes(weights[:1_000_000])
  with pytest.raises(UserError, match="truncated"):
    load(copy)
  (copy / "tokenizer.json").write_text("{")
  (copy / "model.safetensors").write_bytes(weights)
  with pytest.raises(UserError, match="tokenizer"):
    load(copy)


def test_every_length_has_a_bucket_that_wastes_little():
  for max_tokens in (8, 128, 200, 256, 8192):
    buckets = bucket_lengths(max_tokens)
    assert list(buckets) == sorted(set(buckets)) and buckets[-1] == max_tokens
    assert len(buckets) <= 25  # each is compiled
    for length in range(65, max_tokens + 1):
      assert min(b for b in buckets if b >= length) <= 2 * length


def test_batches_have_one_shape_a_bucket_and_rows_come_back_in_order():
  shapes = []

  class Encode:
    devices = 2

    def __call__(self, tokens, lengths):
      shapes.append(tokens.shape)
      used = np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, 0)
      return np.stack([used.sum(axis=1), lengths], axis=1).astype(np.float32)

  rng = np.random.default_rng(0)
  rows = [rng.integers(1, 9, n).tolist() for n in rng.integers(1, 97, 200)]
  out = encode_in_buckets(rows, max_tokens=96, batch=4, pad=9, dim=2, encode=Encode())
  np.testing.assert_array_equal(out, [[sum(row), len(row)] for row in rows])
  assert set(shapes) == {(2 * 12, 32), (2 * 6, 64), (2 * 4, 96)}
