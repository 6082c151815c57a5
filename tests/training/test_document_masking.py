"""With document masking a step on a round's sequences is that of their documents one by one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import LENGTH, TINY, mesh_of, tiny_params, training_config

from policylong.devices import hardware
from policylong.model.qwen import hidden_states, output_matrix
from policylong.records import LongSequence, Span
from policylong.storage.workdir import Workdir
from policylong.synthesis.storage import sequence_paths, write_sequences
from policylong.training.batches import Batches
from policylong.training.step import mean_loss, token_sharding
from policylong.training.train import Trainer

# Two blocks of a root behind its contexts, and two documents: (role, root, tokens).
SPANS = [[("negative", "r", 2), ("positive", "r", 3), ("root", "r", 5), ("positive", "s", 12), ("root", "s", 10)],
         [("root", "t", 22), ("root", "u", 10)]]
# What must not see each other, in tokens: (sequence, start, end).
DOCUMENTS = [(0, 0, 10), (0, 10, 32), (1, 0, 22), (1, 22, 32)]
TOKENS = np.random.default_rng(5).integers(1, TINY.vocab_size, (2, LENGTH)).astype(np.int32)


def params():
  """Five times the usual spread, so that attention matters to the loss."""
  return jax.tree.map(lambda x: 5 * x if x.ndim > 2 else x, tiny_params())


@pytest.fixture
def paths(tmp_path):
  """The sequences as a round with document masking leaves them."""
  made = []
  for tokens, row in zip(TOKENS, SPANS):
    ends = np.cumsum([size for _, _, size in row])
    made.append(LongSequence(tokens, tuple(
        Span(int(end) - size, int(end), role, name, "", -1, float("nan"), -1, 0)
        for end, (role, name, size) in zip(ends, row))))
  write_sequences(made, tmp_path / "round", packed=True)
  return sequence_paths(tmp_path / "round" / "sequences")


@pytest.fixture(scope="module")
def one_by_one():
  """(mean loss, its gradient): each document by itself, unpacked, by plain attention and from full logits."""
  @jax.jit
  def nll(params, tokens):
    hidden = hidden_states(params, TINY, tokens[None], compute_dtype=jnp.float32,
                           attention_implementation="reference")[0]
    log_probabilities = jax.nn.log_softmax(hidden @ output_matrix(params, TINY).T)
    return -jnp.sum(log_probabilities[jnp.arange(len(tokens) - 1), tokens[1:]])

  value_and_grad = jax.jit(jax.value_and_grad(nll))
  found = [value_and_grad(params(), TOKENS[row, start:end]) for row, start, end in DOCUMENTS]
  count = sum(end - start - 1 for _, start, end in DOCUMENTS)
  return (sum(float(value) for value, _ in found) / count,
          jax.tree.map(lambda *terms: sum(terms) / count, *(gradient for _, gradient in found)))


def test_loss_and_gradients_are_those_of_the_documents_one_by_one(paths, one_by_one):
  shape = (1, 2, LENGTH)
  batches = Batches(paths, shape=shape, sharding=token_sharding(mesh_of(), shape), vocab_size=TINY.vocab_size, seed=0,
                    round_index=1, rows=3)
  batch = jax.tree.map(lambda x: x[0], next(batches))
  loss, gradient = jax.jit(jax.value_and_grad(lambda p: mean_loss(
      p, TINY, *batch, compute_dtype=jnp.float32, remat="none", context=None)))(params())
  wanted_loss, wanted = one_by_one
  assert float(loss) == pytest.approx(wanted_loss, abs=4e-6)
  for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted)):
    # float32 sums of about 60 terms, in another order
    np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("masked", [True, False])
def test_a_training_step_is_masked_where_the_config_says_so(tmp_path, paths, one_by_one, monkeypatch, masked):
  if not masked:
    made = [LongSequence(tokens, (Span(0, LENGTH, "root", "r", "", -1, float("nan"), -1, 0),)) for tokens in TOKENS]
    write_sequences(made, tmp_path / "whole")
    paths = sequence_paths(tmp_path / "whole" / "sequences")
  monkeypatch.setattr(hardware, "peak_flops", lambda devices: 1e12)
  training = training_config(batch_size=2, steps_per_round=1, document_masking=masked)
  trainer = Trainer(training, TINY, mesh_of(), Workdir(tmp_path / "run"), length=LENGTH, rounds=1, seed=0)
  attended = (2 * 10**2 + 2 * 22**2) / 64
  trainer.train_round(trainer.initial(params()), 1, paths, attended if masked else None)
  trainer.close()
  (line,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
  loss, gradient = one_by_one
  norm = float(np.sqrt(sum(float(jnp.sum(g * g)) for g in jax.tree.leaves(gradient))))
  if masked:
    assert line["loss"] == pytest.approx(loss, abs=4e-6) and line["grad_norm"] == pytest.approx(norm, rel=1e-5)
  else:
    assert abs(line["loss"] - loss) > 1e-3 and abs(line["grad_norm"] / norm - 1) > 1e-3
  # 6 FLOPs a weight and token, the output matrix's too; attention's two products over half of what a token may see,
  # two FLOPs each and three times with the backward pass, of 8 heads of 8.
  weights = 2 * (32 * 8 * (8 + 2 * 4 + 8) + 3 * 32 * 64 + 2 * 32) + 32 + 64 * 32
  by_hand = 6 * weights + 2 * 3 * 2 * 2 * (attended if masked else LENGTH) / 2 * 8 * 8
  assert line["peak_share"] * 1e12 / line["tokens_per_second"] == pytest.approx(by_hand, rel=1e-9)
