"""Who sees whom, in the form that every implementation understands.

Letters: B batch, Q queries, T keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Order(NamedTuple):
  """Causal order by place: the queries are equal chunks, the first token of chunk i stands at key `starts[i]`.

  A query sees the keys up to its own place. Ordinary causal attention is `Order((0,))`; the two chunks
  that a device holds of a zig-zag sequence have two starts (`zigzag.py`), known only on the device.
  """
  starts: tuple[int | jax.Array, ...]


class Tokens(NamedTuple):
  """What is known of queries [B, Q] and keys [B, T]; None where it does not matter.

  positions: a query sees keys of its own and lower positions, wherever they stand. segments: only its own.
  """
  q_positions: jax.Array | None = None
  k_positions: jax.Array | None = None
  q_segments: jax.Array | None = None
  k_segments: jax.Array | None = None


def places(order: Order, queries: int) -> jax.Array:
  """int32 [Q]: the key at which each query stands."""
  chunk = queries // len(order.starts)
  return jnp.concatenate([start + jnp.arange(chunk, dtype=jnp.int32) for start in order.starts])


def visible(tokens: Tokens, order: Order | None, queries: int, keys: int) -> jax.Array:
  """bool [B or 1, Q, T]: everything above as one mask."""
  mask = jnp.ones((1, queries, keys), bool)
  if order is not None:
    mask &= jnp.arange(keys)[None, None] <= places(order, queries)[None, :, None]
  if tokens.q_positions is not None:
    mask &= tokens.k_positions[:, None] <= tokens.q_positions[:, :, None]
  if tokens.q_segments is not None:
    mask &= tokens.k_segments[:, None] == tokens.q_segments[:, :, None]
  return mask
