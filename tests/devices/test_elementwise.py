"""The plain arithmetic that XLA's CPU compiler fuses, against numpy's own functions."""

import jax
import jax.numpy as jnp
import numpy as np

from policylong.devices.elementwise import cast, exp


def test_exp_is_that_of_float64():
  x = np.concatenate([np.linspace(-87, 79, 100_001), [0.0, -0.0, 1e-30]]).astype(np.float32)
  # float32 has spacing 1.2e-7; the argument times log2(e) is rounded once, which grows with its size
  np.testing.assert_allclose(jax.jit(exp)(x), np.exp(x.astype(np.float64)), rtol=2e-7 + 87 * 6e-8)
  assert float(exp(jnp.float32(-1e30))) == 0.0 and np.isnan(float(exp(jnp.float32(np.nan))))


def test_cast_rounds_to_nearest_even():
  bits = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32)
  bits[:1000] = (bits[:1000] & 0xFFFF0000) | 0x8000  # halfway between two bfloat16
  x = bits.view(np.float32)
  x = x[np.isfinite(x) & (np.abs(x) < 3e38)]
  np.testing.assert_array_equal(np.asarray(jax.jit(lambda x: cast(x, jnp.bfloat16))(x)).view(np.uint16),
                                x.astype(jnp.bfloat16).view(np.uint16))


def test_the_derivative_of_cast_is_that_of_a_conversion():
  def loss(convert, x):
    return jnp.sum(convert(x, jnp.bfloat16).astype(jnp.float32) ** 2)
  x = jnp.linspace(-3, 3, 101)
  found = jax.grad(lambda x: loss(cast, x))(x)
  np.testing.assert_array_equal(found, jax.grad(lambda x: loss(lambda x, dtype: x.astype(dtype), x))(x))
  assert float(jnp.abs(found).max()) > 5
