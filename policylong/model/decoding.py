"""The three programs of generation: prompts into a cache, prompts into decoding slots, tokens out of slots.

Rows are spread over the devices of a mesh and the weights are whole on each; no device waits for another within a
program. A prompt is read in chunks, R prompts a device at a time, into a cache of P places. Read to its end, it is put
into one of the B slots of a device, and its first new token is chosen. Then all slots advance together, several tokens
a call.

Layers are a loop over stacked weights and a stacked cache. On CPU those of the decoding program stand one by one, each
with its own weights and cache: there XLA takes a slice of a stack out of it, a copy, before it multiplies.

A slot's cache has P places for the prompt and G for new tokens. All slots of a device write to the same one of these
G at a time, one after the other and round again, so that a write is one slice; which of them are a row's own follows
from how many tokens it has made.

Letters: L layers, R prompts, B slots, Q tokens of a chunk, K key/value heads, H head size, D model, V vocabulary,
T = P + G places.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from policylong.attention.cached import chunk_attention, token_attention
from policylong.devices.mesh import AXES
from policylong.likelihood.streaming import logits_of
from policylong.model.qwen import Decoder, ModelConfig, Params, output_matrix

_ROW_MAJOR = Layout(major_to_minor=(0, 1, 2, 3, 4))


class Cache(NamedTuple):
  """Rotated keys, and values: stacked, or a tuple of L."""
  k: Float[Array, "L B K T H"] | tuple[Float[Array, "B K T H"], ...]
  v: Float[Array, "L B K T H"] | tuple[Float[Array, "B K T H"], ...]


class Slots(NamedTuple):
  """What is decoded, int32 [B] each; a free slot has left = 0."""
  token: Array  # the newest, not in the cache yet
  length: Array  # tokens of the prompt
  made: Array  # new tokens so far, `token` among them
  left: Array  # new tokens that may still come
  request: Array  # which random numbers are its own


class Sampling(NamedTuple):
  """How tokens are chosen. temperature 0 takes the most likely one, of equals the first."""
  stop_ids: Array  # int32 [any], tokens that end a row; -1 is none
  temperature: Array  # float32 []
  seed: Array  # int32 []


@functools.cache  # another checkpoint has new weights and the same programs
class Programs:
  """The programs of a model over a mesh. Sizes are of all devices together; caches and slots are donated.

  With `apart`, decode's params are as `qwen.layers_apart` makes them and the slots' cache is a tuple of layers; the
  prompts' cache and all else are stacked.

  prefill(params, cache, hidden [R, D], tokens [R, Q], last [R], start []) -> (cache, hidden): reads tokens start ..
    start + Q - 1 of R prompts; hidden is then the state of token `last` of each that was read so far.
  insert(params, cache, slots, prompts, hidden, places [R], fresh Slots [R], sampling) -> (cache, slots, tokens [R]):
    puts prompts into the slots `places`, numbered on each device, and chooses their first tokens. Of `fresh`, token
    and made are ignored and left counts the first token.
  decode(params, cache, slots, step [devices], alive bool [B], sampling, prompt_places=P, steps=n) -> (cache, slots,
    step, tokens [B, n]): up to n more tokens of each slot that is alive; -1 where it has ended.
  """

  def __init__(self, model: ModelConfig, mesh: jax.sharding.Mesh, dtype: jnp.dtype, apart: bool):
    self._model, self._mesh, self._dtype, self._apart = model, mesh, dtype, apart
    self.rows = NamedSharding(mesh, PartitionSpec(AXES))
    self.whole = NamedSharding(mesh, PartitionSpec())
    self._stacked = NamedSharding(mesh, PartitionSpec(None, AXES))
    whole, rows, prompts = self.whole.spec, self.rows.spec, self._stacked.spec
    cache = rows if apart else prompts
    self.prefill = self._compiled(self._prefill, (whole, prompts, rows, rows, rows, whole), (prompts, rows),
                                  donate=(1, 2))
    self.insert = self._compiled(self._insert, (whole, cache, rows, prompts, rows, rows, rows, whole),
                                 (cache, rows, rows), donate=(1, 2))
    self.decode = self._compiled(self._decode, (whole, cache, rows, rows, rows, whole), (cache, rows, rows, rows),
                                 donate=(1, 2, 3))

  def abstract_prompts(self, rows: int, places: int) -> Cache:
    """Shapes and shardings of the cache that prompts are read into."""
    leaf = jax.ShapeDtypeStruct(self._stacked_shape(rows, places), self._dtype, sharding=self._stacked)
    return Cache(leaf, leaf)

  def abstract_cache(self, rows: int, places: int) -> Cache:
    """Shapes and shardings of the slots' cache."""
    if not self._apart:
      return self.abstract_prompts(rows, places)
    layer = jax.ShapeDtypeStruct(self._stacked_shape(rows, places)[1:], self._dtype, sharding=self.rows)
    return Cache(*((layer,) * self._model.num_layers for _ in range(2)))

  def _stacked_shape(self, rows: int, places: int) -> tuple[int, ...]:
    model = self._model
    return model.num_layers, rows, model.num_kv_heads, places, model.head_dim

  def _compiled(self, function, arguments, results, donate):
    def over_devices(*arrays, **sizes):
      # One device's rows are nobody else's business: inside shard_map nothing can be spread by the compiler.
      return jax.shard_map(functools.partial(function, **sizes), mesh=self._mesh, in_specs=arguments,
                           out_specs=results, check_vma=False)(*arrays)
    over_devices.__name__ = function.__name__.removeprefix("_")  # what profiles and compile logs call it
    return jax.jit(over_devices, static_argnames=("prompt_places", "steps"), donate_argnums=donate)

  def _decoder(self, params: Params, tokens, positions, attend, cache):
    """(states after the final norm [B, S, D], cache): `attend` gets the cache and the layer's number."""
    first = 0 if isinstance(cache.k, tuple) else jnp.int32(0)
    states, (cache, _) = Decoder(self._model, params)(tokens, positions=positions, compute_dtype=self._dtype,
                                                      attend=attend, carried=(cache, first))
    return states, cache

  def _prefill(self, params, cache, hidden, tokens, last, start):
    Q = tokens.shape[1]

    def attend(q, k, v, carried):
      cache, layer = carried
      cache, keys, values = _write(cache, layer, k, v, start)
      return chunk_attention(q, keys, values, start), (cache, layer + 1)
    states, cache = self._decoder(params, tokens, start + jnp.arange(Q)[None], attend, cache)
    index = last - start
    state = jnp.take_along_axis(states, jnp.clip(index, 0, Q - 1)[:, None, None], axis=1)[:, 0]
    return cache, jnp.where(((index >= 0) & (index < Q))[:, None], state, hidden)

  def _insert(self, params, cache, slots, prompts, hidden, places, fresh, sampling):
    made = jnp.zeros_like(fresh.made)
    token = self._next_token(params, hidden, made, fresh.request, sampling)
    fresh = fresh._replace(token=token, made=made + 1, left=_less_one(fresh.left, token, sampling))
    if self._apart:
      prompts = Cache(*(tuple(stacked) for stacked in prompts))
    for row in range(token.shape[0]):
      cache = jax.tree.map(lambda to, rows, row=row: lax.dynamic_update_slice(
          to, rows[..., row:row + 1, :, :, :], (*(0,) * (to.ndim - 4), places[row], 0, 0, 0)), cache, prompts)
    return cache, jax.tree.map(lambda to, rows: to.at[places].set(rows), slots, fresh), token

  def _decode(self, params, cache, slots, step, alive, sampling, *, prompt_places, steps):
    B, T = slots.token.shape[0], jax.tree.leaves(cache)[0].shape[-2]
    G = T - prompt_places
    slots = slots._replace(left=jnp.where(alive, slots.left, 0))

    def more(carry):
      i, _, slots, *_ = carry
      return (i < steps) & jnp.any(slots.left > 0)

    def one(carry):
      i, cache, slots, step, out = carry
      column = jnp.arange(T)[None]
      age = (step - (column - prompt_places)) % G
      visible = jnp.where(column < prompt_places, column < slots.length[:, None], age < slots.made[:, None])

      def attend(q, k, v, carried):
        cache, layer = carried
        cache, keys, values = _write(cache, layer, k[:B], v[:B], prompt_places + step % G)
        return _two_rows(token_attention(q[:B, 0], keys, values, visible)[:, None]), (cache, layer + 1)
      positions = (slots.length + slots.made - 1)[:, None]
      states, cache = self._decoder(params, _two_rows(slots.token[:, None]), _two_rows(positions), attend, cache)
      token = self._next_token(params, states[:B, 0], slots.made, slots.request, sampling)
      out = lax.dynamic_update_slice(out, jnp.where(slots.left > 0, token, -1)[:, None], (0, i))
      slots = slots._replace(token=token, made=slots.made + 1, left=_less_one(slots.left, token, sampling))
      return i + 1, cache, slots, step + 1, out
    out = jnp.full((B, steps), -1, jnp.int32)
    _, cache, slots, step, out = lax.while_loop(more, one, (jnp.int32(0), cache, slots, step[0], out))
    return cache, slots, step[None], out

  def _next_token(self, params, states: Float[Array, "B D"], made, request, sampling: Sampling) -> Int[Array, "B"]:
    """Drawn from softmax(logits / temperature) by the row's own random numbers, or the most likely token."""
    logits = logits_of(_two_rows(states), output_matrix(params, self._model))[:states.shape[0]]

    def drawn():
      def draw(logits, request, made):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(sampling.seed), request), made)
        return jax.random.categorical(key, logits / sampling.temperature)
      return jax.vmap(draw)(logits, request, made).astype(jnp.int32)
    return lax.cond(sampling.temperature > 0, drawn, lambda: jnp.argmax(logits, axis=-1).astype(jnp.int32))


def zeros(abstract: Cache) -> Cache:
  """A cache of these shapes and shardings."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return jax.jit(lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract),
                 out_shardings=shardings)()


def _two_rows(x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
  """x, a single row with one of zeros below: on CPU XLA multiplies one row and a bfloat16 matrix five times slower."""
  return jnp.pad(x, ((0, 1), *((0, 0),) * (x.ndim - 1))) if x.shape[0] == 1 else x


def _write(cache: Cache, layer: Int[Array, ""] | int, k: Float[Array, "B Q K H"], v: Float[Array, "B Q K H"],
           place: Int[Array, ""]) -> tuple[Cache, Array, Array]:
  """The cache with new keys and values of a layer from `place` on, and all of that layer's [B, K, T, H]."""
  if isinstance(cache.k, tuple):
    # Without the barrier XLA writes twice: in place, and into a copy that attention reads.
    keys, values = lax.optimization_barrier([
        lax.dynamic_update_slice(whole[layer], new.transpose(0, 2, 1, 3), (0, 0, place, 0))
        for whole, new in zip(cache, (k, v))])
    return Cache(*((*whole[:layer], written, *whole[layer + 1:])
                   for whole, written in zip(cache, (keys, values)))), keys, values
  # In the order in which it lies between calls: for such a write a TPU would rather have it in another one, and copies
  # all of it at the start and at the end of each call.
  cache = Cache(*(with_layout_constraint(
      lax.dynamic_update_slice(whole, new.transpose(0, 2, 1, 3)[None], (layer, 0, 0, place, 0)), _ROW_MAJOR)
                  for whole, new in zip(cache, (k, v))))
  return cache, *(lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in cache)


def _less_one(left: Int[Array, "B"], token: Int[Array, "B"], sampling: Sampling) -> Int[Array, "B"]:
  """How many tokens may come after this one: none after a stop token."""
  stopped = jnp.any(token[:, None] == sampling.stop_ids[None], axis=1)
  return jnp.where(stopped, 0, jnp.maximum(left - 1, 0))
