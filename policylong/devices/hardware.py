"""Peak matmul rate of the devices, in bf16 FLOP/s: what "share of peak" is a share of."""

import dataclasses
import functools
import os
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from policylong.errors import UserError

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

# Each device of a scoring program holds its own copy of the weights.
_MOST_CPU_DEVICES = 4


@dataclasses.dataclass(frozen=True)
class Chip:
  """A TPU chip, as far as estimates need it: FLOP/s in bf16, core clock in Hz, memory that programs may use, bytes/s of
  all its links to other chips together."""
  peak_flops: float
  clock_hz: float
  hbm_bytes: int
  link_bytes_per_second: float


# Clock: the peak divided by what the chip's matrix units do in a cycle (4 of 128 x 128 in v5e, 8 in v5p, 4 of 256 x 256
# in v6e). Memory: what the compiler allows. Links: Google Cloud's data sheets (1,600, 4,800, 3,584 Gbit/s a chip).
CHIPS = {
    "TPU v5 lite": Chip(197e12, 1.50e9, int(15.75 * 2**30), 200e9),
    "TPU v5": Chip(459e12, 1.75e9, int(95.74 * 2**30), 600e9),
    "TPU v6": Chip(918e12, 1.75e9, int(31.25 * 2**30), 448e9),
}


def chip_of(device: jax.Device) -> Chip:
  """What is known of a device's chip.

  Raises:
    UserError: nothing is.
  """
  kind = device.device_kind
  chip = next((chip for name, chip in CHIPS.items() if kind.startswith(name)), None)
  if chip is None:
    raise UserError(f"nothing is known of the chip {kind!r}: estimates are made for {', '.join(CHIPS)} (v5e, v5p, v6e)")
  return chip


def spread_over_cores() -> None:
  """From now on the CPU counts as a device a core (at most 4): for programs whose rows are independent.

  XLA runs the smaller operations of a program on one core, and the programs of several devices side by side. Must be
  called before any device is touched; leaves other platforms alone, and a number that the user has set by XLA_FLAGS.
  """
  if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, _MOST_CPU_DEVICES))


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
  """bf16 FLOP/s of all `devices` together; None for a kind that is not in the table.

  CPU devices of one process share its cores, however many are simulated: each process counts once,
  at a rate that is measured (once, about 0.3 s).
  """
  if devices[0].platform == "cpu":
    here = jax.local_devices(backend="cpu")[0]
    return measured_flops(here, 1024) * len({device.process_index for device in devices})
  kind = devices[0].device_kind
  return next((peak * len(devices) for name, peak in PEAKS.items() if kind.startswith(name)), None)


@functools.cache
def measured_flops(device: jax.Device, size: int, seconds: float = 0.3) -> float:
  """The best rate, FLOP/s, of a [size, size] bf16 matmul within about `seconds`, where nothing else runs.

  Of random numbers: a GPU multiplies ones faster, because they take less power.
  """
  # Sums in float32, and two different operands: otherwise XLA's CPU compiler does not take its fast kernel.
  matmul = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32), device=device)
  x, y = (jax.device_put(jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16), device) for i in range(2))
  matmul(x, y).block_until_ready()
  fastest, end = float("inf"), time.perf_counter() + seconds
  while (start := time.perf_counter()) < end:
    matmul(x, y).block_until_ready()
    fastest = min(fastest, time.perf_counter() - start)
  return 2 * size**3 / fastest
