"""Attention by blocks of queries and keys with an online softmax: memory linear in S, its own backward.

Carried for a query: m the greatest score so far, s = sum e^(z - m), o = sum e^(z - m) v (Milakov and
Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). The backward pass keeps (out, lse) and computes
each block of weights anew: p = e^(z - lse), dz = p (do v - do out).

Query heads that share a key/value head become rows of one query block, so keys are never repeated. Each
query block begins with the keys of its own tokens, where it sees at least itself, so m is never empty.
With default positions blocks of later keys are not visited, and without segments the earlier ones need
no mask (a mask costs half as much again as the softmax).

Letters: B batch, S sequence, N query heads, K key/value heads, G = N / K, H head size, C tokens of a block,
n blocks, R = G C rows of a query block, T keys.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from policylong.elementwise import cast, exp

# Tokens a block, up to 768 tokens and above. Of [S, S] scores half a block a row is computed in vain, and a
# smaller block makes smaller products; at 512 tokens 128 takes 0.8 of the time of 256, at 1024 the same, at
# 4096 1.2. Both beat one product of all queries and keys: 3 times at 512 tokens, 4 at 4096.
SHORT = 768
SHORT_BLOCK = 128
BLOCK = 256

# Less than any score, and finite: -inf - -inf is NaN.
_LOWEST = -1e30


class _Tokens(NamedTuple):
  """What decides who sees whom, [B, S] each; None for 0 .. S - 1 and for a single segment."""
  positions: jax.Array | None
  segment_ids: jax.Array | None


def attention(q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array | None,
              segment_ids: jax.Array | None, *, block: int | None = None) -> jax.Array:
  """Shapes as in `api.attention`; `block` tokens a block, None for the fastest on CPU."""
  S = q.shape[1]
  if block is None:
    block = SHORT_BLOCK if S <= SHORT else BLOCK
  padding = -S % block
  # Padded keys are later than every query, or at the greatest position there is.
  q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
  if positions is not None:
    positions = jnp.pad(positions, ((0, 0), (0, padding)), constant_values=jnp.iinfo(positions.dtype).max)
  if segment_ids is not None:
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)), constant_values=-1)
  return _attention(q, k, v, _Tokens(positions, segment_ids), block)[:, :S]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, tokens, block):
  return _forward(q, k, v, tokens, block)[0]


# ------------------------------------------------------------------------------------------------------------
# Forward


def _forward(q, k, v, tokens, block):
  queries, keys, values = _fold(q, k.shape[2], block), _heads_first(k), _heads_first(v)
  scale = q.shape[-1] ** -0.5

  def query_block(x):
    m, s, o = _query_block_statistics(*x, keys, values, tokens, block)
    return (o / s[..., None]).astype(q.dtype), m * scale + jnp.log(s)
  out, lse = lax.map(query_block, (jnp.arange(queries.shape[0]), queries))
  out = _unfold(out, block)
  return out, (q, k, v, tokens, out, lse)


def _query_block_statistics(i, query, keys, values, tokens, block):
  """(m, s, o) of query block i, one block of keys after another, its own first."""
  groups = query.shape[-2] // block

  def step(j, statistics, own=False):
    return _attend(statistics, query, _slice(keys, j, block), _slice(values, j, block),
                   _mask(tokens, i, j, block, groups, own))
  statistics = step(i, None, own=True)
  if tokens.positions is None:
    return lax.fori_loop(0, i, step, statistics)
  n = keys.shape[2] // block
  return lax.fori_loop(1, n, lambda t, c: step((i + t) % n, c), statistics)


def _attend(statistics, query, keys, values, mask):
  """Adds keys [B, K, T, H] to a query block's (m, s, o); None begins. Scores are not scaled in m."""
  scale = query.shape[-1] ** -0.5
  z = _product("bkrh,bkth->bkrt", query, keys)
  if mask is not None:
    z = jnp.where(mask, z, _LOWEST)
  m = jnp.max(z, axis=-1)
  if statistics is not None:
    m = jnp.maximum(m, statistics[0])
  # Rounded before it is summed, so that the weights that multiply v add up to s exactly.
  p = cast(exp((z - m[..., None]) * scale), values.dtype)
  s = jnp.sum(p, axis=-1, dtype=jnp.float32)
  o = _product("bkrt,bkth->bkrh", p, values)
  if statistics is not None:
    shrink = exp((statistics[0] - m) * scale)
    s += shrink * statistics[1]
    o += shrink[..., None] * statistics[2]
  return m, s, o


# ------------------------------------------------------------------------------------------------------------
# Backward


def _backward(block, residuals, d_out):
  q, k, v, tokens, out, lse = residuals
  K = k.shape[2]
  n = q.shape[1] // block
  queries, d_outs = _fold(q, K, block), _fold(d_out, K, block)
  # do . out, which is what the weights' gradients average to.
  delta = jnp.sum(d_outs.astype(jnp.float32) * _fold(out, K, block).astype(jnp.float32), axis=-1)
  rows = (queries, d_outs, lse, delta, _transposed(queries), _transposed(d_outs))
  keys, values = _heads_first(k), _heads_first(v)

  def key_block(d_queries, j):
    key, value = _slice(keys, j, block), _slice(values, j, block)

    def pair(i, d_queries, own=False):
      mask = _mask(tokens, i, j, block, q.shape[2] // K, own)
      d_query, d_key, d_value = _pair_gradient([x[i] for x in rows], key, value, mask)
      return d_queries.at[i].add(d_query), d_key, d_value

    def step(i, carry):
      d_queries, d_key, d_value = pair(i, carry[0])
      return d_queries, carry[1] + d_key, carry[2] + d_value
    carry = pair(j, d_queries, own=True)
    if tokens.positions is None:
      carry = lax.fori_loop(j + 1, n, step, carry)
    else:
      carry = lax.fori_loop(1, n, lambda t, c: step((j + t) % n, c), carry)
    d_queries, d_key, d_value = carry
    return d_queries, (d_key.astype(k.dtype), d_value.astype(v.dtype))

  d_queries, (d_keys, d_values) = lax.scan(
    key_block, jnp.zeros_like(queries, jnp.float32), jnp.arange(n))
  # [n, B, K, H, C] -> [B, S, K, H]
  d_k, d_v = (x.transpose(1, 0, 4, 2, 3).reshape(k.shape) for x in (d_keys, d_values))
  return _unfold(d_queries.astype(q.dtype), block), d_k, d_v, None


def _pair_gradient(rows, key, value, mask):
  """float32 (d_query [B, K, R, H], d_key, d_value [B, K, H, C]) of one pair of blocks.

  Each product contracts the last axis of its left operand: any other form XLA multiplies in float32 on CPU,
  5 times slower. Hence the transposed queries and d_outs, and d_key and d_value transposed.
  """
  query, d_out, lse, delta, query_t, d_out_t = rows
  scale = query.shape[-1] ** -0.5
  z = _product("bkrh,bkth->bkrt", query, key)
  if mask is not None:
    z = jnp.where(mask, z, _LOWEST)
  p = cast(exp(z * scale - lse[..., None]), query.dtype)
  d_p = _product("bkrh,bkth->bkrt", d_out, value)
  d_z = cast(p * (d_p - delta[..., None]) * scale, query.dtype)
  return (_product("bkrt,bkth->bkrh", d_z, key), _product("bkhr,bkrt->bkht", query_t, d_z),
          _product("bkhr,bkrt->bkht", d_out_t, p))


_attention.defvjp(_forward, _backward)


# ------------------------------------------------------------------------------------------------------------
# Blocks and masks


def _mask(tokens: _Tokens, i, j, block: int, groups: int, own: bool = False) -> jax.Array | None:
  """bool [B or 1, 1, R, C]: which keys of block j the rows of query block i see; None: all. `own`: i is j.

  With default positions only the own block and earlier ones are asked for.
  """
  mask = None
  if tokens.positions is not None:
    mask = _slice(tokens.positions, j, block, 1)[:, None] <= _slice(tokens.positions, i, block, 1)[:, :, None]
  elif own:
    mask = jnp.tril(jnp.ones((1, block, block), bool))
  if tokens.segment_ids is not None:
    same = _slice(tokens.segment_ids, j, block, 1)[:, None] == _slice(tokens.segment_ids, i, block, 1)[:, :, None]
    mask = same if mask is None else mask & same
  return None if mask is None else jnp.tile(mask, (1, groups, 1))[:, None]


def _slice(x: jax.Array, index, block: int, axis: int = 2) -> jax.Array:
  return lax.dynamic_slice_in_dim(x, index * block, block, axis)


def _heads_first(x: jax.Array) -> jax.Array:
  return x.transpose(0, 2, 1, 3)


def _fold(x: jax.Array, K: int, block: int) -> jax.Array:
  """[B, S, N, H] as [n, B, K, R, H], row g * C + c of a block holding head g of token c."""
  B, S, N, H = x.shape
  x = x.reshape(B, S // block, block, K, N // K, H).transpose(1, 0, 3, 4, 2, 5)
  return x.reshape(S // block, B, K, N // K * block, H)


def _unfold(x: jax.Array, block: int) -> jax.Array:
  """[n, B, K, R, H] as [B, S, N, H]."""
  n, B, K, R, H = x.shape
  x = x.reshape(n, B, K, R // block, block, H).transpose(1, 0, 4, 2, 3, 5)
  return x.reshape(B, n * block, K * (R // block), H)


def _transposed(x: jax.Array) -> jax.Array:
  return jnp.swapaxes(x, -1, -2)


def _product(letters: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """float32 einsum of equal dtypes; float32 operands at full precision on accelerators too."""
  precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jnp.einsum(letters, x, y, preferred_element_type=jnp.float32, precision=precision)
