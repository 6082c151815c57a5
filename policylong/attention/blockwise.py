"""Attention by blocks of queries and keys with an online softmax: memory linear in the length.

Carried for a query: m the greatest score so far, s = sum e^(z - m), o = sum e^(z - m) v (Milakov and
Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). The backward pass keeps (out, lse) and computes
each block of weights anew: p = e^(z - lse), dz = p (do v - do out).

Query heads that share a key/value head become rows of one query block, so keys are never repeated. Blocks
of later keys are not visited, and without segments the earlier ones need no mask (a mask costs half as much
again as the softmax); the block where a query itself stands comes first.

Letters: B batch, Q queries, T keys, N query heads, K key/value heads, G = N / K, H head size, C tokens of
a block, n blocks of queries, R = G C rows of a query block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from policylong.attention.masks import Order, Tokens
from policylong.devices import mesh as meshes
from policylong.devices.elementwise import cast, exp

# Tokens a block, up to 768 tokens and above. Of [S, S] scores half a block a row is computed in vain, and a
# smaller block makes smaller products; at 512 tokens 128 takes 0.8 of the time of 256, at 1024 the same, at
# 4096 1.2. Both beat one product of all queries and keys: 3 times at 512 tokens, 4 at 4096.
SHORT = 768
SHORT_BLOCK = 128
BLOCK = 256
# On a GPU each pair of blocks is a few launches, so few large ones: 16,384 tokens of 9 and 3 heads of 64 took 60 ms by
# 256, 11 by 1024 and 9.5 by 2048 on one NVIDIA H100; a shorter row is one block.
GPU_BLOCK = 2048

# Less than any score, and finite: -inf - -inf is NaN. A query that sees none of the keys comes out with an
# lse of about -1e29, and counts for nothing beside one of other keys.
_LOWEST = -1e30
# lse of the queries that fill up the last block: their weights are 0.
_HIGHEST = 1e30


class _Layout(NamedTuple):
  """How queries and keys are cut: C tokens a block, chunks of queries, and the keys that are real."""
  block: int
  chunks: int
  keys: int


def forward(q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, order: Order | None, dtype: jnp.dtype
            ) -> tuple[jax.Array, jax.Array]:
  """(out [B, Q, N, H] as dtype, lse float32 [B, Q, N]); see `api.IMPLEMENTATIONS`."""
  layout = _layout(q, k, order)
  tokens = _pad_tokens(tokens, layout)
  queries, keys, values = _fold(q, k.shape[2], layout), _key_blocks(k, layout), _key_blocks(v, layout)
  scale = q.shape[-1] ** -0.5

  def query_block(x):
    i, place, query = x
    m, s, o = _query_block_statistics(i, place, query, keys, values, tokens, order, layout)
    return cast(o / s[..., None], dtype), m * scale + jnp.log(s)
  n = queries.shape[0]
  out, lse = lax.map(query_block, (jnp.arange(n), _block_places(order, n, layout), queries))
  return _unfold(out, q.shape[1], layout), _unfold(lse[..., None], q.shape[1], layout)[..., 0]


def backward(q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, order: Order | None, out: jax.Array,
             lse: jax.Array, d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """float32 (dq, dk, dv); out and lse may be of more keys than these; see `api.IMPLEMENTATIONS`."""
  layout = _layout(q, k, order)
  tokens = _pad_tokens(tokens, layout)
  K, block = k.shape[2], layout.block
  # do . out, which is what the weights' gradients average to.
  delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
  queries, d_outs = _fold(q, K, layout), _fold(d_out.astype(q.dtype), K, layout)
  lse, delta = (_fold(x[..., None], K, layout, fill)[..., 0] for x, fill in ((lse, _HIGHEST), (delta, 0.0)))
  rows = (queries, d_outs, lse, delta, _transposed(queries), _transposed(d_outs))
  keys, values = _key_blocks(k, layout), _key_blocks(v, layout)
  n = queries.shape[0]
  block_places = _block_places(order, n, layout)

  def key_block(d_queries, x):
    j, key, value = x

    def pair(i, carry, masked):
      d_queries, d_key, d_value = carry
      mask = _mask(tokens, order, i, block_places[i], j, layout, q.shape[2] // K, masked)
      more = _pair_gradient([x[i] for x in rows], key, value, mask)
      return d_queries.at[i].add(more[0]), d_key + more[1], d_value + more[2]
    empty = meshes.varying_as(jnp.zeros((*key.shape[:-2], key.shape[-1], block), jnp.float32), d_queries)
    carry = (d_queries, empty, empty)
    for start, end, masked in _query_ranges(order, n, j, layout):
      carry = lax.fori_loop(start, end, lambda i, c, masked=masked: pair(i, c, masked), carry)
    return carry[0], carry[1:]

  d_queries = meshes.varying_as(jnp.zeros(queries.shape, jnp.float32), queries, keys, values, d_outs)
  d_queries, d_keys = lax.scan(key_block, d_queries, (jnp.arange(keys.shape[0]), keys, values))
  # [blocks, B, K, H, C] -> [B, T, K, H]
  d_k, d_v = (x.transpose(1, 0, 4, 2, 3).reshape(k.shape[0], -1, *k.shape[2:])[:, :k.shape[1]] for x in d_keys)
  return _unfold(d_queries, q.shape[1], layout), d_k, d_v


def _query_block_statistics(i, place, query, keys, values, tokens, order, layout):
  """(m, s, o) of query block i, which stands at key `place`, one block of keys after another."""
  shape = query.shape[:-1]
  groups = shape[-1] // layout.block

  def step(j, statistics, masked):
    mask = _mask(tokens, order, i, place, j, layout, groups, masked)
    return _attend(statistics, query, keys[j], values[j], mask)
  if _aligned(order, layout):
    own = place // layout.block
    return lax.fori_loop(0, own, lambda j, c: step(j, c, False), step(own, None, True))
  statistics = tuple(meshes.varying_as(x, query, keys, values) for x in (
      jnp.full(shape, _LOWEST), jnp.zeros(shape), jnp.zeros(query.shape)))
  for start, end, masked in _key_ranges(order, keys.shape[0], place, layout):
    statistics = lax.fori_loop(start, end, lambda j, c, masked=masked: step(j, c, masked), statistics)
  return statistics


def _attend(statistics, query, keys, values, mask):
  """Adds keys [B, K, C, H] to a query block's (m, s, o); None begins. Scores are not scaled in m."""
  scale = query.shape[-1] ** -0.5
  z = _product("bkrh,bkth->bkrt", query, keys)
  if mask is not None:
    z = jnp.where(mask, z, _LOWEST)
  m = jnp.max(z, axis=-1)
  if statistics is not None:
    m = jnp.maximum(m, statistics[0])
  # Rounded before it is summed, so that the weights that multiply v add up to s exactly.
  p = cast(exp((z - m[..., None]) * scale), values.dtype)
  s, o = weigh(p, values)
  if statistics is not None:
    shrink = exp((statistics[0] - m) * scale)
    s += shrink * statistics[1]
    o += shrink[..., None] * statistics[2]
  return m, s, o


def weigh(p: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
  """float32 sums [B, K, R] of the rows of weights [B, K, R, C], and their products [B, K, R, H] with the values.

  On CPU the sums of bfloat16 are a product with ones, which XLA joins to the other one: its own sum of such rows took
  1.2 ns a weight of one core, where all else of a pair of blocks takes 1.8.
  """
  def joined(p, values):
    ones = jnp.ones((*values.shape[:-1], 16), values.dtype)
    return _product("bkrt,bkth->bkrh", p, ones)[..., 0], _product("bkrt,bkth->bkrh", p, values)

  def apart(p, values):
    return jnp.sum(p, axis=-1, dtype=jnp.float32), _product("bkrt,bkth->bkrh", p, values)
  if values.dtype != jnp.bfloat16:
    return apart(p, values)
  return lax.platform_dependent(p, values, cpu=joined, default=apart)


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


# ------------------------------------------------------------------------------------------------------------
# Which blocks meet, and which of these pairs need a mask


def _layout(q, k, order) -> _Layout:
  return _Layout(_block(max(q.shape[1], k.shape[1])), 1 if order is None else len(order.starts), k.shape[1])


def _block(tokens: int) -> int:
  """Tokens of a block, for rows of so many."""
  if meshes.platform() in ("gpu", "cuda"):
    return min(GPU_BLOCK, -(-tokens // SHORT_BLOCK) * SHORT_BLOCK)
  return SHORT_BLOCK if tokens <= SHORT else BLOCK


def _block_places(order: Order | None, n: int, layout: _Layout) -> jax.Array:
  """int32 [n]: the key at which the first token of each block of queries stands."""
  if order is None:
    return jnp.zeros(n, jnp.int32)
  within = jnp.arange(n // layout.chunks, dtype=jnp.int32) * layout.block
  return jnp.concatenate([start + within for start in order.starts])


def _aligned(order: Order | None, layout: _Layout) -> bool:
  """Whether each block of queries is known to stand at one block of keys: nothing to find out in a loop."""
  return order is not None and all(isinstance(start, int) and start % layout.block == 0 for start in order.starts)


def _key_ranges(order, blocks, place, layout):
  """(first, end, masked) ranges of the key blocks that a query block at `place` meets."""
  if order is None:
    whole = layout.keys // layout.block
    return (0, whole, False), (whole, blocks, True)
  own = place // layout.block
  # A block of queries that does not begin where a block of keys does reaches into two.
  last = jnp.minimum((place + layout.block - 1) // layout.block + 1, blocks)
  return (own, last, True), (0, jnp.minimum(own, blocks), False)


def _query_ranges(order, n, j, layout):
  """(first, end, masked) ranges of the query blocks that key block j meets."""
  if order is None:
    masked = j >= layout.keys // layout.block
    return (0, jnp.where(masked, n, 0), True), (0, jnp.where(masked, 0, n), False)
  ranges, size = [], n // layout.chunks
  for chunk, start in enumerate(order.starts):
    first = jnp.clip((j * layout.block - start) // layout.block, 0, size)
    free = jnp.clip(-((start - (j + 1) * layout.block + 1) // layout.block), 0, size)
    offset = chunk * size
    ranges += [(offset + first, offset + jnp.maximum(first, free), True), (offset + jnp.maximum(first, free),
                                                                          offset + size, False)]
  return ranges


def _mask(tokens: Tokens, order: Order | None, i, place, j, layout: _Layout, groups: int, masked: bool
          ) -> jax.Array | None:
  """bool [B or 1, 1, R, C]: which keys of block j the rows of query block i see; None: all."""
  block, mask = layout.block, None
  if masked and _aligned(order, layout):
    mask = jnp.tril(jnp.ones((1, block, block), bool))
  elif masked:
    keys = j * block + jnp.arange(block)
    mask = jnp.broadcast_to(keys[None, None] < layout.keys, (1, block, block))
    if order is not None:
      mask &= keys[None, None] <= place + jnp.arange(block)[None, :, None]
  for of_queries, of_keys, sees in ((tokens.q_positions, tokens.k_positions, jnp.less_equal),
                                    (tokens.q_segments, tokens.k_segments, jnp.equal)):
    if of_queries is not None:
      allowed = sees(lax.dynamic_slice_in_dim(of_keys, j * block, block, 1)[:, None],
                     lax.dynamic_slice_in_dim(of_queries, i * block, block, 1)[:, :, None])
      mask = allowed if mask is None else mask & allowed
  return None if mask is None else jnp.tile(mask, (1, groups, 1))[:, None]


# ------------------------------------------------------------------------------------------------------------
# Layout of the arrays


def _pad_tokens(tokens: Tokens, layout: _Layout) -> Tokens:
  def queries(x):
    return None if x is None else _pad_chunks(x, layout, 0)
  def keys(x):
    return None if x is None else jnp.pad(x, ((0, 0), (0, -x.shape[1] % layout.block)))
  return Tokens(queries(tokens.q_positions), keys(tokens.k_positions), queries(tokens.q_segments),
                keys(tokens.k_segments))


def _pad_chunks(x: jax.Array, layout: _Layout, fill) -> jax.Array:
  """[B, Q, ...] with each chunk filled up to whole blocks."""
  B, Q = x.shape[:2]
  x = x.reshape(B, layout.chunks, Q // layout.chunks, *x.shape[2:])
  padding = [(0, 0)] * x.ndim
  padding[2] = (0, -x.shape[2] % layout.block)
  return jnp.pad(x, padding, constant_values=fill).reshape(B, -1, *x.shape[3:])


def _fold(x: jax.Array, K: int, layout: _Layout, fill=0) -> jax.Array:
  """[B, Q, N, H] as [n, B, K, R, H], row g * C + c of a block holding head g of token c."""
  x = _pad_chunks(x, layout, fill)
  B, Q, N, H = x.shape
  x = x.reshape(B, Q // layout.block, layout.block, K, N // K, H).transpose(1, 0, 3, 4, 2, 5)
  return x.reshape(Q // layout.block, B, K, N // K * layout.block, H)


def _unfold(x: jax.Array, queries: int, layout: _Layout) -> jax.Array:
  """[n, B, K, R, H] as [B, Q, N, H], without what filled the chunks up."""
  n, B, K, R, H = x.shape
  x = x.reshape(n, B, K, R // layout.block, layout.block, H).transpose(1, 0, 4, 2, 3, 5)
  x = x.reshape(B, layout.chunks, -1, K * (R // layout.block), H)[:, :, :queries // layout.chunks]
  return x.reshape(B, queries, -1, H)


def _key_blocks(x: jax.Array, layout: _Layout) -> jax.Array:
  """[B, T, K, H] as [blocks, B, K, C, H], zeros at the end."""
  B, T, K, H = x.shape
  x = jnp.pad(x, ((0, 0), (0, -T % layout.block), (0, 0), (0, 0)))
  return x.reshape(B, -1, layout.block, K, H).transpose(1, 0, 3, 2, 4)


def _transposed(x: jax.Array) -> jax.Array:
  return jnp.swapaxes(x, -1, -2)


def _product(letters: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """float32 einsum of equal dtypes; float32 operands at full precision on accelerators too."""
  precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jnp.einsum(letters, x, y, preferred_element_type=jnp.float32, precision=precision)
