"""Every implementation of attention against float64 numpy: the formula, and its gradient by hand.

Tolerances, float32: 2e-6 forward and 5e-5 in gradients, for inputs of standard deviation 1.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from policylong.attention import attention as any_attention
from policylong.attention import blockwise, cudnn
from policylong.attention.api import remat_policy
from policylong.errors import UserError

IMPLEMENTATIONS = ["blockwise", "reference", "splash"]
HEADS = [(2, 2), (3, 1), (8, 2), (8, 1)]  # query heads, key/value heads


def random_case(B, S, N, K, H, seed=0):
  rng = np.random.default_rng(seed)
  shapes = ((B, S, N, H), (B, S, K, H), (B, S, K, H), (B, S, N, H))
  return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def float64_attention(q, k, v, d_out, positions, segment_ids):
  """(out, dq, dk, dv), one head after another."""
  q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
  B, S, N, H = q.shape
  out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
  for b in range(B):
    position = np.arange(S) if positions is None else np.asarray(positions[b])
    segment = np.zeros(S) if segment_ids is None else np.asarray(segment_ids[b])
    seen = (position[None] <= position[:, None]) & (segment[None] == segment[:, None])
    for head in range(N):
      g = head // (N // k.shape[2])
      z = np.where(seen, q[b, :, head] @ k[b, :, g].T / np.sqrt(H), -np.inf)
      p = np.exp(z - z.max(1, keepdims=True))
      p /= p.sum(1, keepdims=True)
      out[b, :, head] = p @ v[b, :, g]
      dp = d_out[b, :, head] @ v[b, :, g].T
      dz = p * (dp - (p * dp).sum(1, keepdims=True)) / np.sqrt(H)
      dq[b, :, head] = dz @ k[b, :, g]
      dk[b, :, g] += dz.T @ q[b, :, head]
      dv[b, :, g] += p.T @ d_out[b, :, head]
  return out, dq, dk, dv


def with_gradients(attention, q, k, v, d_out):
  """(out, dq, dk, dv) of attention(q, k, v)."""
  @jax.jit
  def run(q, k, v, d_out):
    out, pull = jax.vjp(attention, q, k, v)
    return out, *pull(d_out.astype(out.dtype))
  return run(*(jnp.asarray(x) for x in (q, k, v, d_out)))


def masks(kind, B, S, seed=1):
  rng = np.random.default_rng(seed)
  cuts = np.sort(rng.integers(0, S, (B, 4)), axis=1)
  segments = (np.arange(S)[None, :, None] >= cuts[:, None]).sum(-1).astype(np.int32)
  shuffled = np.stack([rng.permutation(S) for _ in range(B)]).astype(np.int32)
  return {
    "causal": (None, None),
    "packed": (None, segments),
    "shuffled positions": (shuffled, None),
    # As where a shared prefix is followed by several continuations: positions occur more than once.
    "repeated positions": (shuffled // 3, None),
    "packed and shuffled": (shuffled, segments),
  }[kind]


def assert_matches(values, expected):
  for name, value, wanted, tolerance in zip(("out", "dq", "dk", "dv"), values, expected, (2e-6, *[5e-5] * 3)):
    np.testing.assert_allclose(value, wanted, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kind", ["causal", "packed"])
def test_agrees_with_float64(implementation, heads, kind):
  B, S = 2, 300  # blocks of 128: the last one is uneven
  arrays = random_case(B, S, *heads, 16)
  positions, segment_ids = masks(kind, B, S)
  values = with_gradients(lambda q, k, v: any_attention(
      q, k, v, positions=positions, segment_ids=segment_ids, implementation=implementation), *arrays)
  assert_matches(values, float64_attention(*arrays, positions, segment_ids))


@pytest.mark.parametrize("S, block, kind", [
  (1, 128, "causal"), (1, 128, "packed and shuffled"), (64, 16, "causal"), (64, 16, "packed"),
  (129, 128, "causal"), (65, 16, "shuffled positions"), (65, 16, "repeated positions"),
  (129, 32, "packed and shuffled"), (1100, None, "packed")])
def test_any_length_and_block(S, block, kind, monkeypatch):
  if block:
    monkeypatch.setattr(blockwise, "SHORT_BLOCK", block)
  arrays = random_case(1, S, 3, 1, 8)
  positions, segment_ids = masks(kind, 1, S)
  values = with_gradients(lambda q, k, v: any_attention(
      q, k, v, positions=positions, segment_ids=segment_ids, implementation="blockwise"), *arrays)
  assert_matches(values, float64_attention(*arrays, positions, segment_ids))


@pytest.mark.parametrize("S, kind", [(1, "causal"), (300, "packed"), (600, "packed and shuffled")])
def test_the_blocks_of_a_gpu_agree_with_float64(S, kind, monkeypatch):
  monkeypatch.setattr(blockwise, "GPU_BLOCK", 512)  # 600 tokens are two of them, 300 one of 384
  monkeypatch.setattr(blockwise.meshes, "platform", lambda: "gpu")
  assert blockwise._block(S) == {1: 128, 300: 384, 600: 512}[S]
  arrays = random_case(1, S, 3, 1, 8)
  positions, segment_ids = masks(kind, 1, S)
  monkeypatch.setattr(cudnn, "unsuitable", lambda *_, **__: "this is a test")
  values = with_gradients(lambda q, k, v: any_attention(
      q, k, v, positions=positions, segment_ids=segment_ids, implementation="blockwise"), *arrays)
  assert_matches(values, float64_attention(*arrays, positions, segment_ids))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scores_of_ten_thousand_overflow_nothing(implementation):
  q, k, v, d_out = random_case(1, 200, 2, 1, 16)
  q, k = q * 100, k * 100
  positions, segment_ids = masks("packed", 1, 200)
  out = any_attention(q, k, v, positions=positions, segment_ids=segment_ids, implementation=implementation)
  # Scores near 1e4 have a spacing of 1e-3 in float32.
  np.testing.assert_allclose(out, float64_attention(q, k, v, d_out, positions, segment_ids)[0], atol=2e-2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_gradient_crosses_from_one_packed_document_to_another(implementation):
  B, S = 1, 300
  q, k, v, d_out = random_case(B, S, 4, 2, 16)
  segment_ids = np.repeat([[3, 1, 2]], [100, 57, 143], axis=1).astype(np.int32)
  d_out[:, 100:157] = 0  # a loss on the first and third documents alone
  values = with_gradients(lambda q, k, v: any_attention(q, k, v, segment_ids=segment_ids,
                                                        implementation=implementation), q, k, v, d_out)
  for gradient in values[1:]:
    assert np.all(np.asarray(gradient[:, 100:157]) == 0.0), "exactly zero"
    # The first token of a document has no choice, so its query has no gradient.
    assert np.all(np.abs(np.asarray(gradient[:, 1:100])).sum((0, 2, 3)) > 0.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_later_token_changes_nothing_before_it(implementation):
  q, k, v, _ = random_case(1, 300, 2, 2, 16)
  changed = [x.copy() for x in (q, k, v)]
  for x in changed:
    x[:, 140] += 5.0
  before, after = (any_attention(*x, implementation=implementation) for x in ((q, k, v), changed))
  np.testing.assert_array_equal(before[:, :140], after[:, :140])
  assert np.all(np.abs(np.asarray(before - after)[:, 140]).max(-1) > 0.01)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_is_within_its_own_rounding(implementation):
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in random_case(1, 300, 6, 2, 32)]
  values = with_gradients(lambda q, k, v: any_attention(q, k, v, implementation=implementation), *arrays)
  expected = float64_attention(*arrays, None, None)
  for value, wanted in zip(values, expected):
    assert value.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: of the result, and of the weights, whose errors mostly cancel over the keys.
    np.testing.assert_allclose(np.asarray(value, np.float64), wanted, rtol=2 ** -6, atol=2 ** -6)


def test_a_nan_stays_visible():
  q, k, v, _ = random_case(1, 300, 2, 1, 16)
  q[0, 200] = np.nan
  out = np.asarray(any_attention(q, k, v, implementation="blockwise"))
  assert np.isnan(out[0, 200]).all() and np.isfinite(np.delete(out, 200, axis=1)).all()


def layers(q, k, v, **kwargs):
  """Three layers of attention under remat in a scan, as the model calls it."""
  @jax.checkpoint
  def layer(x, scale):
    return any_attention(x * scale, k, v, **kwargs), None
  return jax.lax.scan(layer, q, jnp.array([1.0, 0.5, 2.0]))[0]


def test_in_a_scan_with_remat_over_devices_it_equals_the_reference():
  q, k, v, d_out = (jnp.asarray(x) for x in random_case(4, 160, 4, 2, 16))
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  sharding = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
  sharded = [jax.device_put(x, sharding) for x in (q, k, v, d_out)]
  values = with_gradients(lambda *x: layers(*x, implementation="blockwise"), *sharded)
  expected = with_gradients(lambda *x: layers(*x, implementation="reference"), q, k, v, d_out)
  assert_matches(values, expected)


def test_inside_shard_map_it_equals_the_reference():
  q, k, v, d_out = (jnp.asarray(x) for x in random_case(8, 96, 2, 1, 8))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = PartitionSpec("data")
  sharded = jax.shard_map(lambda *x: any_attention(*x, implementation="blockwise"), mesh=mesh,
                          in_specs=(rows, rows, rows), out_specs=rows)
  assert_matches(with_gradients(sharded, q, k, v, d_out), float64_attention(q, k, v, d_out, None, None))


def test_memory_is_linear_in_the_length():
  def temporaries(S):
    q, k = (jax.ShapeDtypeStruct((1, S, heads, 64), jnp.bfloat16) for heads in (9, 3))
    def loss(q, k, v):
      return jnp.sum(any_attention(q, k, v, implementation="blockwise").astype(jnp.float32))
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k).compile()
    return compiled.memory_analysis().temp_size_in_bytes
  sizes = [temporaries(S) for S in (8192, 16384, 131_072)]
  per_token = (sizes[1] - sizes[0]) / 8192
  # A straight line through the first two lengths meets the third, 8 times as far.
  assert sizes[2] == pytest.approx(sizes[1] + per_token * (131_072 - 16384), rel=0.02)
  assert per_token < 12 * 1024, "queries, out and their gradients: a dozen numbers a head and channel"


@pytest.mark.parametrize(("capability", "suits"), [("7.5", False), ("8.0", True), ("12.0", True), ("gfx90a", False)])
def test_cudnn_is_for_gpus_from_ampere_on(monkeypatch, capability, suits):
  monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
  reason = cudnn.unsuitable(jnp.zeros((1, 8, 2, 64), jnp.bfloat16), "gpu", packed=False, positions=False, context=False)
  assert reason is None if suits else f"this GPU has {capability}" in reason


@pytest.mark.parametrize(("names", "times"), [(["attention"], 1), (["something else"], 2)])
def test_a_remat_policy_keeps_what_cudnn_returns(monkeypatch, names, times):
  """Counted in the traced program, since the kernel runs on NVIDIA GPUs only."""
  from jax._src.cudnn import fused_attention_stablehlo as kernel
  monkeypatch.setattr(kernel, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(kernel, "check_is_flash_attention", lambda *_, **__: None)
  q, k = (jnp.zeros((1, 128, heads, 64), jnp.bfloat16) for heads in (4, 2))

  def loss(q):
    layer = jax.checkpoint(lambda x, _: (cudnn.attention(x, k, k), None), prevent_cse=False, policy=remat_policy(names))
    return jnp.sum(jax.lax.scan(layer, q, None, length=3)[0].astype(jnp.float32))
  assert str(jax.make_jaxpr(jax.grad(loss))(q)).count("dot_product_attention_fwd_wrapper[") == times


def test_an_unknown_implementation_is_refused_by_name():
  q, k, v, _ = random_case(1, 4, 2, 1, 8)
  with pytest.raises(UserError, match=r"'flash' does not exist: use one of blockwise, reference, splash, cudnn"):
    any_attention(q, k, v, implementation="flash")


def test_the_choice_is_logged_once(caplog):
  any_attention.__globals__["_log_choice"].cache_clear()
  q, k, v, _ = random_case(1, 4, 2, 1, 8)
  with caplog.at_level("INFO"):
    any_attention(q, k, v)
    any_attention(q, k, v)
  assert [record.getMessage() for record in caplog.records if "attention" in record.name] == [
      "attention: using blockwise"]


def test_shapes_that_do_not_fit_are_refused():
  q, k, v, _ = random_case(1, 4, 3, 2, 8)
  with pytest.raises(ValueError, match="3 is not a multiple of 2"):
    any_attention(q, k, v)
  with pytest.raises(ValueError, match="segment_ids has shape"):
    any_attention(q, q, q, segment_ids=jnp.zeros((4,), jnp.int32))
