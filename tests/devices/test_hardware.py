"""Peak rates: by the data sheet where there is one, by measurement on a CPU."""

import types

import jax
import pytest

from policylong.devices import hardware


def device(kind, platform="tpu"):
  return types.SimpleNamespace(device_kind=kind, platform=platform, process_index=0)


@pytest.mark.parametrize("kind, teraflops", [
    ("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5", 459), ("TPU v5p", 459), ("TPU v6 lite", 918),
    ("TPU7x", 1153.5), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA A100-SXM4-80GB", 312)])
def test_devices_have_the_peak_of_their_data_sheet(kind, teraflops):
  assert hardware.peak_flops([device(kind)] * 4) == 4 * teraflops * 1e12


def test_an_unknown_device_has_no_peak():
  assert hardware.peak_flops([device("GPU of next year")]) is None


def test_simulated_devices_share_one_cpu():
  one, eight = hardware.peak_flops(jax.devices()[:1]), hardware.peak_flops(jax.devices())
  assert one == eight
  assert 1e9 < one < 1e15
