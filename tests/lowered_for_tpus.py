"""Lowers every program of the 0.5B config for eight chips, up to the compiler; prints its tokens and model FLOPs."""

from policylong import aot


def main():
  aot.prepare_environment()
  from configs import qwen0_5b_128k
  from policylong import config as config_lib
  from policylong.mesh import make_mesh

  config = config_lib.parse(qwen0_5b_128k.get_config("v5e:4x4").to_dict())
  devices = aot.topology_devices("v5e:2x4")
  for program in aot.PROGRAMS:
    split = {"fsdp": 2, "context": 4} if program == "train" else {"fsdp": 1, "context": 1}
    mesh = make_mesh(config_lib.Mesh(data=-1, tensor=1, **split), devices)
    _, tokens, model_flops = aot.lowered(config, aot.shape_of(config, program), mesh, program)
    print(program, tokens, int(model_flops))


if __name__ == "__main__":
  main()
