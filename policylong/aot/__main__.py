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
import json

from absl import flags

from policylong import paths
from policylong.aot import compiler
from policylong.aot.programs import PROGRAMS
from policylong.commands import config_flags
from policylong.errors import UserError, run_command
from policylong.storage.workdir import check_output

flags.adopt_module_key_flags(config_flags)
_TOPOLOGY = flags.DEFINE_string("topology", None, "What to compile for, e.g. v5p:4x4x4.")
_PROGRAM = flags.DEFINE_list("program", ["train"], f"Which programs: {', '.join(PROGRAMS)}.")
_JSON = flags.DEFINE_string("json", None, "Also write what was found to this file (a list, if of several programs).")


def describe(found: compiler.Compiled) -> str:
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
  config = config_flags.config()
  compiler.prepare_environment()
  for program in _PROGRAM.value:
    if program not in PROGRAMS:
      raise UserError(f"--program is {program!r}; it must be one of {', '.join(PROGRAMS)}")
  if not _PROGRAM.value:
    raise UserError(f"--program is empty: name one or more of {', '.join(PROGRAMS)}")
  output = _JSON.value and paths.local(_JSON.value)
  if output:
    check_output(output, "--json")
  found = []
  for program in _PROGRAM.value:
    found.append(compiler.compile_program(config_flags.config_name(), config, _TOPOLOGY.value, program))
    print(describe(found[-1]), flush=True)
  if output:
    values = [dataclasses.asdict(one) for one in found]
    output.write_text(json.dumps(values if len(values) > 1 else values[0], indent=2) + "\n")


if __name__ == "__main__":
  config_flags.parse(__doc__, required=("config", "topology"))
  run_command(main)
