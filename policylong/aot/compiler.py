"""What the TPU compiler says of a program: its memory, its collectives, and an estimate of its time.

The compiler runs without TPUs. `prepare_environment` must come before JAX is imported, so this module and `programs`
import it inside their functions.
"""

import dataclasses
import os
import pathlib
import re
import sys
import time

from policylong.aot import programs
from policylong.errors import UserError

# Of the peak, for attention kernels: an assumption, not a measurement.
KERNEL_SHARE = 0.6


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler says of one program; bytes are of one device. The fields are the JSON's."""
  config: str
  topology: str
  program: str
  devices: int
  fits: bool
  problem: str
  peak_bytes: int | None
  argument_bytes: int | None
  temp_bytes: int | None
  hbm_bytes: int
  tokens: int
  model_flops: float
  collectives: dict | None
  compile_seconds: float
  estimated_parts_seconds: dict | None
  estimated_step_seconds: float | None
  estimated_mfu: float | None


def prepare_environment() -> None:
  """Before JAX is imported: the host's CPU as its backend, and where the TPU compiler is.

  Raises:
    UserError: it is nowhere.
  """
  # Several processes may compile at once, and nobody asks a metadata server that is not there. The type is of chips
  # that this machine does not have: a topology does not ask for it, but without one the compiler warns.
  os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
                    TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5p-8", TPU_MIN_LOG_LEVEL="3",
                    TPU_STDERR_LOG_LEVEL="3")
  if "TPU_LIBRARY_PATH" not in os.environ:
    places = [pathlib.Path(folder) / "libtpu" / "libtpu.so" for folder in (f"{sys.prefix}/tpu-compiler", *sys.path)]
    found = next((place for place in places if place.exists()), None)
    if found is None:
      raise UserError("the TPU compiler is not installed: run `make tpu-compiler` or `pip install libtpu`, or set "
                      "TPU_LIBRARY_PATH to a libtpu.so")
    os.environ["TPU_LIBRARY_PATH"] = str(found)


def topology_devices(topology: str) -> list:
  """The devices of a topology such as "v5p:4x4x4" or "2xv5p:4x4x4"; they can be compiled for and nothing else.

  Raises:
    UserError: the compiler does not know it.
  """
  from jax.experimental import topologies
  found = re.fullmatch(r"(?:(\d+)x)?([a-z0-9]+:\d+(?:x\d+)+)", topology)
  try:
    if not found:
      raise ValueError("it must look like v5p:4x4x4, v5e:8x8 or 2xv6e:16x16")
    options = {"num_slices": int(found[1])} if found[1] else {}
    return list(topologies.get_topology_desc(platform="tpu", topology_name=found[2], **options).devices)
  except Exception as error:  # libtpu raises several kinds
    reason = str(error).splitlines()[0]
    raise UserError(f"--topology is {topology!r}, which cannot be compiled for: {reason}") from error


def compile_program(name: str, config, topology: str, program: str) -> Compiled:
  """Compiles one program of a config; what does not fit is a finding, not an error.

  Raises:
    UserError: the mesh does not match the topology, or does not divide what lies on it.
  """
  from policylong import config as config_lib
  from policylong.devices import hardware
  from policylong.devices.mesh import make_mesh

  devices = topology_devices(topology)
  chip = hardware.chip_of(devices[0])
  model = programs.shape_of(config, program)
  # Scoring and embedding share nothing between devices.
  sizes = config.mesh if program == "train" else config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1)
  mesh = make_mesh(sizes, devices)
  program_text, tokens, model_flops = programs.lowered(config, model, mesh, program)
  start = time.perf_counter()
  common = {"config": name, "topology": topology, "program": program, "devices": len(devices), "tokens": tokens,
            "hbm_bytes": chip.hbm_bytes, "model_flops": model_flops}
  try:
    compiled = program_text.compile()
  except Exception as error:  # the compiler's own; only a lack of memory is expected
    shortage = re.search(r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) hbm", str(error))
    if not shortage:
      raise
    return Compiled(**common, fits=False, problem=_advice(config, program, *shortage.groups()), peak_bytes=None,
                    argument_bytes=None, temp_bytes=None, collectives=None,
                    compile_seconds=time.perf_counter() - start, estimated_parts_seconds=None,
                    estimated_step_seconds=None, estimated_mfu=None)
  seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  parts, collectives = estimate(compiled.as_text(), config, model, chip, len(devices), tokens, program)
  total = sum(parts.values())
  return Compiled(**common, fits=True, problem="", peak_bytes=memory.peak_memory_in_bytes,
                  argument_bytes=memory.argument_size_in_bytes, temp_bytes=memory.temp_size_in_bytes,
                  collectives=collectives, compile_seconds=seconds, estimated_parts_seconds=parts,
                  estimated_step_seconds=total,
                  estimated_mfu=model_flops / (total * chip.peak_flops * len(devices)))


def estimate(text: str, config, model, chip, devices: int, tokens: int, program: str) -> tuple[dict, dict]:
  """({part: seconds} of one execution, its collectives)."""
  from policylong.aot.optimised_hlo import summarise
  from policylong.training.flops import attention_product_flops

  found = summarise(text)
  if program == "train":
    # A forward pass has two products; a backward of two kernels, which both begin with the scores, seven.
    length, products = config.synthesis.sequence_length, 2 + 7 + (2 if config.training.remat == "full" else 0)
  else:
    length, products = programs.longest_row(config, program), 2
  attention = products * model.num_layers * tokens / length * attention_product_flops(model, length)
  seconds = {
      "matmul": found.matmul_cycles / chip.clock_hz,
      "attention": attention / devices / (KERNEL_SHARE * chip.peak_flops),
      "other": found.other_cycles / chip.clock_hz,
      "collectives": sum(entry["bytes"] for entry in found.collectives.values()) / chip.link_bytes_per_second,
  }
  return seconds, found.collectives


def _advice(config, program: str, used: str, available: str) -> str:
  """By how much it does not fit, and what to change."""
  sentence = f"needs {used} of a device's {available}: "
  if program == "embed":
    return sentence + f"lower retrieval.embedder_batch = {config.retrieval.embedder_batch}"
  if program != "train":
    return sentence + (f"lower screening.tokens_per_batch = {config.screening.tokens_per_batch}, or screen on chips "
                       "that hold the whole model")
  training, mesh = config.training, config.mesh
  micro = training.batch_size // training.accumulation
  ways = []
  if training.remat != "full":
    ways.append(f"training.remat = 'full' (now {training.remat!r})")
  if micro > mesh.data * mesh.fsdp > 0:
    ways.append(f"a larger training.accumulation (now {training.accumulation}; {micro // (mesh.data * mesh.fsdp)} "
                "sequences a device)")
  ways.append(f"a larger mesh.context (now {mesh.context}) with as much less of mesh.fsdp, or a larger slice")
  return sentence + "try " + ", ".join(ways)
