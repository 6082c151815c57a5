"""A sequence over a context axis of simulated devices, against float64 numpy on the whole sequence.

Tolerances, float32: 2e-6 forward and 5e-5 in gradients, for inputs of standard deviation 1.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from policylong import config as config_lib
from policylong.attention import attention, blockwise
from policylong.attention.api import CHECKPOINT_NAME
from policylong.attention.zigzag import unzigzag, zigzag
from policylong.devices.mesh import make_mesh
from policylong.errors import UserError
from tests.attention.test_attention import assert_matches, float64_attention, random_case, with_gradients


def mesh_of(context, data=1, tensor=1):
  sizes = config_lib.Mesh(data=data, fsdp=1, context=context, tensor=tensor)
  return make_mesh(sizes, jax.devices()[:context * data * tensor])


def documents(B, S, count, seed=2):
  """Segment ids of `count` documents of random lengths, numbered in any order."""
  rng = np.random.default_rng(seed)
  rows = []
  for _ in range(B):
    cuts = np.sort(rng.choice(np.arange(1, S), count - 1, replace=False))
    rows.append(rng.permutation(count)[(np.arange(S)[:, None] >= cuts).sum(1)])
  return np.stack(rows).astype(np.int32)


def over_devices(mesh, arrays, segment_ids=None, **how):
  """(out, dq, dk, dv) in the sequence's own order, computed in the zig-zag layout over the mesh."""
  C = mesh.shape["context"]
  arrays = [zigzag(x, C, 1) for x in arrays]
  segments = None if segment_ids is None else zigzag(segment_ids, C, 1)
  with jax.set_mesh(mesh):
    values = with_gradients(lambda q, k, v: attention(q, k, v, segment_ids=segments, **how), *arrays)
  return [unzigzag(np.asarray(x), C, 1) for x in values]


# What the ordinary test runs of the products below; the rest is marked slow.
QUICK = {
    ("blockwise", "gather", 1, (8, 1), 7, 136), ("blockwise", "gather", 2, (2, 2), 1, 64),
    ("blockwise", "gather", 4, (8, 2), 3, 136), ("blockwise", "gather", 8, (8, 1), 7, 144),
    ("blockwise", "ring", 2, (8, 1), 7, 136), ("blockwise", "ring", 4, (2, 2), 1, 128),
    ("blockwise", "ring", 8, (8, 2), 3, 144), ("splash", "gather", 1, (8, 1), 7, 136),
    ("splash", "gather", 4, (8, 2), 3, 136), ("splash", "ring", 2, (8, 1), 1, 64),
    ("splash", "ring", 4, (8, 2), 3, 136), ("reference", "gather", 8, (8, 1), 7, 144),
    ("reference", "ring", 4, (8, 2), 3, 136)}


def cases():
  # The blocks of blockwise are 16 here: chunks that they divide, and chunks that they do not.
  for context, mode in itertools.product((1, 2, 4, 8), ("gather", "ring")):
    if (context, mode) == (1, "ring"):
      continue
    for implementation, heads, count, S in itertools.product(
        ("blockwise", "splash", "reference"), [(2, 2), (8, 2), (8, 1)], (1, 3, 7),
        (32 * context, 136 if context < 8 else 144)):
      case = (implementation, mode, context, heads, count, S)
      yield pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("implementation, mode, context, heads, count, S", cases())
def test_agrees_with_float64(implementation, mode, context, heads, count, S, monkeypatch):
  monkeypatch.setattr(blockwise, "SHORT_BLOCK", 16)
  arrays = random_case(1, S, *heads, 16)
  segment_ids = None if count == 1 else documents(1, S, count)
  values = over_devices(mesh_of(context), arrays, segment_ids, context=mode, implementation=implementation)
  assert_matches(values, float64_attention(*arrays, None, segment_ids))


@pytest.mark.parametrize("mode", ["gather", "ring"])
def test_beside_batch_and_heads_over_other_axes(mode):
  arrays, segment_ids = random_case(4, 96, 4, 2, 16), documents(4, 96, 3)
  values = over_devices(mesh_of(2, data=2, tensor=2), arrays, segment_ids, context=mode)
  assert_matches(values, float64_attention(*arrays, None, segment_ids))


@pytest.mark.parametrize("mode", ["gather", "ring"])
@pytest.mark.parametrize("implementation", ["blockwise", "splash"])
def test_bfloat16_is_within_its_own_rounding(implementation, mode):
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in random_case(1, 256, 4, 2, 16)]
  values = over_devices(mesh_of(4), arrays, context=mode, implementation=implementation)
  for value, wanted in zip(values, float64_attention(*arrays, None, None)):
    # bfloat16 keeps 8 bits: of the result, of the weights, and of the part of each hop.
    np.testing.assert_allclose(np.asarray(value, np.float64), wanted, rtol=2 ** -6, atol=2 ** -6)


@pytest.mark.parametrize("mode", ["gather", "ring"])
@pytest.mark.parametrize("implementation", ["blockwise", "splash"])
def test_no_gradient_crosses_between_documents(implementation, mode):
  q, k, v, d_out = random_case(1, 128, 2, 1, 16)
  segment_ids = np.repeat([[3, 1, 2]], [40, 37, 51], axis=1).astype(np.int32)
  d_out[:, 40:77] = 0  # a loss on the first and third documents alone
  values = over_devices(mesh_of(4), (q, k, v, d_out), segment_ids, context=mode, implementation=implementation)
  for gradient in values[1:]:
    assert np.all(gradient[:, 40:77] == 0.0), "exactly zero"
    assert np.abs(gradient[:, 1:40]).sum() > 0 and np.abs(gradient[:, 78:]).sum() > 0


@pytest.mark.parametrize("mode", ["gather", "ring"])
def test_in_a_scan_with_remat_that_keeps_it_the_forward_runs_once(mode):
  q, k, v, d_out = random_case(1, 64, 4, 2, 16)
  mesh = mesh_of(4)
  keep = {"policy": jax.checkpoint_policies.save_only_these_names(CHECKPOINT_NAME)}

  def layers(q, k, v, policy=None, **how):
    def layer(x, scale):
      return attention(x * scale, k, v, **how), None
    return jax.lax.scan(jax.checkpoint(layer, prevent_cse=False, policy=policy), q, jnp.array([1.0, 0.5, 2.0]))[0]

  spread = [zigzag(x, 4, 1) for x in (q, k, v, d_out)]
  with jax.set_mesh(mesh):
    values = with_gradients(lambda *x: layers(*x, context=mode, **keep), *spread)
  expected = with_gradients(lambda *x: layers(*x, implementation="reference"), q, k, v, d_out)
  assert_matches([unzigzag(np.asarray(x), 4, 1) for x in values], expected)

  def flops(**policy):
    with jax.set_mesh(mesh):
      gradient = jax.grad(lambda *x: jnp.sum(layers(*x, context=mode, implementation="reference", **policy)), (0, 1, 2))
      return jax.jit(gradient).lower(*spread[:3]).compile().cost_analysis()["flops"]
  # Two products forward and five backward, each over as many numbers: 7 against 9 with the forward
  # once more, and a softmax beside them.
  assert flops(**keep) / flops() == pytest.approx(7 / 9, rel=0.1)


def test_memory_of_a_device_is_linear_in_its_tokens():
  def temporaries(S, mode):
    mesh = mesh_of(8)
    def loss(q, k, v):
      return jnp.sum(attention(q, k, v, context=mode, implementation="blockwise").astype(jnp.float32))
    spread = jax.NamedSharding(mesh, PartitionSpec(None, "context"))
    q, k = (jax.ShapeDtypeStruct((1, S, heads, 64), jnp.bfloat16, sharding=spread) for heads in (4, 1))
    with jax.set_mesh(mesh):
      return jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k).compile().memory_analysis().temp_size_in_bytes
  for mode in ("ring", "gather"):
    sizes = {S: temporaries(S, mode) for S in (2 ** 15, 2 ** 17, 2 ** 19, 2 ** 20)}
    per_token = (sizes[2 ** 17] - sizes[2 ** 15]) / (2 ** 17 - 2 ** 15)
    for S in (2 ** 19, 2 ** 20):
      assert sizes[S] == pytest.approx(sizes[2 ** 17] + per_token * (S - 2 ** 17), rel=0.03), mode


def test_zigzag_gives_every_device_an_early_and_a_late_chunk():
  layout = zigzag(np.arange(16), 4, 0)
  assert layout.reshape(4, 4).tolist() == [[0, 1, 14, 15], [2, 3, 12, 13], [4, 5, 10, 11], [6, 7, 8, 9]]
  np.testing.assert_array_equal(unzigzag(layout, 4, 0), np.arange(16))
  x = np.random.default_rng(0).standard_normal((3, 24, 2))
  np.testing.assert_array_equal(unzigzag(zigzag(x, 2, -2), 2, 1), x)
  assert zigzag(x, 1, 1) is x


@pytest.mark.parametrize("how, context, S, sentence", [
  ({"context": "ring"}, 1, 64, r"at least 2 devices, the mesh has 1: use 'gather', or a mesh with context 2"),
  ({"context": "star"}, 2, 64, r"'star' does not exist: use None, 'gather' or 'ring'"),
  ({"context": "gather"}, 4, 60, r"60 tokens .* 4 devices: each takes two chunks, so 8 must divide it .*56 and 64"),
  ({"context": "gather", "implementation": "cudnn"}, 2, 64, r"'cudnn' cannot be used here: .* this is a cpu"),
])
def test_what_cannot_be_is_refused_with_both_numbers(how, context, S, sentence):
  q, k, v, _ = random_case(1, S, 2, 1, 16)
  with jax.set_mesh(mesh_of(context)), pytest.raises(UserError, match=sentence):
    attention(q, k, v, **how)


def test_positions_and_a_context_axis_exclude_each_other():
  q, k, v, _ = random_case(1, 64, 2, 1, 16)
  with jax.set_mesh(mesh_of(2)), pytest.raises(UserError, match=r"2 devices .* leave positions out"):
    attention(q, k, v, positions=jnp.arange(64)[None], context="gather")
