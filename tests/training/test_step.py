"""The training step against a decoder written out in float64, and against itself cut into parts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import LENGTH, TINY, mesh_of, tiny_params, training_config

from policylong.errors import UserError
from policylong.training.optimizer import make_optimizer
from policylong.training.state import abstract_state, initial_state
from policylong.training.step import Batch, make_batch, make_train_step, mean_loss, token_sharding

TOKENS = np.random.default_rng(7).integers(0, TINY.vocab_size, (8, LENGTH)).astype(np.int32)


def float64_loss(params, tokens) -> float:
  """Mean cross entropy of all next tokens under a Llama-shaped decoder, in plain float64 numpy."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  N, K, H = TINY.num_heads, TINY.num_kv_heads, TINY.head_dim
  angles = np.arange(tokens.shape[1])[:, None] * TINY.rope_theta ** (-np.arange(H // 2) / (H // 2))
  cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

  def norm(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + TINY.norm_eps) * scale

  def rotate(x):
    a, b = x[..., :H // 2], x[..., H // 2:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

  x = p["embedding"][tokens]
  for i in range(TINY.num_layers):
    w = {name: value[i] for name, value in p["layers"].items()}
    h = norm(x, w["attention_norm"])
    q, k, v = (np.einsum("bsd,dnh->bsnh", h, w[name]) for name in "qkv")
    q, k, v = rotate(q), np.repeat(rotate(k), N // K, 2), np.repeat(v, N // K, 2)
    scores = np.einsum("bsnh,btnh->bnst", q, k) / math.sqrt(H)
    scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    x = x + np.einsum("bnst,btnh,nhd->bsd", weights, v, w["out"])
    h = norm(x, w["mlp_norm"])
    gate = h @ w["gate"]
    x = x + (gate / (1 + np.exp(-gate)) * (h @ w["up"])) @ w["down"]
  logits = norm(x, p["final_norm"]) @ p["embedding"].T
  logits = logits[:, :-1]
  lse = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
  return float((lse - np.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]).mean())


@pytest.fixture(scope="module")
def params():
  """Five times the usual spread, so that attention and the MLP matter to the loss."""
  return jax.tree.map(lambda x: 5 * x if x.ndim > 2 else x, tiny_params())


@pytest.fixture(scope="module")
def whole(params):
  """What one device makes of the whole batch at once."""
  return run_step(params, TOKENS)


def loss_of(params, **changes):
  return mean_loss(params, TINY, *make_batch(TOKENS, 1),
                   **{"compute_dtype": jnp.float32, "remat": "none", "context": None} | changes)


def run_step(params, tokens, mesh=None, **changes):
  """(metrics, state) after one step on int[B, L] tokens; the last axis of `accumulation` cuts the batch."""
  mesh = mesh or mesh_of()
  training = training_config(**{"batch_size": len(tokens)} | changes)
  optimizer = make_optimizer(training, 1, TINY)
  state = initial_state(jax.tree.map(jnp.copy, params), optimizer, abstract_state(TINY, optimizer, mesh))
  tokens = tokens.reshape(training.accumulation, -1, tokens.shape[1])
  placed = jax.device_put(make_batch(tokens, mesh.shape["context"]), token_sharding(mesh, tokens.shape))
  with jax.set_mesh(mesh):
    state, metrics = make_train_step(TINY, training, 1, mesh)(state, placed)
  return metrics, state


def test_the_loss_is_the_cross_entropy_of_every_next_token(params):
  # a mean of 248 float32 cross entropies of about 4 nats
  assert float(loss_of(params)) == pytest.approx(float64_loss(params, TOKENS), abs=2e-6)


def test_a_model_that_knows_nothing_loses_log_v():
  zeros = jax.tree.map(jnp.zeros_like, tiny_params())
  assert float(loss_of(zeros)) == pytest.approx(math.log(TINY.vocab_size), abs=1e-6)


@pytest.mark.parametrize("remat", ["none", "all_but_products", "all_but_attention", "full"])
def test_gradients_are_finite_differences_of_the_float64_loss(params, remat):
  grads = jax.grad(lambda p: loss_of(p, remat=remat))(params)
  rng = np.random.default_rng(0)
  for path, grad in jax.tree_util.tree_flatten_with_path(grads)[0]:
    direction = rng.standard_normal(grad.shape) * np.asarray(grad)  # along the gradient, so that it is not near 0

    def shifted(eps, path=path, direction=direction):
      return jax.tree_util.tree_map_with_path(
          lambda at, x: np.asarray(x, np.float64) + (eps * direction if at == path else 0), params)

    eps = 1e-4 / np.abs(direction).max()
    numeric = (float64_loss(shifted(eps), TOKENS) - float64_loss(shifted(-eps), TOKENS)) / (2 * eps)
    found = float((np.asarray(grad, np.float64) * direction).sum())
    # float32 gradients: a few 1e-6 relative to the sum of the terms' sizes
    scale = float(np.abs(np.asarray(grad, np.float64) * direction).sum())
    assert abs(found - numeric) < 2e-5 * scale, path


def test_one_step_is_adamw_written_out_on_the_gradient(params, whole):
  metrics, state = whole
  grads = [np.asarray(g, np.float64) for g in jax.tree.leaves(jax.grad(loss_of)(params))]
  norm = math.sqrt(sum((g * g).sum() for g in grads))
  assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-5)
  assert float(metrics.learning_rate) == pytest.approx(1e-2)  # 6 steps, 20% of them warm-up: one
  clip = min(1.0, 1.0 / norm)
  for before, after, g in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), grads):
    before, g = np.asarray(before, np.float64), g * clip
    is_norm = np.all(before == 1.0)
    wanted = before - 0.01 * (g / (np.abs(g) + 1e-8) + (0 if is_norm else 0.1 * before))
    # g / |g| is a sign: where the gradient is rounding, float32 may not know it
    sure = np.abs(g) > 1e-7
    assert sure.mean() > 0.8
    np.testing.assert_allclose(np.asarray(after)[sure], wanted[sure], atol=2e-4)
  assert int(state.step) == 1


def assert_same_step(found, wanted):
  """Same loss and gradient norm; parameters equal where the gradient is more than rounding.

  Adam's first update is the gradient's sign times the rate, so a gradient of the size of the rounding
  of a float32 sum may step either way; it must be rare and at most two rates wide.
  """
  (metrics, state), (other_metrics, other) = found, wanted
  np.testing.assert_allclose(metrics.loss, other_metrics.loss, rtol=1e-6)
  np.testing.assert_allclose(metrics.grad_norm, other_metrics.grad_norm, rtol=2e-6)
  for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params)):
    difference = np.abs(np.asarray(a) - np.asarray(b))
    assert (difference > 1e-4).mean() < 1e-3 and difference.max() < 2.1e-2
  # Moments are linear in the gradient (and its square), which sums a float32 term for each token: in another
  # order the sum differs by about sqrt(tokens) roundings of terms of the size of the largest gradients.
  rounding = TOKENS.size**0.5 * 2**-23
  for a, b in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(other.opt_state)):
    np.testing.assert_allclose(a, b, atol=rounding * max(1e-3, float(np.abs(b).max())))


@pytest.mark.parametrize("accumulation", [4])
def test_microbatches_add_up_to_the_whole_batch(params, whole, accumulation):
  assert_same_step(run_step(params, TOKENS, accumulation=accumulation), whole)


MESHES = [{"data": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2},
          {"fsdp": 2, "context": 2, "tensor": 2}, {"data": 2, "context": 4}, {"context": 8}]


@pytest.mark.parametrize("sizes, mode", [(sizes, "gather") for sizes in MESHES]
                         + [(sizes, "ring") for sizes in MESHES if "context" in sizes])
def test_eight_devices_make_the_step_of_one(params, whole, sizes, mode):
  found = run_step(params, TOKENS, mesh_of(**sizes), context_attention=mode, remat="all_but_attention")
  assert_same_step(found, whole)
  assert len(found[1].params["layers"]["q"].sharding.device_set) == 8


def test_a_batch_that_the_mesh_does_not_divide_is_one_sentence():
  with pytest.raises(UserError, match=r"batch dimension is 4, not divisible by .* 8"):
    token_sharding(mesh_of(data=2, fsdp=4), (1, 4, LENGTH))


def test_bfloat16_compute_keeps_float32_weights_and_changes_the_loss_by_its_rounding(params, whole):
  metrics, state = run_step(params, TOKENS, compute_dtype="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
  # bfloat16 keeps 8 bits: logits are off by some 0.4% each way, the mean over 248 tokens by less
  assert float(metrics.loss) == pytest.approx(float(whole[0].loss), rel=5e-3)


def test_the_state_is_donated(params):
  training = training_config(batch_size=8)
  optimizer, mesh = make_optimizer(training, 1, TINY), mesh_of()
  tokens = jax.ShapeDtypeStruct((1, 8, LENGTH), jnp.int32, sharding=token_sharding(mesh, (1, 8, LENGTH)))
  abstract = abstract_state(TINY, optimizer, mesh)
  lowered = make_train_step(TINY, training, 1, mesh).lower(abstract, Batch(tokens, tokens))
  donated = [leaf.donated for leaf in jax.tree.leaves(lowered.args_info[0][0])]
  assert all(donated) and len(donated) == len(jax.tree.leaves(abstract))
