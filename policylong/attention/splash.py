"""Attention by JAX's splash kernels (Pallas, TPU), made to give and take (out, lse).

Three things are done differently from the kernels' own front door. Their masks are built from whole score
matrices on the host, a minute at 131,072 tokens: here the tables that say which pair of blocks is empty, cut or
full follow from the places of the chunks, and may depend on the device. Their fused backward writes one
partial dq a block of keys, gigabytes at that length: two kernels are used instead. And their derivative knows
only its own keys: a ring needs gradients for the lse of all keys, so the backward kernels are called directly
(`_splash_attention_bwd` is private to JAX; setup.py pins the version, and the tests run it).

Letters: B batch, Q queries, T keys, N query heads, K key/value heads, H head size.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from policylong.attention.masks import Order, Tokens, places
from policylong.devices import mesh as meshes

# Tokens a block: the published best are 1024 to 2048; keys are multiplied 512 at a time.
BLOCK = 1024
COMPUTE_BLOCK = 512
# The kernels' own lane count: no block is smaller.
LANES = 128
# What the kernels put in the place of a masked score.
_MASKED = kernels.DEFAULT_MASK_VALUE

# Entries of a block table.
_EMPTY, _CUT, _FULL = 0, 1, 2


def unsuitable(platform: str, *, positions: bool) -> str | None:
  """Why it cannot be used here, or None. On a CPU it is interpreted: exact, slow, and for tests."""
  if platform not in ("tpu", "cpu"):
    return f"its kernels are for TPUs, this is a {platform}"
  if positions:
    return "it knows tokens by their order, and positions are given"
  return None


def forward(q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, order: Order | None, dtype: jnp.dtype
            ) -> tuple[jax.Array, jax.Array]:
  """(out [B, Q, N, H] as dtype, lse float32 [B, Q, N]); see `api.IMPLEMENTATIONS`."""
  queries, segments, arrays = _prepare(q, k, v, tokens, order)
  block_sizes, for_queries, _ = _tables(order, arrays[0].shape[2], arrays[1].shape[2])

  def one(q, k, v, segments):
    out, (lse,) = kernels._splash_attention(
        for_queries, None, None, q, k, v, segments, is_mqa=False, save_residuals=True, block_sizes=block_sizes,
        residual_checkpoint_name=None, **_common(order))
    return out, lse
  # The kernel's lse stands in 128 equal lanes: the barrier cuts it out now and not when it is needed.
  out, lse = lax.optimization_barrier(jax.vmap(one)(*arrays, segments))
  return (_restore(out, queries, q.shape[1]).astype(dtype),
          _restore(lse[..., None], queries, q.shape[1])[..., 0])


def backward(q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, order: Order | None, out: jax.Array,
             lse: jax.Array, d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(dq, dk, dv), float32 values of q's digits; out and lse may be of more keys; see `api.IMPLEMENTATIONS`."""
  queries, segments, arrays = _prepare(q, k, v, tokens, order)
  block_sizes, for_queries, for_keys = _tables(order, arrays[0].shape[2], arrays[1].shape[2])
  out, d_out = (_arrange(x.astype(q.dtype), queries) for x in (out, d_out))
  # The weights of what fills the last block up come out as 0.
  lse = _arrange(lse[..., None], queries, fill=-_MASKED)[..., 0]

  def one(q, k, v, segments, out, lse, d_out):
    residuals = (q, k, v, segments, None, out, lse, for_queries, for_keys)
    common = _common(order)
    return kernels._splash_attention_bwd(
        False, common["mask_value"], False, block_sizes, None, common["mask_function"], None, common["interpret"],
        residuals, d_out)[3:6]
  dq, dk, dv = jax.vmap(one)(*arrays, segments, out, lse, d_out)
  scale = q.shape[-1] ** -0.5
  dk, dv = (x.transpose(0, 2, 1, 3)[:, :k.shape[1]].astype(jnp.float32) for x in (dk, dv))
  return _restore(dq, queries, q.shape[1]).astype(jnp.float32) * scale, dk, dv


class _Chunks:
  """How queries are cut and filled up: `count` equal chunks, each to a multiple of `multiple` tokens."""

  def __init__(self, count: int, size: int):
    self.count, self.size = count, size
    self.padded = -(-size // LANES) * LANES


def _prepare(q, k, v, tokens: Tokens, order: Order | None):
  """(chunks of queries, SegmentIds or None, [q, k, v] as [B, heads, tokens, H]), tokens filled up to LANES."""
  count = 1 if order is None else len(order.starts)
  queries, keys = _Chunks(count, q.shape[1] // count), _Chunks(1, k.shape[1])
  # The kernels do not scale; a head of 4^n numbers loses nothing by it, another half a unit of the last digit.
  q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
  q_segments, k_segments = tokens.q_segments, tokens.k_segments
  if q_segments is None and order is None and keys.padded != keys.size:
    # Nothing else would hide the keys that fill the last block up.
    q_segments, k_segments = (jnp.zeros(x.shape[:2], jnp.int32) for x in (q, k))
  segments = None
  if q_segments is not None:
    segments = kernels.SegmentIds(_pad(q_segments, queries, 0), _pad(k_segments, keys, -1))
  return queries, segments, [_arrange(x, chunks) for x, chunks in ((q, queries), (k, keys), (v, keys))]


def _common(order):
  # Without a TPU the kernels are interpreted: exact, and slow.
  return {"mask_value": _MASKED, "mask_function": None if order is None else _not_later,
          "attn_logits_soft_cap": None, "interpret": meshes.platform() != "tpu"}


def _not_later(queries, keys):
  return queries >= keys


def _tables(order: Order | None, queries: int, keys: int):
  """(block sizes, table for the kernels over queries, table for the kernel over keys)."""
  chunk = queries if order is None else queries // len(order.starts)
  block_q, block_k = _divisor(chunk), _divisor(keys)
  compute = COMPUTE_BLOCK if block_k % COMPUTE_BLOCK == 0 else block_k
  sizes = kernels.BlockSizes(block_q=block_q, block_kv=block_k, block_kv_compute=compute, block_q_dkv=block_q,
                             block_kv_dkv=block_k, block_kv_dkv_compute=compute, block_q_dq=block_q,
                             block_kv_dq=block_k)
  n, m = queries // block_q, keys // block_k
  down, across = jnp.mgrid[:n, :m]
  if order is None:
    place, state = None, jnp.full((n, m), _FULL)
  else:
    place = places(order, queries)
    first = place[::block_q][:, None]
    last = first + block_q - 1
    state = jnp.where(across * block_k > last, _EMPTY, jnp.where((across + 1) * block_k - 1 <= first, _FULL, _CUT))
  # An empty pair names the block that is in memory already, so that nothing is fetched for it.
  column = jnp.where(state == _EMPTY, 0, across)
  row = jnp.where(state == _EMPTY, jnp.argmax(state != _EMPTY, axis=0)[None], down)
  tables = []
  for following in (column, row):
    # Small numbers: the tables lie in the scalar memory, 1 MB.
    index = jnp.int8 if max(n, m) <= 127 else jnp.int16
    tables.append(MaskInfo(data_next=following[None].astype(index), mask_next=None,
                           block_mask=state[None].astype(jnp.int8), partial_mask_blocks=None, q_sequence=place))
  return sizes, *tables


def _divisor(tokens: int) -> int:
  """The largest multiple of LANES up to BLOCK that divides `tokens`, itself a multiple of LANES."""
  return next(size for size in range(min(BLOCK, tokens), 0, -LANES) if tokens % size == 0)


def _pad(x: jax.Array, chunks: _Chunks, fill) -> jax.Array:
  """[B, tokens, ...] with each chunk filled up."""
  x = x.reshape(x.shape[0], chunks.count, chunks.size, *x.shape[2:])
  padding = [(0, 0)] * x.ndim
  padding[2] = (0, chunks.padded - chunks.size)
  return jnp.pad(x, padding, constant_values=fill).reshape(x.shape[0], -1, *x.shape[3:])


def _arrange(x: jax.Array, chunks: _Chunks, fill=0) -> jax.Array:
  """[B, tokens, heads, H] as [B, heads, padded tokens, H]."""
  return _pad(x, chunks, fill).transpose(0, 2, 1, 3)


def _restore(x: jax.Array, chunks: _Chunks, tokens: int) -> jax.Array:
  """The inverse of `_arrange`."""
  x = x.transpose(0, 2, 1, 3)
  x = x.reshape(x.shape[0], chunks.count, chunks.padded, *x.shape[2:])[:, :, :chunks.size]
  return x.reshape(x.shape[0], tokens, *x.shape[3:])
