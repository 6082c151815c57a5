"""Compiles a config's programs for TPUs that are not there: do they fit, and about how fast are they?

  python -m policylong.aot --config=configs/qwen3b_128k.py --topology=v5p:4x4x4 \\
    [--program=train,score,verify,embed] [--json=F]

Needs the TPU compiler (`pip install libtpu`, or `make tpu-compiler`), and neither weights nor corpus: of a model whose
folder is not there the published shape is used. A topology is a chip and the shape of its slice, "2xv5p:4x4x4" two
such slices. Memory is what the compiler plans for the program and can be trusted; while those of screening run, the
training state stays on the devices beside them. Times are estimates: the compiler's own cycle counts for what it
compiles, KERNEL_SHARE of the chip's peak for the attention kernels, which it cannot see into, and the full bandwidth of
the links for collectives, none of them hidden behind computation. With document masking each sequence counts as one
document, since how long they will be is in no config.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import sys
import time

from absl import flags

from policylong import command_line
from policylong.errors import UserError, run_command
from policylong.padding import bucket

PROGRAMS = ("train", "score", "verify", "embed")
# Of the peak, for attention kernels: an assumption, not a measurement.
KERNEL_SHARE = 0.6

flags.adopt_module_key_flags(command_line)
_TOPOLOGY = flags.DEFINE_string("topology", None, "What to compile for, e.g. v5p:4x4x4.")
_PROGRAM = flags.DEFINE_list("program", ["train"], f"Which programs: {', '.join(PROGRAMS)}.")
_JSON = flags.DEFINE_string("json", None, "Also write what was found to this file (a list, if of several programs).")


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


def shape_of(config, program: str):
  """The shape of the model that a program runs.

  Raises:
    UserError: nothing is known of it.
  """
  from policylong.model.shapes import model_shape
  if program == "embed":
    if config.retrieval.embedder != "qwen3":
      raise UserError(f"--program is 'embed' and retrieval.embedder {config.retrieval.embedder!r}: it is compiled for "
                      "qwen3 only")
    return model_shape(config.retrieval.embedder_path, "retrieval.embedder_path")
  return model_shape(config.model.path).with_rope(theta=config.model.rope_theta, yarn_factor=config.model.yarn_factor)


def lowered(config, model, mesh, program: str):
  """(lowered program, tokens a step, model FLOPs a step)."""
  if program == "train":
    traced, tokens, model_flops = _traced_training(config, model, mesh)
  else:
    traced, tokens, model_flops = _traced_forward(config, model, mesh, program)
  return traced.lower(lowering_platforms=("tpu",)), tokens, model_flops


def _traced_training(config, model, mesh):
  import jax

  from policylong.training import flops
  from policylong.training.optimizer import make_optimizer
  from policylong.training.state import abstract_state
  from policylong.training.step import abstract_batch, make_train_step, token_sharding

  training, length = config.training, config.synthesis.sequence_length
  shape = (training.accumulation, training.batch_size // training.accumulation, length)
  batch = abstract_batch(training, shape, token_sharding(mesh, shape))
  state = abstract_state(model, make_optimizer(training, config.rounds, model), mesh)
  step = make_train_step(model, training, config.rounds, mesh)
  with jax.set_mesh(mesh):
    traced = step.trace(state, batch)
  return traced, math.prod(shape), math.prod(shape) * flops.train_flops_per_token(model, length)


def _traced_forward(config, model, mesh, program):
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  from policylong.mesh import AXES, on_each_device
  from policylong.model.qwen import abstract_params
  from policylong.retrieval.qwen_embedder import encode
  from policylong.screening.scorer import Programs
  from policylong.training.flops import score_flops

  def of_rows(*length):
    return jax.ShapeDtypeStruct((rows, *length), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(AXES)))

  screening, width = config.screening, _longest_row(config, program)
  if program == "embed":
    rows, read, dtype = mesh.size * config.retrieval.embedder_batch, 0, "bfloat16"
    function, arrays = on_each_device(functools.partial(encode, config=model), mesh, 2), (of_rows(width), of_rows())
  else:
    rows, dtype = mesh.size * max(1, screening.tokens_per_batch // width), config.model.scoring_dtype
    programs = Programs(model, mesh, jnp.dtype(dtype))
    if program == "score":
      function, arrays, read = programs.traces, (of_rows(width),), rows * width
    else:
      anchors = screening.max_anchors_per_root
      function, arrays, read = programs.entropies, (of_rows(width), of_rows(anchors)), rows * anchors
  whole = NamedSharding(mesh, PartitionSpec())
  params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
                        abstract_params(model, jnp.dtype(dtype)))
  with jax.set_mesh(mesh):
    traced = function.trace(params, *arrays)
  return traced, rows * width, score_flops(model, rows, width, read)


def compile_program(name: str, config, topology: str, program: str) -> Compiled:
  """Compiles one program of a config; what does not fit is a finding, not an error.

  Raises:
    UserError: the mesh does not match the topology, or does not divide what lies on it.
  """
  from policylong import config as config_lib
  from policylong import hardware
  from policylong.mesh import make_mesh

  devices = topology_devices(topology)
  chip = hardware.chip_of(devices[0])
  model = shape_of(config, program)
  # Scoring and embedding share nothing between devices.
  sizes = config.mesh if program == "train" else config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1)
  mesh = make_mesh(sizes, devices)
  program_text, tokens, model_flops = lowered(config, model, mesh, program)
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
  from policylong.optimised_hlo import summarise
  from policylong.training.flops import attention_product_flops

  found = summarise(text)
  if program == "train":
    # A forward pass has two products; a backward of two kernels, which both begin with the scores, seven.
    length, products = config.synthesis.sequence_length, 2 + 7 + (2 if config.training.remat == "full" else 0)
  else:
    length, products = _longest_row(config, program), 2
  attention = products * model.num_layers * tokens / length * attention_product_flops(model, length)
  seconds = {
      "matmul": found.matmul_cycles / chip.clock_hz,
      "attention": attention / devices / (KERNEL_SHARE * chip.peak_flops),
      "other": found.other_cycles / chip.clock_hz,
      "collectives": sum(entry["bytes"] for entry in found.collectives.values()) / chip.link_bytes_per_second,
  }
  return seconds, found.collectives


def _longest_row(config, program: str) -> int:
  """The padded length of the longest rows that a program without training gets."""
  if program == "embed":
    return config.retrieval.embedder_max_tokens
  screening = config.screening
  longest = screening.root_tokens + (screening.max_chunk_tokens if program == "verify" else 0)
  return bucket(longest, screening.bucket_multiple)


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


def describe(found: Compiled) -> str:
  """What a person reads."""
  def gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
  title = f"{found.program} of {found.config} on {found.topology} ({found.devices} devices)"
  if not found.fits:
    return f"{title}: does not fit, {found.problem}"
  moved = ", ".join(f"{kind} {entry['count']} x, {gib(entry['bytes'])}" for kind, entry in found.collectives.items())
  parts = ", ".join(f"{part} {seconds:.3g} s" for part, seconds in found.estimated_parts_seconds.items())
  step = found.estimated_step_seconds
  return "\n".join([
      f"{title}: fits",
      f"  memory a device: peak {gib(found.peak_bytes)} of {gib(found.hbm_bytes)}; arguments "
      f"{gib(found.argument_bytes)} + temporaries {gib(found.temp_bytes)} = "
      f"{gib(found.argument_bytes + found.temp_bytes)}",
      f"  model FLOPs a step: {found.model_flops:.3g} ({found.tokens:,} tokens; causal attention counted as half)",
      f"  collectives a step and device: {moved or 'none'}",
      f"  estimate: {step:.3g} s a step ({parts}), {found.tokens / step / found.devices:,.0f} tokens/s a device, "
      f"{found.estimated_mfu:.0%} of the peak",
      f"  compiled in {found.compile_seconds:.0f} s"])


def main() -> None:
  """The command."""
  prepare_environment()
  from policylong import config as config_lib

  config = config_lib.parse(command_line.CONFIG.value)
  for program in _PROGRAM.value:
    if program not in PROGRAMS:
      raise UserError(f"--program is {program!r}; it must be one of {', '.join(PROGRAMS)}")
  if not _PROGRAM.value:
    raise UserError(f"--program is empty: name one or more of {', '.join(PROGRAMS)}")
  if _JSON.value:
    pathlib.Path(_JSON.value).parent.mkdir(parents=True, exist_ok=True)
  found = []
  for program in _PROGRAM.value:
    found.append(compile_program(command_line.config_name(), config, _TOPOLOGY.value, program))
    print(describe(found[-1]), flush=True)
  if _JSON.value:
    values = [dataclasses.asdict(one) for one in found]
    pathlib.Path(_JSON.value).write_text(json.dumps(values if len(values) > 1 else values[0], indent=2) + "\n")


if __name__ == "__main__":
  command_line.parse(__doc__, required=("config", "topology"))
  run_command(main)
