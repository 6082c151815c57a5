"""Generation: prompts of any lengths in, their continuations out, in a handful of static shapes.

Prompts are grouped by length, a few groups an octave, and within a group a prompt takes the place of one that has
ended: rows neither wait for longer ones nor are filled up beyond a quarter of a chunk.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from policylong.model.decoding import Programs, Sampling, Slots, zeros
from policylong.model.qwen import ModelConfig, Params, layers_apart

# Tokens a call of the decoding program; after each the host looks for rows that have ended.
STEPS = 16
# A chunk, and the smaller one for what is left of a prompt.
_TAIL = 4
# Slots of a device at most: more rows make a product faster up to about here.
_MOST_SLOTS = 64
# For caches where a device does not say how much memory it has.
_CACHE_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Request:
  """tokens: the prompt, one at least. most_new: new tokens at most, 0 or more.

  number: 0 to 2^31 - 1, which draws are its own; None: its place among the requests that it comes with.
  """
  tokens: Sequence[int]
  most_new: int
  number: int | None = None


class Generator:
  """Greedy and sampled decoding under one model.

  Args:
    params: the parameters in `dtype`, whole on each device of `mesh`.
    model: their shape.
    mesh: devices of this process; rows are spread over all of them.
    dtype: of weights, cache and matmul inputs; logits, softmax and sampling are float32.
    chunk_tokens: prompt tokens that a device reads at once; a power of two, 64 at least.
    apart: whether to decode with layers one by one (see `decoding`), a copy of the weights; None: on CPU.
    cache_bytes: memory for the slots' cache on a device; None takes a quarter of what the device has.
  """

  def __init__(self, params: Params, model: ModelConfig, mesh: jax.sharding.Mesh, *, dtype: jnp.dtype,
               chunk_tokens: int, apart: bool | None = None, cache_bytes: int | None = None):
    if chunk_tokens < 64 or chunk_tokens & (chunk_tokens - 1):
      raise ValueError(f"chunk_tokens is {chunk_tokens}; it must be a power of two, 64 or more")
    if apart is None:
      apart = mesh.devices.flat[0].platform == "cpu"
    self._params, self._decode_params = params, jax.jit(layers_apart)(params) if apart else params
    self._model, self._mesh = model, mesh
    self._programs = Programs(model, mesh, jnp.dtype(dtype), apart)
    self._chunk = chunk_tokens
    if cache_bytes is None:
      cache_bytes = (mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit", 4 * _CACHE_BYTES) // 4
    self._cache_places = cache_bytes // (2 * model.num_layers * model.num_kv_heads * model.head_dim
                                         * jnp.dtype(dtype).itemsize)

  def generate(self, requests: Sequence[Request], *, stop_ids: Sequence[int], temperature: float = 0.0, seed: int = 0,
               finished: Callable[[int, list[int]], bool] = lambda request, tokens: False,
               progress: Callable[[int], None] = lambda prompts: None) -> list[np.ndarray]:
    """The new tokens of each request, int32, without the stop token that ended it.

    Args:
      requests: prompts; which others they come with changes no more than rounding.
      stop_ids: tokens that end a row.
      temperature: 0 takes the most likely token; else tokens are drawn from softmax(logits / temperature).
      seed: of the draws, which also depend on the number of the request and of the token, on nothing else.
      finished: told a request's place and its tokens so far, each time there are more; true ends the request, which
        may by then have some tokens more than were needed.
      progress: called with the number of requests that have ended, each time some have.
    """
    results: list[list[int]] = [[] for _ in requests]
    padded = np.full(max(8, 1 << (len(stop_ids) - 1).bit_length()), -1, np.int32)
    padded[:len(stop_ids)] = stop_ids
    sampling = jax.device_put(Sampling(padded, np.float32(temperature), np.int32(seed % 2**31)), self._programs.whole)
    groups: dict[int, list[int]] = {}
    for i, request in enumerate(requests):
      if request.most_new > 0:
        groups.setdefault(self.places(len(request.tokens)), []).append(i)
    if nothing := len(requests) - sum(map(len, groups.values())):
      progress(nothing)

    def more(request: int, tokens: Sequence[int]) -> bool:
      """Takes new tokens in; whether the request has ended."""
      result = results[request]
      for token in tokens:
        if token in stop_ids:
          return True
        result.append(int(token))
      return len(result) >= requests[request].most_new or finished(request, result)

    with jax.set_mesh(self._mesh):
      for places in sorted(groups, reverse=True):
        members = sorted(groups[places], key=lambda i: -len(requests[i].tokens))
        _Group(self, [requests[i] for i in members], members, places, sampling, more, progress).run()
    return [np.asarray(result, np.int32) for result in results]

  def places(self, length: int) -> int:
    """P of a prompt: at most two sizes an octave, and a whole number of the smaller chunks."""
    step = max(self._chunk // _TAIL, _power_of_two(length) // 4)
    return -(-length // step) * step


class _Group:
  """Requests with one P, longest first, on their way through the slots."""

  def __init__(self, generator: Generator, requests, members, places, sampling, more, progress):
    self.params, self.decode_params = generator._params, generator._decode_params
    self.programs, self.sampling = generator._programs, sampling
    self.requests, self.members, self.places = requests, members, places
    self.more, self.progress = more, progress
    self.devices = generator._mesh.size
    self.chunk = min(generator._chunk, places)
    room = max(16, _power_of_two(max(request.most_new for request in requests)))
    wanted = min(_MOST_SLOTS, _power_of_two(-(-len(requests) // self.devices)))
    self.slots_each = max(1, min(wanted, generator._cache_places // (places + room)))
    self.prompts_each = max(1, min(self.slots_each, generator._chunk // places))
    # Which request is in a slot, by its place in this group; -1: none.
    self.owner = np.full((self.devices, self.slots_each), -1)
    self.next = 0
    rows = self.devices * self.slots_each
    self.cache = zeros(self.programs.abstract_cache(rows, places + room))
    self.slots = self._put(Slots(*(np.zeros(rows, np.int32) for _ in Slots._fields)))
    self.step = self._put(np.zeros(self.devices, np.int32))
    self.prompts = zeros(self.programs.abstract_prompts(self.devices * self.prompts_each, places))

  def run(self) -> None:
    """To the end of all requests."""
    while self.next < len(self.requests) or (self.owner >= 0).any():
      while self.next < len(self.requests) and ((self.owner < 0).sum(axis=1) >= self.prompts_each).all():
        self._admit()
      if (self.owner >= 0).any():
        self._advance()

  def _number(self, request: int) -> int:
    number = self.requests[request].number
    return self.members[request] if number is None else number

  def _put(self, rows):
    # By hand: with several processes jit takes no numpy array to be split, not even over local devices.
    return jax.device_put(rows, self.programs.rows)

  def _admit(self) -> None:
    """Reads the next prompts and puts them into slots; a row without a prompt takes a slot that stays free."""
    count, shape = self.devices * self.prompts_each, (self.devices, self.prompts_each)
    taken = range(self.next, min(self.next + count, len(self.requests)))
    self.next = taken.stop
    who = np.full(shape, -1)
    for j, request in enumerate(taken):
      who[j % self.devices, j // self.devices] = request
    prompts = [self.requests[i].tokens if i >= 0 else (0,) for i in who.flat]
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    hidden = self._read(prompts, lengths)
    places = np.stack([np.flatnonzero(owner < 0)[:self.prompts_each] for owner in self.owner]).astype(np.int32)
    left = np.array([self.requests[i].most_new if i >= 0 else 0 for i in who.flat], np.int32)
    number = np.array([self._number(i) if i >= 0 else 0 for i in who.flat], np.int32)
    fresh = Slots(token=np.zeros_like(left), length=lengths, made=np.zeros_like(left), left=left, request=number)
    self.cache, self.slots, first = self.programs.insert(
        self.params, self.cache, self.slots, self.prompts, hidden, *self._put((places.reshape(-1), fresh)),
        self.sampling)
    np.put_along_axis(self.owner, places, who, axis=1)
    new = np.full(self.owner.shape, -1)
    np.put_along_axis(new, places, np.asarray(first).reshape(shape), axis=1)
    self._take(new[..., None])

  def _read(self, prompts, lengths) -> jax.Array:
    """Fills the prompts' cache chunk by chunk; the last state of each prompt."""
    tokens = np.zeros((len(prompts), self.places), np.int32)
    for row, prompt in enumerate(prompts):
      tokens[row, :len(prompt)] = prompt
    last = self._put(lengths - 1)
    hidden = self._put(np.zeros((len(prompts), self.params["final_norm"].shape[0]), self.params["final_norm"].dtype))
    start, end = 0, int(lengths.max())
    tail = self.chunk // _TAIL
    while start < end:
      size = self.chunk if end - start > self.chunk - tail else tail
      chunk = self._put(np.ascontiguousarray(tokens[:, start:start + size]))
      self.prompts, hidden = self.programs.prefill(self.params, self.prompts, hidden, chunk, last,
                                                   jax.device_put(np.int32(start), self.programs.whole))
      start += size
    return hidden

  def _advance(self) -> None:
    """A few tokens more of every slot."""
    alive = self._put((self.owner >= 0).reshape(-1))
    self.cache, self.slots, self.step, tokens = self.programs.decode(
        self.decode_params, self.cache, self.slots, self.step, alive, self.sampling, prompt_places=self.places,
        steps=STEPS)
    self._take(np.asarray(tokens).reshape(*self.owner.shape, STEPS))

  def _take(self, tokens: np.ndarray) -> None:
    """Hands out new tokens [devices, slots, any], -1 for none, and frees the slots of those that have ended."""
    ended = 0
    for slot in zip(*np.nonzero((self.owner >= 0) & (tokens[..., 0] >= 0))):
      row = tokens[slot]
      if self.more(self.members[self.owner[slot]], row[row >= 0]):
        self.owner[slot] = -1
        ended += 1
    if ended:
      self.progress(ended)


def _power_of_two(count: int) -> int:
  return 1 << (count - 1).bit_length()
