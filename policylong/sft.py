"""Fine-tunes a model on conversations: python -m policylong.sft --config=configs/sft.py --workdir=runs/sft.

Any field of the config can be overridden: --config.data.path=chats.jsonl --config.model.path=runs/demo
The result is an HF directory after: python -m policylong.convert orbax-to-hf --model=runs/sft --output=DIR
On several hosts, start the same command on each, as policylong.main says.
"""

from absl import flags

from policylong import command_line, run_command_line
from policylong import config as config_lib
from policylong.errors import run_command

flags.adopt_module_key_flags(run_command_line)


def main() -> None:
  """The command."""
  config = config_lib.parse(command_line.CONFIG.value, config_lib.FineTuning)
  with run_command_line.started(config.mesh) as workdir:
    from policylong import hosts, tuning  # after the flags: --help and mistakes answer at once

    final = tuning.run(config, workdir)
    if hosts.is_first():
      if loss := final["held_out"]:
        print(f"held-out answers ({loss['tokens']:,} tokens): {loss['before']:.4f} nats a token before, "
              f"{loss['after']:.4f} after {final['step']} steps")
      print(f"workdir: {workdir}")


if __name__ == "__main__":
  command_line.parse(__doc__, required=("config", "workdir"))
  run_command(main)
