"""Attention written as the formula, in float32, with the whole [S, S] score matrix in memory."""

import jax
import jax.numpy as jnp


def attention(q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array | None,
              segment_ids: jax.Array | None) -> jax.Array:
  """softmax(q k^T / sqrt(H)) v over visible keys; shapes as in `api.attention`."""
  B, S, N, H = q.shape
  K = k.shape[2]
  # Full-precision products: on an accelerator the default for float32 is a lower one.
  highest = jax.lax.Precision.HIGHEST
  grouped = q.astype(jnp.float32).reshape(B, S, K, N // K, H)
  scores = jnp.einsum("bskgh,btkh->bkgst", grouped, k.astype(jnp.float32), precision=highest) * H ** -0.5
  scores = jnp.where(visible(S, positions, segment_ids)[:, None, None], scores, -jnp.inf)
  weights = jax.nn.softmax(scores, axis=-1)
  out = jnp.einsum("bkgst,btkh->bskgh", weights, v.astype(jnp.float32), precision=highest)
  return out.reshape(B, S, N, H).astype(q.dtype)


def visible(S: int, positions: jax.Array | None, segment_ids: jax.Array | None) -> jax.Array:
  """bool [B or 1, S queries, S keys]: the key is not later than the query and in the same segment."""
  if positions is None:
    positions = jnp.arange(S)[None]
  mask = positions[:, None, :] <= positions[:, :, None]
  if segment_ids is not None:
    mask &= segment_ids[:, None, :] == segment_ids[:, :, None]
  return mask
