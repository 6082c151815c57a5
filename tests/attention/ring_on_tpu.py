"""Prints the schedule of ring attention's gradient, compiled for four v5e chips: one line an operation that matters."""

import re

from policylong.aot import compiler


def main():
  compiler.prepare_environment()
  import jax
  import jax.numpy as jnp

  from policylong import config
  from policylong.attention import attention
  from policylong.devices import mesh

  devices = mesh.make_mesh(config.Mesh(data=1, fsdp=1, context=4, tensor=1), compiler.topology_devices("v5e:2x2"))
  tokens = jax.NamedSharding(devices, jax.sharding.PartitionSpec(None, "context"))
  q, k = (jax.ShapeDtypeStruct((1, 32768, heads, 128), jnp.bfloat16, sharding=tokens) for heads in (4, 2))
  def loss(q, k, v):
    return jnp.sum(attention(q, k, v, context="ring").astype(jnp.float32))
  with jax.set_mesh(devices):
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k)
  for line in traced.lower(lowering_platforms=("tpu",)).compile().as_text().splitlines():
    if found := re.match(r"\s+(?:ROOT )?%(collective-permute-(?:start|done)|splash_mha_[a-z]+)[\w.\-]* = ", line):
      print(found[1])
    elif re.match(r"(ENTRY )?%[\w.\-]+ \(.*\{$", line):
      print("computation")


if __name__ == "__main__":
  main()
