"""Context parallelism: one sequence over the devices of a mesh axis, in the zig-zag layout (`zigzag.py`).

Everything here runs inside `jax.shard_map` on one device's two chunks, a (early) and b (late), and calls the
(out, lse) functions of an implementation.

`gather` brings the keys and values of all devices here, in their own order, and computes once; gradients go
home by a reduce-scatter. `ring` never holds more than two devices' keys. They travel from device to device;
whichever device j they come from, exactly two of the four pairs of chunks are wholly visible and the others
wholly invisible, so no hop needs a causal mask and all cost the same:

  j before i: a and b see the early chunk of j.    j after i: b sees both chunks of j.

The next keys are under way while a hop is computed, the hops' results are merged by their lse in float32, and
dk and dv travel home behind their keys.

Letters: B batch, S tokens here, c = S / 2 of a chunk, C devices, N query heads, K key/value heads, H head size.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from policylong.attention.masks import Order, Tokens


class Local(NamedTuple):
  """An implementation's two functions, see `api.IMPLEMENTATIONS`."""
  forward: Callable
  backward: Callable


class _Keys(NamedTuple):
  """Of one device, by chunk: k, v [2, B, c, K, H]; segments [2, B, c] or None."""
  k: jax.Array
  v: jax.Array
  segments: jax.Array | None


# ------------------------------------------------------------------------------------------------------------
# Gather


def gather_forward(local: Local, axis: str, q: jax.Array, k: jax.Array, v: jax.Array,
                   segments: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """(out [B, S, N, H] in q's dtype, lse float32 [B, S, N])."""
  k, v, tokens, order = _gathered(axis, q, k, v, segments)
  return local.forward(q, k, v, tokens, order, q.dtype)


def gather_backward(local: Local, axis: str, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None,
                    out: jax.Array, lse: jax.Array, d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(dq, dk, dv), float32."""
  # Not before they are needed: a forward pass that is computed again just before gathers the same.
  k, v, d_out = lax.optimization_barrier((k, v, d_out))
  all_k, all_v, tokens, order = _gathered(axis, q, k, v, segments)
  dq, dk, dv = local.backward(q, all_k, all_v, tokens, order, out, lse, d_out)
  # Summed over devices in the keys' own digits, as the reduce-scatter of every other gradient.
  dk, dv = (_scatter(x.astype(k.dtype), axis).astype(jnp.float32) for x in (dk, dv))
  return dq, dk, dv


def _gathered(axis, q, k, v, segments):
  """Keys, values and segments of the whole sequence in its own order, and the places of the queries here."""
  i, C = lax.axis_index(axis), lax.axis_size(axis)
  c = q.shape[1] // 2
  every = Tokens() if segments is None else Tokens(q_segments=segments, k_segments=_gather(segments, axis))
  return _gather(k, axis), _gather(v, axis), every, Order((i * c, (2 * C - 1 - i) * c))


def _gather(x, axis):
  """[B, S, ...] here as [B, C S, ...]: early chunks as they come, late ones the other way round."""
  early, late = (lax.all_gather(chunk, axis) for chunk in jnp.split(x, 2, axis=1))
  return jnp.moveaxis(jnp.concatenate([early, late[::-1]]), 0, 1).reshape(x.shape[0], -1, *x.shape[2:])


def _scatter(x, axis):
  """The transpose of `_gather`: [B, C S, ...] to [B, S, ...], summed over devices."""
  C = lax.axis_size(axis)
  chunks = jnp.moveaxis(x.reshape(x.shape[0], 2 * C, -1, *x.shape[2:]), 1, 0)
  early, late = chunks[:C], chunks[C:][::-1]
  return jnp.concatenate([lax.psum_scatter(part, axis, scatter_dimension=0) for part in (early, late)], axis=1)


# ------------------------------------------------------------------------------------------------------------
# Ring


def ring_forward(local: Local, axis: str, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None
                 ) -> tuple[jax.Array, jax.Array]:
  """(out [B, S, N, H] in q's dtype, lse float32 [B, S, N]); hops are merged in float32."""
  C = lax.axis_size(axis)
  keys = _send(_by_chunk(_Keys(k, v, segments)), axis)
  # Here an early token stands before a late one, and what lies between them comes with the hops.
  same = Tokens(q_segments=segments, k_segments=segments)
  state = _by_chunk(local.forward(q, k, v, same, Order((0,)), jnp.float32))
  queries, own = _by_chunk(q), _by_chunk(segments)

  def hop(state, keys, step):
    other, tokens, arrays = _pairs(queries, keys, own, axis, step)
    first, second = _halves(local.forward(*arrays, tokens, None, jnp.float32))
    return _merge_into(_merge_into(state, first, 1), second, other)

  def body(carry, step):
    state, keys = carry
    following = _send(keys, axis)
    return (hop(state, keys, step), following), None
  (state, keys), _ = lax.scan(body, (state, keys), jnp.arange(1, C - 1))
  out, lse = _joined(hop(state, keys, C - 1))
  return out.astype(q.dtype), lse


def ring_backward(local: Local, axis: str, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None,
                  out: jax.Array, lse: jax.Array, d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(dq, dk, dv), float32."""
  C = lax.axis_size(axis)
  keys = _send(_by_chunk(_Keys(k, v, segments)), axis)
  dq, dk, dv = local.backward(q, k, v, Tokens(q_segments=segments, k_segments=segments), Order((0,)), out, lse, d_out)
  dq = _by_chunk(dq)
  queries, own = _by_chunk((q, out, lse, d_out)), _by_chunk(segments)

  def hop(dq, keys, step):
    """dq with this hop's part, and the gradients (dk, dv), by chunk, of the keys that are here."""
    other, tokens, (q, k, v) = _pairs(queries[0], keys, own, axis, step)
    rest = (jnp.concatenate([x[1], x[other]]) for x in queries[1:])
    first, second = _halves(local.backward(q, k, v, tokens, None, *rest))
    dq = dq.at[1].add(first[0]).at[other].add(second[0])
    of_keys = tuple(jnp.zeros(keys.k.shape, jnp.float32).at[0].add(x).at[other].add(y)
                    for x, y in zip(first[1:], second[1:]))
    return dq, of_keys

  def body(carry, step):
    dq, keys, travelling = carry
    following, travelling = _send(keys, axis), _send(travelling, axis)
    dq, of_keys = hop(dq, keys, step)
    return (dq, following, jax.tree.map(jnp.add, travelling, of_keys)), None

  if C == 2:
    dq, travelling = hop(dq, keys, 1)
  else:
    following = _send(keys, axis)
    dq, travelling = hop(dq, keys, 1)
    (dq, keys, travelling), _ = lax.scan(body, (dq, following, travelling), jnp.arange(2, C - 1))
    arriving = _send(travelling, axis)
    dq, of_keys = hop(dq, keys, C - 1)
    travelling = jax.tree.map(jnp.add, arriving, of_keys)
  # After C - 1 hops keys and gradients are one device short of home.
  home = _send(travelling, axis)
  return _joined(dq), dk + _joined(home[0]), dv + _joined(home[1])


def _pairs(queries, keys: _Keys, own, axis, step):
  """The two visible pairs of a hop, (b, early) and (a, early) or (b, late), as one call with a batch of 2 B.

  Returns which chunk, of the queries as of the keys, the second pair is of; its tokens; (q, k, v).
  """
  i, C = lax.axis_index(axis), lax.axis_size(axis)
  other = jnp.where((i - step) % C < i, 0, 1)
  def of_queries(x):
    return jnp.concatenate([x[1], x[other]])
  def of_keys(x):
    return jnp.concatenate([x[0], x[other]])
  tokens = Tokens() if own is None else Tokens(q_segments=of_queries(own), k_segments=of_keys(keys.segments))
  return other, tokens, (of_queries(queries), of_keys(keys.k), of_keys(keys.v))


def _merge_into(state, more, chunk):
  """(out, lse) by chunk, with that of further keys merged into one chunk."""
  out, lse = (x[chunk] for x in state)
  both = jnp.logaddexp(lse, more[1])
  merged = (out * jnp.exp(lse - both)[..., None] + more[0] * jnp.exp(more[1] - both)[..., None], both)
  return tuple(x.at[chunk].set(y) for x, y in zip(state, merged))


def _send(tree, axis):
  """Everything to the next device of the ring; what arrives is from the one before."""
  C = lax.axis_size(axis)
  return lax.ppermute(tree, axis, [(i, (i + 1) % C) for i in range(C)])


def _by_chunk(tree):
  """[B, S, ...] as [2, B, c, ...]."""
  return jax.tree.map(lambda x: jnp.stack(jnp.split(x, 2, axis=1)), tree)


def _joined(tree):
  """The inverse of `_by_chunk`."""
  return jax.tree.map(lambda x: jnp.concatenate([x[0], x[1]], axis=1), tree)


def _halves(arrays):
  """Arrays [2 B, ...] as two tuples of [B, ...]: of the first and of the second pair of a hop."""
  return zip(*(jnp.split(x, 2) for x in arrays))
