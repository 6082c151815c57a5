"""Compiles the programs of generation for v5e chips; prints bytes of a device's cache, and temporaries of each."""

from policylong.aot import compiler


def main():
  compiler.prepare_environment()
  import jax
  import jax.numpy as jnp

  from policylong import config as config_lib
  from policylong.devices.mesh import make_mesh
  from policylong.model import qwen
  from policylong.model.decoding import Programs, Sampling, Slots

  config = qwen.ModelConfig("qwen2", 512, 256, 512, 4, 4, 2, 128, 1e-6, 1e4, None, 16384, True)
  mesh = make_mesh(config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1), compiler.topology_devices("v5e:2x2"))
  programs = Programs(config, mesh, jnp.dtype(jnp.bfloat16), apart=False)
  def rows(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=programs.rows)
  def whole(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=programs.whole)
  params = jax.tree.map(lambda x: whole(*x.shape, dtype=x.dtype), qwen.abstract_params(config, jnp.bfloat16))
  prompts, cache = programs.abstract_prompts(4, 16384), programs.abstract_cache(8, 16384 + 128)
  states, chunk, one = rows(4, 256, dtype=jnp.bfloat16), rows(4, 2048), rows(4)
  slots, fresh = (Slots(*(rows(count) for _ in Slots._fields)) for count in (8, 4))
  sampling = Sampling(whole(8), whole(dtype=jnp.float32), whole())
  with jax.set_mesh(mesh):
    traced = {
        "prefill": programs.prefill.trace(params, prompts, states, chunk, one, whole()),
        "insert": programs.insert.trace(params, cache, slots, prompts, states, one, fresh, sampling),
        "decode": programs.decode.trace(params, cache, slots, one, rows(8, dtype=bool), sampling, prompt_places=16384,
                                        steps=16)}
  print("cache", sum(leaf.size * 2 for leaf in cache) // 4)
  for name, program in traced.items():
    compiled = program.lower(lowering_platforms=("tpu",)).compile()
    print(name, compiled.memory_analysis().temp_size_in_bytes, "splash" in compiled.as_text())


if __name__ == "__main__":
  main()
