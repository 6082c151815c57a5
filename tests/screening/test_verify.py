"""Entropies of the scoring program against one unpadded row at a time and full float64 logits."""

import jax
import numpy as np
import pytest

from policylong import config as config_lib
from policylong.devices.mesh import make_mesh
from policylong.model.qwen import ModelConfig, hidden_states, init_params, output_matrix
from policylong.screening.scorer import Scorer
from policylong.screening.verify import Pair, verify

MODEL = ModelConfig(family="qwen3", vocab_size=211, embed_dim=48, mlp_dim=96, num_layers=3, num_heads=6, num_kv_heads=2,
                    head_dim=16, norm_eps=1e-6, rope_theta=1e4, rope_scaling=None, max_positions=512, tied=True)
# float32 against float64 over 3 layers: rounding of logits of order 10 (weights are blown up below)
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def params():
  tree = init_params(MODEL, jax.random.key(0), np.float32)
  # At the usual 0.02 every distribution is near uniform; larger weights make entropies differ. (Much larger
  # ones make attention so sharp that rounding alone moves single positions by 1e-4.)
  return jax.tree.map(lambda x: x * 3 if x.ndim > 1 else x, tree)


@pytest.fixture(scope="module")
def scorer(params):
  mesh = make_mesh(config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1))
  return Scorer(params, MODEL, mesh, dtype="float32", tokens_per_batch=64, bucket_multiple=16)


def _plain_entropy(params, tokens):
  """H_t and nll of tokens 1.. of one unpadded row, from full logits in float64."""
  states = np.asarray(hidden_states(params, MODEL, np.asarray(tokens)[None], compute_dtype=np.float32))[0]
  logits = states.astype(np.float64) @ np.asarray(output_matrix(params, MODEL), np.float64).T
  logp = logits - logits.max(-1, keepdims=True)
  logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
  entropy = -(np.exp(logp) * logp).sum(-1)
  return entropy[:-1], -logp[np.arange(len(tokens) - 1), tokens[1:]]


def test_traces_equal_plain_entropies_row_by_row(params, scorer):
  rng = np.random.default_rng(0)
  rows = [rng.integers(0, 211, n).astype(np.int32) for n in (17, 40, 17, 1, 40)]
  seen = []
  for row, (entropy, nll) in zip(rows, scorer.traces(rows, seen.append)):
    assert len(entropy) == len(nll) == len(row) and np.isnan(entropy[0]) and np.isnan(nll[0])
    if len(row) > 1:
      wanted_entropy, wanted_nll = _plain_entropy(params, row)
      np.testing.assert_allclose(entropy[1:], wanted_entropy, atol=TOLERANCE)
      np.testing.assert_allclose(nll[1:], wanted_nll, atol=TOLERANCE)
  assert sum(seen) == sum(map(len, rows))


def test_a_pass_scores_all_anchors_of_a_root_as_one_row_an_anchor_would(params, scorer):
  rng = np.random.default_rng(1)
  pairs = []
  for r in range(2):
    root = rng.integers(0, 211, 30).astype(np.int32)
    positions = np.sort(rng.choice(np.arange(1, len(root)), 4 + r, replace=False)).astype(np.int32)
    pairs += [Pair(f"root{r}", root, positions[:wanted], rng.integers(0, 211, n).astype(np.int32))
              for n, wanted in ((5, 1), (5, 3), (5, 2), (21, len(positions)))]
  for pair, read in zip(pairs, verify(scorer, pairs, most_positions=8)):
    alone = _plain_entropy(params, pair.root)
    joined = _plain_entropy(params, np.concatenate([pair.chunk, pair.root]))
    for before, after, one, both in zip(read[::2], read[1::2], alone, joined):  # entropies, then losses
      np.testing.assert_allclose(before, one[pair.positions - 1], atol=TOLERANCE)
      np.testing.assert_allclose(after, both[pair.positions - 1 + len(pair.chunk)], atol=TOLERANCE)


def test_an_empty_context_changes_nothing_at_all(scorer):
  root = np.random.default_rng(2).integers(0, 211, 40).astype(np.int32)
  pair = Pair("root", root, np.array([7, 39], np.int32), np.zeros(0, np.int32))
  (read,) = verify(scorer, [pair], most_positions=2)
  assert read.entropy_before.tolist() == read.entropy_after.tolist()
  assert read.nll_before.tolist() == read.nll_after.tolist()


def test_what_follows_the_last_anchor_does_not_matter(scorer):
  rng = np.random.default_rng(3)
  root, chunk = rng.integers(0, 211, 40).astype(np.int32), rng.integers(0, 211, 20).astype(np.int32)
  changed = root.copy()
  changed[31:] = rng.integers(0, 211, 9)
  positions = np.array([10, 30], np.int32)
  (one,), (two,) = (verify(scorer, [Pair("r", tokens, positions, chunk)], 2) for tokens in (root, changed))
  np.testing.assert_array_equal(one, two)


def test_shapes_are_a_handful_and_padding_is_bounded(scorer):
  wide = Scorer.bucket
  for low, high in ((1024, 2048), (4096, 8192)):
    buckets = {wide(scorer, n) for n in range(low + 1, high + 1)}
    assert len(buckets) <= 8
  assert all(n <= wide(scorer, n) <= max(n + 15, n * 1.26) for n in range(1, 5000))
