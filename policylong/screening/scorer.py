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

from policylong.devices.mesh import AXES, local_copy, local_mesh, on_each_device
from policylong.likelihood.api import token_likelihood
from policylong.likelihood.greedy import greedy_likelihood
from policylong.model.qwen import ModelConfig, hidden_states, output_matrix
from policylong.padding import bucket


@dataclasses.dataclass(frozen=True)
class Row:
  """One row for the scoring program.

  tokens: int32[T]. positions: int32[<= A], the tokens whose likelihood is wanted (something must stand before each).
  bucket: the padded length S, as `Scorer.bucket` gives it for T tokens or more.
  """
  tokens: np.ndarray
  positions: np.ndarray
  bucket: int


@functools.cache  # every round has new weights and the same programs
class Programs:
  """The scoring programs of a model over a mesh: whole weights on each device, rows spread over all.

  traces: (params, tokens int32[B, S]) -> Likelihood of tokens 1 .. S-1, [B, S-1].
  likelihoods: (params, tokens int32[B, S], positions int32[B, A]) -> Likelihood of these tokens, [B, A].
  choices: (params, tokens int32[B, S], positions and targets int32[B, A]) -> (nll of a target if it stood at its
    position, whether it is the most likely token there), [B, A].
  """

  def __init__(self, model: ModelConfig, mesh: jax.sharding.Mesh, dtype: jnp.dtype):
    self.rows = NamedSharding(mesh, PartitionSpec(AXES))
    hidden = functools.partial(hidden_states, config=model, compute_dtype=dtype)

    def traces(params, tokens):
      states = hidden(params, tokens=tokens)
      return token_likelihood(states[:, :-1], output_matrix(params, model), tokens[:, 1:])

    def likelihoods(params, tokens, positions):
      targets = jnp.take_along_axis(tokens, positions, axis=1)
      return token_likelihood(before(params, tokens, positions), output_matrix(params, model), targets)

    def choices(params, tokens, positions, targets):
      return greedy_likelihood(before(params, tokens, positions), output_matrix(params, model), targets)

    def before(params, tokens, positions):
      """The states that predict what stands at `positions`: the output matrix meets no others."""
      return jnp.take_along_axis(hidden(params, tokens=tokens), positions[..., None] - 1, axis=1)

    self.traces = on_each_device(traces, mesh, 1)
    self.likelihoods, self.choices = on_each_device(likelihoods, mesh, 2), on_each_device(choices, mesh, 3)


class Scorer:
  """Entropies under one policy.

  Args:
    params: the model's parameters in any float dtype; a copy in `dtype` is kept on the devices. If they lie whole on
      each device in `dtype` already, they are what is kept: nobody may donate them meanwhile. Where they lie on devices
      of several processes, all of these must make their scorers together.
    model: its shape.
    mesh: where the parameters lie; rows are spread over all of its devices that are this process's.
    dtype: of weights and matmul inputs; logits, softmax and reductions are always float32.
    tokens_per_batch: padded tokens a device scores at once.
    bucket_multiple: rows are padded to multiples of it (longer rows to coarser ones).
    beginning: int32[b], what the tokenizer begins a text with (`model.tokenizer.beginning`). The program reads it in
      front of every row; positions and results are those of the row's own tokens.
  """

  def __init__(self, params, model: ModelConfig, mesh: jax.sharding.Mesh, *, dtype: str,
               tokens_per_batch: int, bucket_multiple: int, beginning: Sequence[int] | np.ndarray = ()):
    self.mesh = local_mesh(mesh)
    self._dtype = jnp.dtype(dtype)
    self._tokens_per_batch = tokens_per_batch
    self._bucket_multiple = bucket_multiple
    self.beginning = np.asarray(beginning, np.int32)
    if not all(self._lies_so(x) for x in jax.tree.leaves(params)):
      params = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(self._dtype), tree),
                       out_shardings=NamedSharding(mesh, PartitionSpec()))(params)
    self.params = jax.tree.map(lambda x: local_copy(x, self.mesh), params)
    self._programs = Programs(model, self.mesh, self._dtype)

  def _lies_so(self, x) -> bool:
    """Whether an array is whole on each device of this process, in the dtype that is wanted."""
    return (isinstance(x, jax.Array) and x.dtype == self._dtype and x.sharding.is_fully_replicated
            and x.sharding.device_set >= set(self.mesh.devices.flat))

  def bucket(self, length: int) -> int:
    """The padded length of a row of `length` tokens and what begins it."""
    return bucket(len(self.beginning) + length, self._bucket_multiple)

  def traces(self, rows: Sequence[np.ndarray], progress: Callable[[int], None] = lambda tokens: None
             ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Entropy and nll of every token of every row.

    Args:
      rows: int32[T] each, T >= 1.
      progress: called with the number of real tokens each time some are done.

    Returns:
      For each row (entropy f32[T], nll f32[T]) in nats; NaN at token 0 if nothing stands before it.
    """
    full = [Row(np.asarray(row, np.int32), np.zeros(0, np.int32), self.bucket(len(row))) for row in rows]
    result: list = [None] * len(rows)
    begun = len(self.beginning)

    def collect(indices, scores):
      for i, entropy, nll in zip(indices, np.asarray(scores.entropy), np.asarray(scores.nll)):
        end = begun + len(rows[i])
        result[i] = tuple(np.concatenate([[np.float32(np.nan)], x[:end - 1]]).astype(np.float32)[begun:]
                          for x in (entropy, nll))
      progress(sum(len(rows[i]) for i in indices))

    self._run(full, self._programs.traces, (), 0, collect)
    return result

  def likelihoods(self, rows: Sequence[Row], most_positions: int,
                  progress: Callable[[int], None] = lambda tokens: None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Entropy and nll of the tokens at each row's positions.

    Args:
      rows: what is scored; rows of one bucket run in one program.
      most_positions: A, the static number of positions a row reads at most.
      progress: called with the number of real tokens each time some are done.

    Returns:
      For each row (entropy f32[len(positions)], nll likewise) in nats.
    """
    result: list = [None] * len(rows)

    def collect(indices, scores):
      for i, entropy, nll in zip(indices, np.asarray(scores.entropy), np.asarray(scores.nll)):
        count = len(rows[i].positions)
        result[i] = entropy[:count], nll[:count]
      progress(sum(len(rows[i].tokens) for i in indices))

    self._run(rows, self._programs.likelihoods, (self._places(rows),), most_positions, collect)
    return result

  def choices(self, rows: Sequence[Row], targets: Sequence[np.ndarray], most_positions: int,
              progress: Callable[[int], None] = lambda rows: None) -> list[tuple[np.ndarray, np.ndarray]]:
    """How likely given tokens are at given positions, which may lie one behind a row's end, and come more than once.

    Args:
      rows: what is scored, and where (each position at least 1).
      targets: int32[len(positions)] for each row, the tokens that are asked about.
      most_positions: A, the static number of positions a row has at most.
      progress: called with the number of rows each time some are done.

    Returns:
      For each row (nll f32[len(positions)] in nats, whether a target is the most likely token, bool likewise).
    """
    result: list = [None] * len(rows)

    def collect(indices, scores):
      for i, *values in zip(indices, *map(np.asarray, scores)):
        result[i] = tuple(value[:len(targets[i])] for value in values)
      progress(len(indices))

    self._run(rows, self._programs.choices, (self._places(rows), targets), most_positions, collect)
    return result

  def _places(self, rows: Sequence[Row]) -> list[np.ndarray]:
    """Where the rows' positions lie behind what begins a row."""
    return [row.positions + len(self.beginning) for row in rows]

  def _run(self, rows: Sequence[Row], program, at_positions: Sequence[Sequence[np.ndarray]], most_positions: int,
           collect) -> None:
    """Runs `program` over batches; one batch is always in flight while the last one is collected.

    `at_positions` are the program's other arrays: for each row int32[<= most_positions].
    """
    waiting = None
    with jax.set_mesh(self.mesh):
      for indices, bucket, count in self._batches(rows):
        tokens = np.zeros((count, bucket), np.int32)
        others = tuple(np.ones((count, most_positions), np.int32) for _ in at_positions)
        for k, i in enumerate(indices):
          row = np.concatenate([self.beginning, rows[i].tokens])
          tokens[k, :len(row)] = row
          for array, values in zip(others, at_positions):
            array[k, :len(values[i])] = values[i]
        # Put by hand: with several processes jit takes no numpy array to be split, not even over local devices.
        scores = program(self.params, *jax.device_put((tokens, *others), self._programs.rows))
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
    for length in sorted(by_bucket, reverse=True):
      count = self.mesh.size * max(1, self._tokens_per_batch // length)
      members = by_bucket[length]
      for start in range(0, len(members), count):
        yield members[start:start + count], length, count


@dataclasses.dataclass(frozen=True)
class Policy:
  """Who reads: the weights after training step `step`, as a scoring program."""
  step: int
  scorer: Scorer
