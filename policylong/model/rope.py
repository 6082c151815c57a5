"""Rotary positions (RoPE, arXiv 2104.09864) and their YaRN extension (arXiv 2309.00071).

The two halves of a head are rotated against each other (x[i] with x[i + H/2]), as transformers does it;
GGUF files of Llama models interleave the pairs instead, which `hf.py` undoes. B batch, S sequence, N heads,
H head size.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Yarn:
  """YaRN's settings, named and defaulted as in transformers' `rope_parameters`.

  Wavelengths that turn more than `beta_fast` times within `original_max_positions` tokens stay, those that
  turn less than `beta_slow` times are stretched by `factor`, and a linear ramp lies between.
  """
  factor: float
  original_max_positions: int
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  mscale: float | None = None
  mscale_all_dim: float | None = None
  truncate: bool = True

  def scale(self) -> float:
    """What sine and cosine are multiplied by, so that attention keeps its temperature."""
    if self.attention_factor is not None:
      return self.attention_factor
    if self.mscale and self.mscale_all_dim:
      return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
    return _mscale(self.factor, 1.0)


def frequencies(head_dim: int, theta: float, yarn: Yarn | None) -> Float[np.ndarray, "H/2"]:
  """Radians a token for each pair of a head, rounded to float32 at the steps where transformers rounds."""
  wavelengths = (theta ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
  inverse = np.float32(1) / wavelengths
  if yarn is None:
    return inverse
  low, high = (_dimension(turns, head_dim, theta, yarn) for turns in (yarn.beta_fast, yarn.beta_slow))
  if yarn.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_dim - 1)
  span = high - low if high != low else 0.001
  stretched = np.clip((np.arange(head_dim // 2) - low) / span, 0.0, 1.0).astype(np.float32)
  return inverse * (1 - stretched) + np.float32(1) / (np.float32(yarn.factor) * wavelengths) * stretched


def rotation(positions: Int[Array, "B S"], head_dim: int, theta: float,
             yarn: Yarn | None) -> tuple[Float[Array, "B S 1 H/2"], Float[Array, "B S 1 H/2"]]:
  """Cosine and sine of each position's angles, float32, times YaRN's attention scale."""
  angles = positions.astype(jnp.float32)[..., None, None] * frequencies(head_dim, theta, yarn)
  scale = 1.0 if yarn is None else yarn.scale()
  return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x: Float[Array, "B S N H"], cos: Float[Array, "B S 1 H/2"],
           sin: Float[Array, "B S 1 H/2"]) -> Float[Array, "B S N H"]:
  """Turns each pair (x[i], x[i + H/2]) by its angle."""
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _dimension(turns: float, head_dim: int, theta: float, yarn: Yarn) -> float:
  """The (fractional) pair that turns this often within the original context."""
  return head_dim * math.log(yarn.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))


def _mscale(factor: float, mscale: float) -> float:
  return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
