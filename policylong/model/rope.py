"""Rotary positions (RoPE, arXiv 2104.09864) and the ways in which published models stretch them.

The two halves of a head are rotated against each other (x[i] with x[i + H/2]), as transformers does it;
GGUF files of Llama models interleave the pairs instead, which `gguf_file.py` undoes. B batch, S sequence, N heads,
H head size. A scaling changes the frequencies of the H/2 pairs once and for all; those that depend on the length of
what is read (dynamic, longrope) are none of them.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from policylong.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
  """What all scalings have: the context that the model was trained for before it was stretched, in tokens."""
  rope_type: ClassVar[str]
  original_max_positions: int

  def frequencies(self, wavelengths: Float[np.ndarray, "H/2"], theta: float) -> Float[np.ndarray, "H/2"]:
    """Radians a token for each pair; `wavelengths` are the model's own, in tokens a radian."""
    raise NotImplementedError

  def scale(self) -> float:
    """What sine and cosine are multiplied by."""
    return 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Scaling):
  """Position interpolation (arXiv 2306.15595): every frequency divided by `factor`."""
  rope_type: ClassVar[str] = "linear"
  factor: float

  def frequencies(self, wavelengths, theta):
    """See `Scaling`."""
    return np.float32(1) / wavelengths / np.float32(self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3(Scaling):
  """The rule of Llama 3.1 and 3.2, by how often a pair turns within `original_max_positions` tokens.

  More than `high_freq_factor` times: its frequency stays. Less than `low_freq_factor` times: divided by `factor`.
  Between, a linear blend of the two.
  """
  rope_type: ClassVar[str] = "llama3"
  factor: float
  low_freq_factor: float
  high_freq_factor: float

  def __post_init__(self):
    if self.low_freq_factor >= self.high_freq_factor:
      raise UserError(f"llama3 RoPE scaling has low_freq_factor = {self.low_freq_factor:g}, wanted one below "
                      f"high_freq_factor = {self.high_freq_factor:g}")

  def frequencies(self, wavelengths, theta):
    """See `Scaling`."""
    inverse = np.float32(1) / wavelengths
    turns = np.float32(self.original_max_positions) / (np.float32(2 * math.pi) / inverse)
    kept = (turns - np.float32(self.low_freq_factor)) / np.float32(self.high_freq_factor - self.low_freq_factor)
    kept = np.clip(kept, 0, 1)
    return (1 - kept) * inverse / np.float32(self.factor) + kept * inverse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divided(Scaling):
  """Each pair's frequency divided by a number of its own: how GGUF files keep llama3 (`rope_freqs.weight`)."""
  rope_type: ClassVar[str] = "divided"
  divisors: tuple[float, ...]

  def frequencies(self, wavelengths, theta):
    """See `Scaling`."""
    return np.float32(1) / wavelengths / np.array(self.divisors, np.float32)

  def as_llama3(self, head_dim: int, theta: float) -> Llama3 | None:
    """The llama3 rule with these divisors (to 1e-5 of each), or None where they follow no such rule.

    The rule depends on three numbers: only the ratios of its four are in it. low_freq_factor is taken as 1, as in all
    published models, and the others are read from the pairs between the two ends.
    """
    divisors, factor = np.array(self.divisors, np.float64), max(self.divisors)
    between = (divisors > 1) & (divisors < factor)
    if factor <= 1 or between.sum() < 2:
      return None
    turned = _wavelengths(head_dim, theta).astype(np.float64)[between] ** -1 / (2 * math.pi)  # turns a token
    kept = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
    slope, offset = np.polyfit(turned, kept, 1)  # original / (high - low) and -low / (high - low)
    if slope <= 0 or offset >= 0:
      return None
    found = Llama3(original_max_positions=round(-slope / offset), factor=factor, low_freq_factor=1.0,
                   high_freq_factor=float(f"{1 - 1 / offset:.4g}"))
    own = frequencies(head_dim, theta, None)
    same = np.allclose(own / frequencies(head_dim, theta, found), divisors, rtol=1e-5, atol=0)
    return found if same else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yarn(Scaling):
  """YaRN (arXiv 2309.00071), its settings named and defaulted as in transformers' `rope_parameters`.

  Pairs that turn more than `beta_fast` times within `original_max_positions` tokens keep their frequency, those that
  turn less than `beta_slow` times have it divided by `factor`, and a linear ramp over the pairs lies between.
  """
  rope_type: ClassVar[str] = "yarn"
  factor: float
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

  def frequencies(self, wavelengths, theta):
    """See `Scaling`."""
    head_dim = 2 * len(wavelengths)
    low, high = (self._pair(turns, head_dim, theta) for turns in (self.beta_fast, self.beta_slow))
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low if high != low else 0.001
    stretched = np.clip((np.arange(head_dim // 2) - low) / span, 0.0, 1.0).astype(np.float32)
    return (np.float32(1) / wavelengths * (1 - stretched)
            + np.float32(1) / (np.float32(self.factor) * wavelengths) * stretched)

  def _pair(self, turns: float, head_dim: int, theta: float) -> float:
    """The (fractional) pair that turns this often within the original context."""
    return head_dim * math.log(self.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))


SCALINGS: dict[str, type[Scaling]] = {kind.rope_type: kind for kind in (Linear, Llama3, Divided, Yarn)}


def to_dict(scaling: Scaling | None) -> dict[str, Any] | None:
  """A scaling as plain values, for a JSON file."""
  return None if scaling is None else {"rope_type": scaling.rope_type, **dataclasses.asdict(scaling)}


def from_dict(values: dict[str, Any] | None) -> Scaling | None:
  """The scaling that `to_dict` wrote; raises KeyError or TypeError for anything else."""
  if values is None:
    return None
  fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
  return SCALINGS[fields.pop("rope_type")](**fields)


def frequencies(head_dim: int, theta: float, scaling: Scaling | None) -> Float[np.ndarray, "H/2"]:
  """Radians a token for each pair of a head, rounded to float32 at the steps where transformers rounds."""
  wavelengths = _wavelengths(head_dim, theta)
  return np.float32(1) / wavelengths if scaling is None else scaling.frequencies(wavelengths, theta)


def rotation(positions: Int[Array, "B S"], head_dim: int, theta: float,
             scaling: Scaling | None) -> tuple[Float[Array, "B S 1 H/2"], Float[Array, "B S 1 H/2"]]:
  """Cosine and sine of each position's angles, float32, times the scaling's own scale."""
  angles = positions.astype(jnp.float32)[..., None, None] * frequencies(head_dim, theta, scaling)
  scale = 1.0 if scaling is None else scaling.scale()
  return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x: Float[Array, "B S N H"], cos: Float[Array, "B S 1 H/2"],
           sin: Float[Array, "B S 1 H/2"]) -> Float[Array, "B S N H"]:
  """Turns each pair (x[i], x[i + H/2]) by its angle."""
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _wavelengths(head_dim: int, theta: float) -> Float[np.ndarray, "H/2"]:
  """Tokens a radian for each pair of a head, float32."""
  return (theta ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)


def _mscale(factor: float, mscale: float) -> float:
  return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
