"""A handful of static shapes for texts of any length, such that a text's vector is its own business.

Texts are sorted by length and padded to the next bucket; every batch of a bucket has the same shape, and
what is missing at its end is filled with rows of padding. So the program that computes a text's vector
depends on the text's length alone, never on what else was asked for: a run that was killed and started
again gets the same bits, and so does any other grouping of the same texts.

Letters: B batch, S sequence, D dimension of the vector.
"""

import collections
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from policylong.devices.mesh import AXES, data_mesh, on_each_device

# Batches handed to the device before the oldest is waited for: it never idles while the host pads the next.
_IN_FLIGHT = 3


def bucket_lengths(max_tokens: int) -> tuple[int, ...]:
  """The sequence lengths that are compiled: steps of 32 to 128, of 64 to 512, of 512 above, then `max_tokens`."""
  steps = [*range(32, 129, 32), *range(192, 513, 64), *range(1024, max_tokens, 512)]
  return (*(length for length in steps if length < max_tokens), max_tokens)


class Encoder:
  """A model's program on all devices of this process: whole weights on each, and its own rows of every batch.

  Args:
    params: the weights.
    encode: (params, tokens int32[B, S], lengths int32[B]) -> float32[B, D], of one device's rows; it must ignore what
      lies past a length.
  """

  def __init__(self, params, encode: Callable):
    self._mesh = data_mesh(jax.local_devices())
    self.devices = self._mesh.size
    self._params = jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))
    self._rows = NamedSharding(self._mesh, PartitionSpec(AXES))
    self._program = on_each_device(encode, self._mesh, 2)

  def __call__(self, tokens: np.ndarray, lengths: np.ndarray) -> jax.Array:
    """float32[B, D]; B is a multiple of `devices`."""
    with jax.set_mesh(self._mesh):
      return self._program(self._params, *jax.device_put((tokens, lengths), self._rows))


def encode_in_buckets(rows: Sequence[Sequence[int]], *, max_tokens: int, batch: int, pad: int, dim: int,
                      encode: Encoder) -> np.ndarray:
  """Runs `encode` over token rows of any length, in batches of about `batch` * `max_tokens` tokens a device.

  Args:
    rows: token ids of each text, 1 to `max_tokens` of them.
    max_tokens: length of the longest bucket.
    batch: texts of the longest bucket in a device's batch; shorter buckets have more, for as many tokens.
    pad: the token that fills a row up.
    dim: D.
    encode: the model.

  Returns:
    float32[len(rows), D], in the order of `rows`.
  """
  out = np.empty((len(rows), dim), np.float32)
  lengths = np.array([len(row) for row in rows], np.int32)
  buckets = np.array(bucket_lengths(max_tokens))
  bucket_of = np.searchsorted(buckets, lengths)
  waiting: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

  def collect():
    members, vectors = waiting.popleft()
    out[members] = np.asarray(vectors)[:len(members)]

  for b, length in enumerate(buckets.tolist()):
    members_of_bucket = np.flatnonzero(bucket_of == b)
    size = encode.devices * max(1, batch * max_tokens // length)
    for start in range(0, len(members_of_bucket), size):
      members = members_of_bucket[start:start + size]
      tokens = np.full((size, length), pad, np.int32)
      used = np.ones(size, np.int32)  # a row of padding counts one token, which keeps its mean finite
      for i, row in enumerate(members):
        tokens[i, :lengths[row]] = rows[row]
        used[i] = lengths[row]
      waiting.append((members, encode(tokens, used)))
      if len(waiting) >= _IN_FLIGHT:
        collect()
  while waiting:
    collect()
  return out
