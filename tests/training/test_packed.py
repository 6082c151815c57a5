"""Packed sequences: the loss is that of their documents one by one, on any mesh, and a token counts as a token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import float64_loss
from tiny_training import LENGTH, TINY, mesh_of, tiny_params, training_config, write_records

from policylong.model.qwen import abstract_params, hidden_states, output_matrix
from policylong.training.batches import Batches
from policylong.training.held_out import HeldOut
from policylong.training.optimizer import make_optimizer
from policylong.training.state import abstract_state, initial_state
from policylong.training.step import (
    NO_TARGET,
    make_packed_batch,
    make_train_step,
    mean_loss,
    summed_loss,
    token_sharding,
)

# Lengths of the documents of four sequences of 32 tokens; what is left of each is filled up. (Every other length
# would be another program to compile.)
DOCUMENTS = [(10, 22), (10, 4, 10), (22,), (4, 4, 10, 10)]


@pytest.fixture(scope="module")
def params():
  """Five times the usual spread, so that attention matters to the loss."""
  return jax.tree.map(lambda x: 5 * x if x.ndim > 2 else x, tiny_params())


@pytest.fixture(scope="module")
def documents():
  """[[(tokens, learnt)]]: of each sequence its documents; half of the tokens are learnt, at random."""
  rng = np.random.default_rng(1)
  return [[(rng.integers(1, TINY.vocab_size, n).astype(np.int32), rng.random(n) < 0.5) for n in lengths]
          for lengths in DOCUMENTS]


def packed_by_hand(documents, everything=False) -> np.ndarray:
  rows = np.zeros((len(documents), 3, LENGTH), np.int32)
  for row, row_documents in zip(rows, documents):
    at = 0
    for number, (tokens, learnt) in enumerate(row_documents, start=1):
      place = slice(at, at + len(tokens))
      row[0, place], row[1, place], row[2, place] = tokens, number, learnt | everything
      at += len(tokens)
  return rows


@pytest.fixture(scope="module")
def one_by_one(params, documents):
  """([(sum of the nll of learnt tokens, their number)] of each sequence, the gradient of the mean of all).

  Each document is computed in a batch of its own, by plain attention and from full logits.
  """
  @jax.jit
  def nll(params, tokens, learnt):
    hidden = hidden_states(params, TINY, tokens[None], compute_dtype=jnp.float32,
                           attention_implementation="reference")[0]
    log_probabilities = jax.nn.log_softmax(hidden @ output_matrix(params, TINY).T)
    return jnp.sum(-log_probabilities[jnp.arange(len(tokens) - 1), tokens[1:]] * learnt[1:])

  value_and_grad = jax.jit(jax.value_and_grad(nll))
  sums, gradient = [], jax.tree.map(jnp.zeros_like, params)
  for row in documents:
    found = [value_and_grad(params, *document) for document in row]
    sums.append((sum(float(value) for value, _ in found), sum(int(learnt[1:].sum()) for _, learnt in row)))
    gradient = jax.tree.map(lambda *terms: sum(terms), gradient, *(grad for _, grad in found))
  count = sum(count for _, count in sums)
  return sums, jax.tree.map(lambda x: x / count, gradient)


def mean_of(sums) -> float:
  return sum(total for total, _ in sums) / sum(count for _, count in sums)


HOW = {"compute_dtype": jnp.float32, "remat": "none", "context": None}


def test_the_batch_of_a_packed_sequence_written_out():
  packed = np.array([[5, 6, 7, 8, 9, 0, 0, 0], [1, 1, 1, 2, 2, 0, 0, 0], [0, 1, 1, 1, 1, 0, 0, 0]], np.int32)
  batch = make_packed_batch(packed[None], 1)
  assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 0, 0, 0]]
  # 8 is learnt, but stands first: nothing of its own document predicts it
  assert batch.targets.tolist() == [[6, 7, -1, 9, -1, -1, -1, -1]]
  assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 0, 0, 0]]
  assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]


def test_the_loss_of_everything_is_the_float64_loss_of_each_document_by_itself(params, documents):
  batch = make_packed_batch(packed_by_hand(documents, everything=True), 1)
  total, count = jax.jit(lambda p: summed_loss(p, TINY, batch, **HOW))(params)
  wanted = [(len(tokens) - 1) * float64_loss(params, tokens[None]) for row in documents for tokens, _ in row]
  assert int(count) == sum(n - 1 for lengths in DOCUMENTS for n in lengths)
  # 96 float32 cross entropies of about 4 nats
  assert float(total) == pytest.approx(sum(wanted), abs=96 * 2e-6)


def test_a_masked_loss_and_its_gradient_are_those_of_the_documents_one_by_one(params, documents, one_by_one):
  batch = make_packed_batch(packed_by_hand(documents), 1)
  loss, gradient = jax.jit(jax.value_and_grad(lambda p: mean_loss(p, TINY, *batch, **HOW)))(params)
  sums, wanted = one_by_one
  assert sum(count for _, count in sums) == (batch.targets != NO_TARGET).sum()
  assert float(loss) == pytest.approx(mean_of(sums), abs=4e-6)
  for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted)):
    # float32 sums of about 50 terms, in another order
    np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("sizes, mode", [({"data": 2, "context": 4}, "gather"), ({"data": 2, "context": 4}, "ring"),
                                         ({"data": 2, "fsdp": 2, "tensor": 2}, "gather")])
def test_on_a_mesh_in_unequal_microbatches_a_token_counts_as_a_token(params, documents, one_by_one, sizes, mode):
  mesh = mesh_of(**sizes)
  accumulation = 4 // (sizes["data"] * sizes.get("fsdp", 1))
  training = training_config(accumulation=accumulation, context_attention=mode, remat="all_but_attention")
  optimizer = make_optimizer(training, 1, TINY)
  packed = packed_by_hand(documents).reshape(accumulation, -1, 3, LENGTH)
  batch = jax.device_put(make_packed_batch(packed, mesh.shape["context"]),
                         token_sharding(mesh, (*packed.shape[:2], LENGTH)))
  state = initial_state(jax.tree.map(jnp.copy, params), optimizer, abstract_state(TINY, optimizer, mesh))
  with jax.set_mesh(mesh):
    _, metrics = make_train_step(TINY, training, 1, mesh)(state, batch)
  sums, gradient = one_by_one
  norm = float(np.sqrt(sum(float(jnp.sum(g * g)) for g in jax.tree.leaves(gradient))))
  np.testing.assert_allclose(metrics.loss, mean_of(sums), rtol=2e-6)
  np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-5)
  assert len({int((part[:, 2] == 1).sum()) for part in packed}) == accumulation


def test_held_out_loss_is_that_of_the_documents_also_where_the_last_batch_is_not_full(params, documents, one_by_one):
  mesh = mesh_of(data=2, context=4)
  held_out = HeldOut(packed_by_hand(documents)[:3], training_config(accumulation=2), TINY, mesh)
  placed = jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), params,
                        abstract_params(TINY, jnp.float32, mesh))
  sums = one_by_one[0][:3]
  found = held_out.loss(placed)
  assert found.tokens == sum(count for _, count in sums) and found.nats == pytest.approx(mean_of(sums), abs=4e-6)


def test_packed_records_become_batches_and_wrong_ones_one_sentence(tmp_path, documents):
  packed = packed_by_hand(documents)
  write_records(tmp_path / "part-00000.array_record", [row.astype("<i4").tobytes() for row in packed])
  mesh = mesh_of(data=2, context=4)
  shape = (2, 2, LENGTH)
  batches = Batches([tmp_path / "part-00000.array_record"], shape=shape, sharding=token_sharding(mesh, shape),
                    vocab_size=TINY.vocab_size, seed=0, round_index=1, rows=3)
  batch = next(batches)
  rows = {row[0].tobytes(): row for row in packed}
  for micro, at in np.ndindex(2, 2):
    found = [np.asarray(array)[micro, at] for array in batch[:4]]  # no weights
    tokens = found[0].reshape(8, -1)[[0, 2, 4, 6, 7, 5, 3, 1]].ravel()  # zig-zag over four devices, undone
    wanted = make_packed_batch(rows.pop(tokens.tobytes()), 4)
    for array, other in zip(found, wanted):
      np.testing.assert_array_equal(array, other)
  assert not rows
