"""Seconds of a program on whatever device it runs on, and that device's own measured peak."""

import statistics
import time

import jax

from policylong.devices import hardware

# A turn is so many seconds of calls at least: what one call costs the host disappears behind the device's work.
_TURN = 0.2


def seconds_a_call(function, *arguments, turns: int) -> float:
  """The median over `turns` of the mean seconds of a call; compiles and warms up first."""
  jax.block_until_ready(function(*arguments))
  start = time.perf_counter()
  jax.block_until_ready(function(*arguments))
  calls = max(1, round(_TURN / (time.perf_counter() - start)))
  measured = []
  for _ in range(turns):
    start = time.perf_counter()
    for _ in range(calls):
      result = function(*arguments)
    jax.block_until_ready(result)
    measured.append((time.perf_counter() - start) / calls)
  return statistics.median(measured)


def peak_flops() -> float:
  """The measured bf16 FLOP/s of all local devices together, by a product that fills one (CPU devices share a CPU)."""
  device = jax.local_devices()[0]
  if device.platform == "cpu":
    return hardware.measured_flops(device, 1024)
  return hardware.measured_flops(device, 8192) * jax.local_device_count()
