"""The decoder of Qwen2/2.5 (q/k/v bias), Qwen3 (per-head q/k norm), Llama and Mistral (neither), SmolLM3 (NoPE layers).

Every weight is declared once, in `declare`: shape, logical axes, initialiser. The abstract tree, the
shardings, the initial values, the import and export of checkpoints and their restoring all come from it.
Parameters are a nested dict of arrays, the layers stacked on a leading axis; `Decoder` is the Flax NNX
module around them, and the functions at the end are what goes through `jax.jit`.

Letters: B batch, S sequence, D model, F hidden, N query heads, K key/value heads, H head size,
V vocabulary, L layers.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from policylong.attention.api import CHECKPOINT_NAME as ATTENDED
from policylong.attention.api import attention, remat_policy
from policylong.devices import mesh as meshes
from policylong.devices.elementwise import cast
from policylong.errors import UserError
from policylong.model import rope

Params = dict[str, Any]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")

# What of a layer is computed again in the backward pass, and the names of what is kept instead.
_PRODUCT = "product"
REMAT = {"none": None, "all_but_products": (ATTENDED, _PRODUCT), "all_but_attention": (ATTENDED,), "full": ()}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """What a model is, apart from its weights.

  family: transformers' model_type, one of FAMILIES. max_positions: its window, in tokens, whatever stretches it counted
  in. tied: whether the output matrix is the embedding. unrotated: layers (from 0) without rotary positions, as SmolLM3
  has them.
  """
  family: str
  vocab_size: int
  embed_dim: int
  mlp_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  norm_eps: float
  rope_theta: float
  rope_scaling: rope.Scaling | None
  max_positions: int
  tied: bool
  unrotated: tuple[int, ...] = ()

  def __post_init__(self):
    if self.family not in FAMILIES:
      raise UserError(f"the architecture is {self.family!r}; supported are {', '.join(FAMILIES)}")
    if self.num_heads % self.num_kv_heads:
      raise UserError(f"the model has {self.num_heads} query heads, not divisible by its {self.num_kv_heads} "
                      "key/value heads")
    if self.head_dim % 2:
      raise UserError(f"the model's head size is {self.head_dim}; rotary positions need an even one")

  @property
  def qkv_bias(self) -> bool:
    """Whether the q, k and v projections add a bias."""
    return self.family == "qwen2"

  @property
  def qk_norm(self) -> bool:
    """Whether each head's query and key are RMS-normalised before rotation."""
    return self.family == "qwen3"

  def with_rope(self, theta: float | None, yarn_factor: float | None) -> "ModelConfig":
    """The same model with another RoPE base and/or stretched by YaRN; None keeps what it has.

    YaRN stretches the context that the model was trained for, and `max_positions` grows to factor times that. A
    scaling that the model has is replaced by YaRN and kept by another base; either is said in a warning. Divisors from
    a GGUF file hold for the file's base alone: the llama3 rule that they follow takes their place.

    Raises:
      UserError: they follow no such rule.
    """
    changed, own = self, self._own_scaling(theta, yarn_factor)
    if theta is not None and theta != self.rope_theta:
      changed = dataclasses.replace(changed, rope_theta=theta, rope_scaling=own)
      if own is not None and yarn_factor is None:
        logging.warning("model.rope_theta = %g replaces the model's base %g, and its RoPE scaling %s stays", theta,
                        self.rope_theta, own)
    if yarn_factor is not None:
      original = self.max_positions if own is None else own.original_max_positions
      changed = dataclasses.replace(changed, max_positions=round(original * yarn_factor),
                                    rope_scaling=rope.Yarn(original_max_positions=original, factor=yarn_factor))
      if own is not None and changed.rope_scaling != own:
        logging.warning("model.yarn_factor = %g replaces the model's own RoPE scaling %s: its window is now %d tokens, "
                        "it was %d", yarn_factor, own, changed.max_positions, self.max_positions)
    return changed

  def _own_scaling(self, theta: float | None, yarn_factor: float | None) -> rope.Scaling | None:
    """The scaling that the model has, as a rule if it meets another base or YaRN."""
    own = self.rope_scaling
    changing = {"rope_theta": theta if theta != self.rope_theta else None, "yarn_factor": yarn_factor}
    given = ", ".join(f"model.{name} = {value:g}" for name, value in changing.items() if value is not None)
    if not isinstance(own, rope.Divided) or not given:
      return own
    rule = own.as_llama3(self.head_dim, self.rope_theta)
    if rule is None:
      raise UserError(f"{given} cannot change this model's positions: its file divides each RoPE frequency by a number "
                      "of its own (rope_freqs.weight), and these follow no llama3 rule that would say what they become "
                      "and what context was stretched; leave it out, or give the model's HF directory")
    return rule

  def trained_on(self, sequence_length: int) -> "ModelConfig":
    """The same model after training on sequences of so many tokens: its `max_positions` is at least that."""
    return dataclasses.replace(self, max_positions=max(self.max_positions, sequence_length))


@dataclasses.dataclass(frozen=True)
class Weight:
  """One weight: shape, the logical axis of each dimension, and how it starts.

  init: "ones", "zeros", or "normal" (standard deviation 0.02, as the models here were initialised).
  """
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  init: str = "normal"


def declare(config: ModelConfig) -> dict[str, Any]:
  """Every weight of a model, as a nested dict with the structure of its parameters."""
  V, D, F, L = config.vocab_size, config.embed_dim, config.mlp_dim, config.num_layers
  N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
  layers = {
      "attention_norm": Weight((L, D), ("layers", None), "ones"),
      "q": Weight((L, D, N, H), ("layers", "embed", "heads", "head_dim")),
      "k": Weight((L, D, K, H), ("layers", "embed", "kv_heads", "head_dim")),
      "v": Weight((L, D, K, H), ("layers", "embed", "kv_heads", "head_dim")),
      "out": Weight((L, N, H, D), ("layers", "heads", "head_dim", "embed")),
      "mlp_norm": Weight((L, D), ("layers", None), "ones"),
      "gate": Weight((L, D, F), ("layers", "embed", "mlp")),
      "up": Weight((L, D, F), ("layers", "embed", "mlp")),
      "down": Weight((L, F, D), ("layers", "mlp", "embed")),
  }
  if config.qkv_bias:
    layers["q_bias"] = Weight((L, N, H), ("layers", "heads", "head_dim"), "zeros")
    layers["k_bias"] = Weight((L, K, H), ("layers", "kv_heads", "head_dim"), "zeros")
    layers["v_bias"] = Weight((L, K, H), ("layers", "kv_heads", "head_dim"), "zeros")
  if config.qk_norm:
    layers["q_norm"] = Weight((L, H), ("layers", None), "ones")
    layers["k_norm"] = Weight((L, H), ("layers", None), "ones")
  weights = {"embedding": Weight((V, D), ("vocab", "embed")), "layers": layers,
             "final_norm": Weight((D,), (None,), "ones")}
  if not config.tied:
    weights["head"] = Weight((V, D), ("vocab", "embed"))
  return weights


def num_params(config: ModelConfig) -> int:
  """How many parameters a model has (a tied head counted once)."""
  return sum(math.prod(weight.shape) for weight in jax.tree.leaves(declare(config)))


def abstract_params(config: ModelConfig, dtype: jnp.dtype, mesh: jax.sharding.Mesh | None = None) -> Params:
  """The parameters' shapes, dtypes and (with a mesh) shardings, as `jax.ShapeDtypeStruct`s.

  Raises:
    UserError: the mesh does not divide a dimension.
  """
  def abstract(weight: Weight) -> jax.ShapeDtypeStruct:
    placed = None if mesh is None else meshes.sharding(mesh, weight.axes, weight.shape)
    return jax.ShapeDtypeStruct(weight.shape, dtype, sharding=placed)
  return jax.tree.map(abstract, declare(config))


def init_params(config: ModelConfig, key: jax.Array, dtype: jnp.dtype,
                mesh: jax.sharding.Mesh | None = None) -> Params:
  """Fresh parameters, made on the devices where they belong.

  Raises:
    UserError: the mesh does not divide a dimension.
  """
  weights, structure = jax.tree.flatten(declare(config))
  placed = jax.tree.leaves(abstract_params(config, dtype, mesh))
  # a program a weight, and weights of one shape share it
  return structure.unflatten([
      jax.jit(_initial, static_argnums=(0, 1), out_shardings=leaf.sharding)(weight, dtype, key)
      for weight, leaf, key in zip(weights, placed, jax.random.split(key, len(weights)))])


def _initial(weight: Weight, dtype: jnp.dtype, key: jax.Array) -> jax.Array:
  if weight.init == "normal":
    return (0.02 * jax.random.normal(key, weight.shape, jnp.float32)).astype(dtype)
  return jnp.full(weight.shape, 1.0 if weight.init == "ones" else 0.0, dtype)


# How the layers attend: (q [B, S, N, H], k, v [B, S, K, H], carried) -> (attended values as q, carried). Whatever
# `carried` holds (nothing, or a cache of keys and values) goes from layer to layer.
Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]


class Layer(nnx.Module):
  """One decoder layer: grouped-query attention, then a gated MLP, each on a normalised residual."""

  def __init__(self, config: ModelConfig, weights: dict[str, Array]):
    self.config = config
    for name, value in weights.items():
      setattr(self, name, nnx.Param(value))

  def __call__(self, x: Float[Array, "B S D"], cos: Array, sin: Array, attend: Attend, carried: Any
               ) -> tuple[Float[Array, "B S D"], Any]:
    """The residual stream after this layer, in x's dtype, and what `attend` carries on."""
    eps = self.config.norm_eps
    with jax.named_scope("attention"):
      h = rms_norm(x, self.attention_norm[...], eps).astype(x.dtype)
      q, k, v = (self._project(name, h) for name in "qkv")
      if self.config.qk_norm:
        q, k = rms_norm(q, self.q_norm[...], eps), rms_norm(k, self.k_norm[...], eps)
      q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
      q, k, v = (_product_kept(meshes.constrain(t.astype(x.dtype), ("batch", "sequence", axis, "head_dim")))
                 for t, axis in ((q, "heads"), (k, "kv_heads"), (v, "kv_heads")))
      mixed, carried = attend(q, k, v, carried)
      x = _product_kept(self._add(x, _matmul("bsnh,nhd->bsd", mixed, self.out)))
    with jax.named_scope("mlp"):
      x, *weights = _finished_together(x, self.gate[...], self.up[...])
      h = rms_norm(x, self.mlp_norm[...], eps).astype(x.dtype)
      # The widest arrays of a layer: kept in x's digits, computed with in float32.
      gate, up = (_product_kept(cast(_matmul("bsd,df->bsf", h, weight), x.dtype)) for weight in weights)
      hidden = nnx.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
      hidden = meshes.constrain(cast(hidden, x.dtype), ("batch", "sequence", "mlp"))
      return self._add(x, _matmul("bsf,fd->bsd", *_finished_together(hidden, self.down[...]))), carried

  def _project(self, name: str, h: Float[Array, "B S D"]) -> Float[Array, "B S heads H"]:
    out = _matmul("bsd,dnh->bsnh", h, getattr(self, name))
    return out + getattr(self, f"{name}_bias")[...].astype(jnp.float32) if self.config.qkv_bias else out

  def _add(self, x: Array, update: Array) -> Array:
    return meshes.constrain((x.astype(jnp.float32) + update).astype(x.dtype), ("batch", "sequence", None))


class Decoder(nnx.Module):
  """The whole decoder up to and including the final norm; parameters in, as `declare` shapes them.

  Stacked layers become one loop. Where `layers` is a tuple (`layers_apart`), the program has each of them by itself.
  """

  def __init__(self, config: ModelConfig, params: Params):
    self.config = config
    self.embedding = nnx.Param(params["embedding"])
    if apart := isinstance(params["layers"], tuple):
      self.layers = nnx.List([Layer(config, weights) for weights in params["layers"]])
    else:
      self.layers = Layer(config, params["layers"])
    self.apart = apart
    self.final_norm = nnx.Param(params["final_norm"])
    if not config.tied:
      self.head = nnx.Param(params["head"])

  def __call__(self, tokens: Int[Array, "B S"], *, positions: Int[Array, "B S"] | None = None,
               compute_dtype: jnp.dtype, remat: str = "none", attend: Attend, carried: Any = None
               ) -> tuple[Float[Array, "B S D"], Any]:
    """The hidden states as in `hidden_states`, and what `attend` carried through all layers."""
    config = self.config
    placed = jnp.arange(tokens.shape[1])[None] if positions is None else positions
    cos, sin = rope.rotation(placed, config.head_dim, config.rope_theta, config.rope_scaling)
    rotated = np.isin(np.arange(config.num_layers), config.unrotated, invert=True) if config.unrotated else None
    with jax.named_scope("embed"):
      x = meshes.constrain(embed(self.embedding[...], tokens, compute_dtype), ("batch", "sequence", None))
    if self.apart:
      for i, layer in enumerate(self.layers):
        x, carried = layer(x, *_of_layer(None if rotated is None else rotated[i], cos, sin), attend, carried)
      return rms_norm(x, self.final_norm[...], config.norm_eps).astype(compute_dtype), carried
    structure, stacked = nnx.split(self.layers)

    def step(carry: tuple[Array, Any], of_layer: tuple[nnx.State, Array | None]) -> tuple[tuple[Array, Any], None]:
      (x, carried), (weights, rotated) = carry, of_layer
      return nnx.merge(structure, weights)(x, *_of_layer(rotated, cos, sin), attend, carried), None

    if (kept := REMAT[remat]) is not None:
      # prevent_cse is for remat outside of loops; a scan keeps the two passes apart by itself
      step = jax.checkpoint(step, prevent_cse=False, policy=remat_policy(kept))
    (x, carried), _ = lax.scan(step, (x, carried), (stacked, rotated))
    return rms_norm(x, self.final_norm[...], config.norm_eps).astype(compute_dtype), carried


def _of_layer(rotated: Bool[Array, ""] | None, cos: Array, sin: Array) -> tuple[Array, Array]:
  """A layer's cosine and sine: angles of zero where it does not rotate; None means that every layer does."""
  return (cos, sin) if rotated is None else (jnp.where(rotated, cos, 1.0), jnp.where(rotated, sin, 0.0))


def layers_apart(params: Params) -> Params:
  """The parameters with a tuple of layers, each in memory of its own, in place of the stacked ones; a copy of these.

  For programs that do little with a weight but read it, on CPU: there XLA takes each slice of a stack out of it, a
  copy, before it multiplies (a third of the time of decoding).
  """
  leaves, structure = jax.tree.flatten(params["layers"])
  layers = tuple(structure.unflatten([leaf[i] for leaf in leaves]) for i in range(leaves[0].shape[0]))
  return {**params, "layers": layers}


def embed(table: Float[Array, "V D"], tokens: Int[Array, "B S"], dtype: jnp.dtype) -> Float[Array, "B S D"]:
  """table[tokens] as `dtype`. Of many devices each looks up its own columns for all, and then they are exchanged.

  So the table is never gathered, nor its gradient: at 150,000 rows both are far larger than what was looked up.
  """
  if meshes.current() is None:
    return table[tokens].astype(dtype)
  axes = dict(meshes.RULES)["embed"]

  def local(table, tokens):
    everybody = lax.all_gather(tokens, axes) - lax.axis_index("tensor") * table.shape[0]
    here = (everybody >= 0) & (everybody < table.shape[0])
    columns = jnp.where(here[..., None], table[jnp.clip(everybody, 0, table.shape[0] - 1)], 0).astype(dtype)
    columns = lax.psum(columns, "tensor")
    return lax.all_to_all(columns, axes, split_axis=0, concat_axis=3, tiled=True)[0]
  spec = meshes.partition_spec
  return jax.shard_map(local, in_specs=(spec(("vocab", "embed")), spec(("batch", "sequence"))),
                       out_specs=spec(("batch", "sequence", None)))(table, tokens)


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, "D"], eps: float) -> Float[Array, "... D"]:
  """x divided by its root mean square, times scale; float32 (arXiv 1910.07467)."""
  x = x.astype(jnp.float32)
  return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale.astype(jnp.float32)


@jax.custom_vjp
def _finished_together(*arrays: Array) -> tuple[Array, ...]:
  """The arrays; none of their gradients is used before all are there.

  Else the compiler goes on into attention's backward pass while the weights of the MLP still wait for their
  gradients, and its widest arrays lie in memory beside attention's, or one of them beside the next.
  """
  return arrays


_finished_together.defvjp(lambda *arrays: (arrays, None),
                          lambda _, gradients: tuple(lax.optimization_barrier(gradients)))


def _product_kept(x: Array) -> Array:
  """x, which a layer may keep for its backward pass so that no product of its weights is computed again."""
  return checkpoint_name(x, _PRODUCT)


def _matmul(letters: str, x: Array, weight: nnx.Param | Array) -> Array:
  """Inputs in x's dtype, sums and result in float32; the gradient's products take inputs in x's dtype too."""
  return _product(letters, x, weight[...].astype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(letters: str, x: Array, weight: Array) -> Array:
  return jnp.einsum(letters, x, weight, preferred_element_type=jnp.float32)


def _product_forward(letters, x, weight):
  return _product(letters, x, weight), (x, weight)


def _product_backward(letters, residuals, cotangent):
  """The result's float32 cotangent would pull both products up to float32: at bfloat16 three times slower."""
  x, weight = residuals
  (of_x, of_weight), of_out = letters.split("->")[0].split(","), letters.split("->")[1]
  cotangent = cotangent.astype(x.dtype)
  dx = jnp.einsum(f"{of_out},{of_weight}->{of_x}", cotangent, weight, preferred_element_type=jnp.float32)
  dw = jnp.einsum(f"{of_x},{of_out}->{of_weight}", x, cotangent, preferred_element_type=jnp.float32)
  return dx.astype(x.dtype), dw.astype(weight.dtype)


_product.defvjp(_product_forward, _product_backward)


def hidden_states(params: Params, config: ModelConfig, tokens: Int[Array, "B S"], *,
                  positions: Int[Array, "B S"] | None = None, segment_ids: Int[Array, "B S"] | None = None,
                  compute_dtype: jnp.dtype, remat: str = "none", context: str | None = None,
                  attention_implementation: str | None = None) -> Float[Array, "B S D"]:
  """What the output matrix is applied to: the states after the final norm, in `compute_dtype`.

  Args:
    params: as `abstract_params` shapes them, in any float dtype; cast layer by layer.
    config: what the model is.
    tokens: token ids.
    positions: for RoPE, rising along each segment; None means 0 .. S-1. Who sees whom follows from the order of
      the tokens.
    segment_ids: attention stays within equal ids; None means one segment a row.
    compute_dtype: of the matrix multiplications' inputs and the residual stream; norms, rotations and
      softmax are float32 in any case.
    remat: what of a layer is computed again in the backward pass: "none", "all_but_products" (the results of its
      matrix products and of attention are kept, in compute_dtype), "all_but_attention" (only that is kept), or
      "full" (only the layer's input is kept).
    context: "gather" or "ring" where tokens lie in the zig-zag layout over the mesh's context axis, with
      `positions` in that layout too; see `policylong.attention.api.attention`.
    attention_implementation: see there.
  """
  def attend(q, k, v, carried):
    mixed = attention(q, k, v, segment_ids=segment_ids, context=context, implementation=attention_implementation)
    return mixed, carried
  return Decoder(config, params)(tokens, positions=positions, compute_dtype=compute_dtype, remat=remat,
                                 attend=attend)[0]


def output_matrix(params: Params, config: ModelConfig) -> Float[Array, "V D"]:
  """The matrix from hidden states to logits: the embedding itself where the head is tied."""
  return params["embedding"] if config.tied else params["head"]
