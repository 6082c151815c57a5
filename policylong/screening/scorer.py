"""The policy as a scoring program: token rows in, entropies out, in a handful of static shapes.

Pure data parallel: the weights are replicated in the scoring dtype, rows are spread over all devices of
this process, which needs no other process for them.
Letters: B rows, S tokens in a row, D model, A positions read in a row.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from policylong.likelihood.api import token_likelihood
from policylong.mesh import AXES, local_copy, local_mesh
from policylong.model.qwen import ModelConfig, hidden_states, output_matrix


@dataclasses.dataclass(frozen=True)
class Row:
  """One row for the scoring program.

  tokens: int32[T]. positions: int32[<= A], the tokens whose H_t is wanted (each at least 1).
  bucket: the padded length S, at least T.
  """
  tokens: np.ndarray
  positions: np.ndarray
  bucket: int


class Scorer:
  """Entropies under one policy.

  Args:
    params: the model's parameters in any float dtype; a copy in `dtype` is kept on the devices. Where they lie
      on devices of several processes, all of these must make their scorers together.
    model: its shape.
    mesh: where the parameters lie; rows are spread over all of its devices that are this process's.
    dtype: of weights and matmul inputs; logits, softmax and reductions are always float32.
    tokens_per_batch: padded tokens a device scores at once.
    bucket_multiple: rows are padded to multiples of it (longer rows to coarser ones).
  """

  def __init__(self, params, model: ModelConfig, mesh: jax.sharding.Mesh, *, dtype: str,
               tokens_per_batch: int, bucket_multiple: int):
    self._mesh = local_mesh(mesh)
    self._dtype = jnp.dtype(dtype)
    self._tokens_per_batch = tokens_per_batch
    self._bucket_multiple = bucket_multiple
    cast = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(self._dtype), tree),
                   out_shardings=NamedSharding(mesh, PartitionSpec()))
    self._params = jax.tree.map(lambda x: local_copy(x, self._mesh), cast(params))
    replicated, rows = (NamedSharding(self._mesh, spec) for spec in (PartitionSpec(), PartitionSpec(AXES)))
    self._rows = rows
    hidden = functools.partial(hidden_states, config=model, compute_dtype=self._dtype)

    def traces(params, tokens):  # [B, S] -> nll, entropy, lse [B, S-1] of tokens 1 .. S-1
      states = hidden(params, tokens=tokens)
      return token_likelihood(states[:, :-1], output_matrix(params, model), tokens[:, 1:])

    def entropies(params, tokens, positions):  # [B, S], [B, A] -> H [B, A]
      states = hidden(params, tokens=tokens)
      # The output matrix meets only the positions that are read; H_t is predicted one position earlier.
      states = jnp.take_along_axis(states, positions[..., None] - 1, axis=1)
      targets = jnp.take_along_axis(tokens, positions, axis=1)
      return token_likelihood(states, output_matrix(params, model), targets).entropy

    self._traces = jax.jit(traces, in_shardings=(replicated, rows), out_shardings=rows)
    self._entropies = jax.jit(entropies, in_shardings=(replicated, rows, rows), out_shardings=rows)

  def bucket(self, length: int) -> int:
    """The padded length of a row: at most eight shapes an octave, so a handful over a stage."""
    step = max(self._bucket_multiple, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step

  def traces(self, rows: Sequence[np.ndarray], progress: Callable[[int], None] = lambda tokens: None
             ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Entropy and nll of every token of every row.

    Args:
      rows: int32[T] each, T >= 1.
      progress: called with the number of real tokens each time some are done.

    Returns:
      For each row (entropy f32[T], nll f32[T]) in nats, NaN at token 0, which nothing predicts.
    """
    full = [Row(np.asarray(row, np.int32), np.zeros(0, np.int32), self.bucket(len(row))) for row in rows]
    result: list = [None] * len(rows)

    def collect(indices, scores):
      for i, entropy, nll in zip(indices, np.asarray(scores.entropy), np.asarray(scores.nll)):
        cut = len(rows[i]) - 1
        result[i] = tuple(np.concatenate([[np.float32(np.nan)], x[:cut]]).astype(np.float32)
                          for x in (entropy, nll))
      progress(sum(len(rows[i]) for i in indices))

    self._run(full, lambda tokens, _: self._traces(self._params, tokens), 0, collect)
    return result

  def entropies(self, rows: Sequence[Row], most_positions: int,
                progress: Callable[[int], None] = lambda tokens: None) -> list[np.ndarray]:
    """H_t at each row's positions.

    Args:
      rows: what is scored; rows of one bucket run in one program.
      most_positions: A, the static number of positions a row reads at most.
      progress: called with the number of real tokens each time some are done.

    Returns:
      For each row f32[len(positions)] in nats.
    """
    result: list = [None] * len(rows)

    def collect(indices, scores):
      for i, values in zip(indices, np.asarray(scores)):
        result[i] = values[:len(rows[i].positions)]
      progress(sum(len(rows[i].tokens) for i in indices))

    self._run(rows, lambda tokens, positions: self._entropies(self._params, tokens, positions),
              most_positions, collect)
    return result

  def _run(self, rows: Sequence[Row], program, most_positions: int, collect) -> None:
    """Runs `program` over batches; one batch is always in flight while the last one is collected."""
    waiting = None
    with jax.set_mesh(self._mesh):
      for indices, bucket, count in self._batches(rows):
        tokens = np.zeros((count, bucket), np.int32)
        positions = np.ones((count, most_positions), np.int32)
        for k, i in enumerate(indices):
          tokens[k, :len(rows[i].tokens)] = rows[i].tokens
          positions[k, :len(rows[i].positions)] = rows[i].positions
        # Put by hand: with several processes jit takes no numpy array to be split, not even over local devices.
        scores = program(*jax.device_put((tokens, positions), self._rows))
        if waiting:
          collect(*waiting)
        waiting = (indices, scores)
      if waiting:
        collect(*waiting)

  def _batches(self, rows: Sequence[Row]) -> Iterable[tuple[list[int], int, int]]:
    """(row indices, bucket, batch size), longest bucket first; a last batch may hold fewer rows."""
    by_bucket: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
      by_bucket.setdefault(row.bucket, []).append(i)
    for bucket in sorted(by_bucket, reverse=True):
      count = self._mesh.size * max(1, self._tokens_per_batch // bucket)
      members = by_bucket[bucket]
      for start in range(0, len(members), count):
        yield members[start:start + count], bucket, count
