"""Prints, for each kind of chip, the share of its peak at which the compiler expects a large product to run."""

from policylong.aot import compiler


def main():
  compiler.prepare_environment()
  import jax
  import jax.numpy as jnp
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  from policylong.aot.optimised_hlo import summarise
  from policylong.devices import hardware

  for topology in ("v5e:1x1", "v5p:2x2x1", "v6e:1x1"):
    devices = compiler.topology_devices(topology)[:1]
    whole = NamedSharding(Mesh(devices, "x"), PartitionSpec())
    x = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=whole)
    found = summarise(jax.jit(jnp.matmul).trace(x, x).lower(lowering_platforms=("tpu",)).compile().as_text())
    chip = hardware.chip_of(devices[0])
    print(topology, 2 * 8192**3 / chip.peak_flops / (found.matmul_cycles / chip.clock_hz))


if __name__ == "__main__":
  main()
