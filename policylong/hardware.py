"""Peak matmul rate of the devices, in bf16 FLOP/s: what "share of peak" is a share of."""

import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Start of `device_kind` -> dense bf16 FLOP/s of one JAX device (Google Cloud TPU and NVIDIA data sheets).
# The first match counts, so a longer name stands before its own beginning. A TPU7x chip (2307 TFLOP/s)
# is two JAX devices; the chips before it are one each.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
}


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
  """bf16 FLOP/s of all `devices` together; None for a kind that is not in the table.

  CPU devices of one process share its cores, however many are simulated: each process counts once,
  at a rate that is measured (once, about 0.3 s).
  """
  if devices[0].platform == "cpu":
    return _measured_cpu_flops() * len({device.process_index for device in devices})
  kind = devices[0].device_kind
  return next((peak * len(devices) for name, peak in PEAKS.items() if kind.startswith(name)), None)


@functools.cache
def _measured_cpu_flops(size: int = 1024, seconds: float = 0.3) -> float:
  """The best rate of a [size, size] bf16 matmul within about `seconds`, on an otherwise idle machine."""
  # Sums in float32, and two different operands: otherwise XLA's CPU compiler does not take its fast kernel.
  matmul = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32),
                   device=jax.local_devices(backend="cpu")[0])
  x, y = jnp.ones((size, size), jnp.bfloat16), jnp.full((size, size), 2, jnp.bfloat16)
  matmul(x, y).block_until_ready()
  fastest, end = float("inf"), time.perf_counter() + seconds
  while (start := time.perf_counter()) < end:
    matmul(x, y).block_until_ready()
    fastest = min(fastest, time.perf_counter() - start)
  return 2 * size**3 / fastest
