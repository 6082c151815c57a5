"""e^x in float32 that XLA's CPU compiler can fuse with its neighbours."""

import jax
import jax.numpy as jnp
from jax import lax

_LOG2_E = 1.4426950408889634

# 2^f on 0 <= f < 1: minimax polynomial of degree 5, highest coefficient first; relative error 2e-7.
_COEFFICIENTS = (1.8775767e-3, 8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1)


def exp(x: jax.Array) -> jax.Array:
  """e^x for float32 x <= 80 or so; exactly 0 below -87.3, where float32 has no normal numbers.

  On CPU XLA computes its own `exp` in a loop apart and writes the result to memory before it is used;
  written out as arithmetic, it joins the loop around it (a third of the entropy op's and of attention's
  time). On accelerators the hardware's own is used.
  """
  return lax.platform_dependent(x, cpu=_polynomial, default=jnp.exp)


def _polynomial(x: jax.Array) -> jax.Array:
  """2^n 2^f with n whole and 0 <= f < 1. Says nothing of a NaN: callers carry it in their maximum."""
  y = x * _LOG2_E
  clipped = jnp.maximum(y, -126.0)
  n = jnp.floor(clipped)
  f = clipped - n
  power = jnp.float32(_COEFFICIENTS[0])
  for coefficient in _COEFFICIENTS[1:]:
    power = power * f + coefficient
  bits = lax.bitcast_convert_type(power, jnp.int32) + (n.astype(jnp.int32) << 23)
  return jnp.where(y < -126.0, 0.0, lax.bitcast_convert_type(bits, jnp.float32))
