"""Lowers every program of the 0.5B config for eight chips, up to the compiler.

The train step also as it is of packed documents, and of weighed ones. Prints tokens, model FLOPs and the arrays of a
batch.
"""

from policylong.aot import compiler, programs


def main():
  compiler.prepare_environment()
  import jax

  from configs import qwen0_5b_128k
  from policylong import config as config_lib
  from policylong.devices.mesh import make_mesh

  devices = compiler.topology_devices("v5e:2x4")
  for name, changes in {**{program: {} for program in programs.PROGRAMS}, "train packed": {"document_masking": True},
                        "train weighed": {"longce": True}}.items():
    program, *_ = name.split()
    values = qwen0_5b_128k.get_config("v5e:4x4")
    values.training.update(changes)
    config = config_lib.parse(values.to_dict())
    split = {"fsdp": 2, "context": 4} if program == "train" else {"fsdp": 1, "context": 1}
    mesh = make_mesh(config_lib.Mesh(data=-1, tensor=1, **split), devices)
    lowered, tokens, model_flops = programs.lowered(config, programs.shape_of(config, program), mesh, program)
    _, *arrays = lowered.in_avals[0]
    print(name.replace(" ", "_"), tokens, int(model_flops), len(jax.tree.leaves(arrays)))


if __name__ == "__main__":
  main()
