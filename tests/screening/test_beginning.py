"""Where a tokenizer begins texts with a token of its own, every row that is scored, verified or trained on has it.

The right numbers are those of a scorer that adds nothing, on rows that have the token written out.
"""

import itertools
import json

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from policylong import config as config_lib
from policylong import loop
from policylong.devices.mesh import make_mesh
from policylong.evaluation import documents
from policylong.evaluation.results import Options
from policylong.model import hf
from policylong.model.qwen import ModelConfig, init_params
from policylong.model.tokenizer import encode, load_tokenizer
from policylong.records import LongSequence, Span
from policylong.score import score
from policylong.screening import long_gap
from policylong.screening.anchors import entropy_threshold, find_anchors
from policylong.screening.scorer import Row, Scorer
from policylong.screening.verify import Pair, verify
from policylong.storage.workdir import Workdir
from policylong.synthesis import packing
from policylong.synthesis.storage import read_spans, read_tokens, sequence_paths
from tests.small_run import small_config, write_talks

MODEL = ModelConfig(family="llama", vocab_size=211, embed_dim=48, mlp_dim=96, num_layers=2, num_heads=4, num_kv_heads=2,
                    head_dim=16, norm_eps=1e-6, rope_theta=1e4, rope_scaling=None, max_positions=512, tied=True)
# float32 of the same program in rows of other lengths
TOLERANCE = 2e-5


def mesh():
  return make_mesh(config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1))


@pytest.fixture(scope="module")
def scorers():
  """beginning -> a scorer of the same weights."""
  params = jax.tree.map(lambda x: x * 3 if x.ndim > 1 else x, init_params(MODEL, jax.random.key(0), np.float32))
  return lambda beginning=(): Scorer(params, MODEL, mesh(), dtype="float32", tokens_per_batch=64, bucket_multiple=16,
                                     beginning=beginning)


def rows(*lengths):
  rng = np.random.default_rng(sum(lengths))
  return [rng.integers(0, 211, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize("beginning", [(7,), (7, 3)])
def test_every_row_is_read_behind_its_beginning(beginning, scorers):
  plain, begun, texts = scorers(), scorers(beginning), rows(17, 1, 16, 40)
  written = plain.traces([np.concatenate([beginning, text]).astype(np.int32) for text in texts])
  for found, wanted, text in zip(begun.traces(texts), written, texts):
    for mine, theirs in zip(found, wanted):
      assert mine.shape == text.shape and np.isfinite(mine).all()
      np.testing.assert_allclose(mine, theirs[len(beginning):], atol=TOLERANCE)
  places = [np.array([0, len(text) - 1], np.int32) for text in texts]
  asked = [Row(text, at, begun.bucket(len(text))) for text, at in zip(texts, places)]
  found = [entropy for entropy, _ in begun.likelihoods(asked, 2)]
  for mine, (entropy, _) in zip(found, written):
    np.testing.assert_allclose(mine, entropy[[len(beginning), -1]], atol=TOLERANCE)


def test_before_and_after_alike(scorers):
  """[BOS ; chunk ; root] against [BOS ; root], at positions of the root: also at its first token."""
  plain, begun = scorers(), scorers((7,))
  root, chunk, other = rows(30, 11, 25)
  at = np.array([0, 4, 29], np.int32)
  for reading, context in zip(verify(begun, [Pair("r", root, at, c) for c in (chunk, other)], 3), (chunk, other)):
    (alone, _), (behind, _) = plain.traces([np.concatenate([[7], root]).astype(np.int32),
                                            np.concatenate([[7], context, root]).astype(np.int32)])
    np.testing.assert_allclose(reading.entropy_before, alone[at + 1], atol=TOLERANCE)
    np.testing.assert_allclose(reading.entropy_after, behind[at + 1 + len(context)], atol=TOLERANCE)


def test_nothing_changes_without_a_beginning(scorers):
  texts = rows(17, 1, 40)
  for mine, theirs in zip(scorers(np.zeros(0, np.int32)).traces(texts), scorers().traces(texts)):
    assert np.isnan(mine[0][0]) and [x.tobytes() for x in mine] == [x.tobytes() for x in theirs]


def test_a_first_token_that_something_predicts_counts_as_any_other():
  entropy = np.array([9, 1, 1, 1], np.float32)
  assert entropy_threshold(entropy, 1.0) == pytest.approx(3 + np.sqrt(12))
  assert find_anchors(entropy, alpha=1.0, skip_tokens=0, most=4)[0].tolist() == [0]
  assert entropy_threshold(np.array([np.nan, 1, 1, 1], np.float32), 1.0) == 1.0


def test_the_long_short_gap_is_over_begun_rows_long_and_short(scorers):
  plain, begun, window = scorers(), scorers((7,)), 8
  text, = rows(23)
  gap, long = long_gap.gaps(lambda some: [nll for _, nll in begun.traces(some)], [text], window)
  np.testing.assert_allclose(long[0], plain.traces([np.append([7], text).astype(np.int32)])[0][1][1:], atol=TOLERANCE)
  explicit = long_gap.short_nlls(lambda some: [nll for _, nll in plain.traces(some)], [np.append([7], text)], window, 1)
  np.testing.assert_allclose((gap + long)[0], explicit[0][1:], atol=TOLERANCE)
  for t in (window, 15, 22):
    start = (t - window) // 2 * 2
    alone = plain.traces([np.append([7], text[start:t + 1]).astype(np.int32)])[0][1][-1]
    np.testing.assert_allclose(gap[0, t] + long[0, t], alone, atol=TOLERANCE)


def _span(start, end, doc_id):
  return Span(start, end, "root", doc_id, "", -1, float("nan"), -1, 0)


@pytest.mark.parametrize(("each_document", "tokens", "spans"), [
    (False, [9, 0, 1, 2, 3, 4, 5], [(0, 3), (3, 5), (5, 7)]),
    (True, [9, 0, 1, 2, 3, 9, 4], [(0, 3), (3, 5), (5, 7)])])
def test_a_sequence_is_begun_once_or_at_each_document(each_document, tokens, spans):
  """The spans of document a, a and b; what a second beginning takes is missing at the end."""
  sequence = LongSequence(np.arange(6, dtype=np.int32), (_span(0, 2, "a"), _span(2, 4, "a"), _span(4, 6, "b")))
  found = packing.begun(sequence, np.array([9], np.int32), each_document)
  assert found.tokens.tolist() == tokens and found.tokens.dtype == np.int32
  assert [(span.start, span.end) for span in found.spans] == spans
  assert [span.doc_id for span in found.spans] == ["a", "a", "b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, material):
  """SmolLM2's tokenizer as it is and with a BOS, each with the same small random model; and talks."""
  folder = tmp_path_factory.mktemp("begun")
  shape = ModelConfig(family="llama", vocab_size=49152, embed_dim=32, mlp_dim=64, num_layers=2, num_heads=4,
                      num_kv_heads=2, head_dim=8, norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, max_positions=512,
                      tied=True)
  params = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, init_params(shape, jax.random.key(0), np.float32))
  tokenizer = load_tokenizer(material / "smollm2.gguf")
  hf.export_hf(params, shape, tokenizer, folder / "plain")
  tokenizer.add_bos_token = True
  hf.export_hf(params, shape, tokenizer, folder / "model")
  write_talks(folder / "talks.jsonl")
  return folder


BOS = "<|im_start|>"  # SmolLM2's bos_token


def test_score_gives_the_texts_own_tokens_and_the_first_an_nll(folder, tmp_path):
  texts = {"a": "The library stands.", "b": "é", "c": "x"}

  def scored(model, before):
    lines = [json.dumps({"id": name, "text": before + text}) for name, text in texts.items()]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    return score(str(folder / model), str(tmp_path / "in.jsonl"))[0].to_pylist()
  found, written = scored("model", ""), scored("plain", BOS)
  written = [row | {"position": row["position"] - 1} for row in written if row["position"]]
  assert [(row["id"], row["position"], row["token"]) for row in found] == [
      (row["id"], row["position"], row["token"]) for row in written]
  for name in ("nll", "entropy"):
    np.testing.assert_allclose([row[name] for row in found], [row[name] for row in written], atol=TOLERANCE)
  plain = [row for row in scored("plain", "") if row["id"] == "a"]
  assert plain[0]["nll"] is None
  assert max(abs(mine["entropy"] - theirs["entropy"]) for mine, theirs in zip(found, plain)) > 50 * TOLERANCE


def test_documents_are_read_behind_it_within_their_length(folder):
  source = config_lib.Source("documents", "jsonl", str(folder / "talks.jsonl"), id_field="id", text_field="text",
                             split="")
  options = Options((64,), 2, "nvidia", 0, False, None, None, None, None, source, 16, None)
  plain, begun = (documents.read(load_tokenizer(folder / name), options, 64) for name in ("plain", "model"))
  for without, having in zip(plain, begun, strict=True):
    assert having.tolist() == [1, *without[:63]]


@pytest.mark.parametrize("method", ["policylong", "standard"])
def test_a_round_is_screened_and_trained_on_begun_rows(method, folder, tmp_path):
  config = small_config(folder)
  config.model.path, config.method, config.rounds = str(folder / "model"), method, 1
  config.mesh.update({"data": 2, "context": 4})
  config.training.update({"steps_per_round": 1, "checkpoint_every": 1, "document_masking": method == "standard"})
  config.eval.tasks = ()
  page = loop.run(config_lib.parse(config), tmp_path)
  round_ = Workdir(tmp_path).round(1)
  records = read_tokens(sequence_paths(round_.sequences))
  length = 256
  assert records.shape[1] == length * (3 if method == "standard" else 1)
  assert (records[:, 0] == 1).all()
  assert "begins with &lt;|im_start|&gt;" in page.read_text()
  if method == "standard":
    for tokens, numbers, _ in records.reshape(-1, 3, length):
      assert (tokens[np.flatnonzero(np.diff(numbers, prepend=0))] == 1).all(), "each document begins so"
    return
  assert (records[:, 1:] != 1).all()
  for spans in read_spans(round_.directory / "sequences.parquet", range(len(records))):
    assert spans[0].start == 0 and spans[-1].end == length
    assert all(before.end == after.start for before, after in itertools.pairwise(spans))
  tokenizer, model = load_tokenizer(folder / "model"), hf.read_model_config(folder / "model")
  plain = Scorer(hf.load_params(folder / "model", model, np.float32), model, mesh(), dtype="float32",
                 tokens_per_batch=512, bucket_multiple=64)
  talks = {f"talks/{json.loads(line)['id']}": json.loads(line)["text"]
           for line in (folder / "talks.jsonl").read_text().splitlines()}
  verdict = pq.read_table(round_.table("verdicts")).slice(0, 1).to_pylist()[0]
  root = next(row for row in pq.read_table(round_.table("roots")).to_pylist() if row["doc_id"] == verdict["doc_id"])
  chunk_doc, _, place = verdict["chunk_id"].rpartition("#")
  start, end = map(int, place.split("-"))
  chunk = encode(tokenizer, talks[chunk_doc][start:end] + config.synthesis.separator)[0][:64]
  at = verdict["position"]
  (alone, _), (behind, _) = plain.traces([np.array([1, *root["tokens"]]), np.array([1, *chunk, *root["tokens"]])])
  np.testing.assert_allclose(root["entropy"], alone[1:], atol=1e-3)
  np.testing.assert_allclose([verdict["entropy_before"], verdict["entropy_after"]],
                             [alone[1 + at], behind[1 + len(chunk) + at]], atol=1e-3)
