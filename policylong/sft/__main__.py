"""Fine-tunes a model on conversations: python -m policylong.sft --config=configs/sft.py --workdir=runs/sft.

Any field of the config can be overridden: --config.data.path=chats.jsonl --config.model.path=runs/demo
The result is an HF directory after: python -m policylong.convert orbax-to-hf --model=runs/sft --output=DIR
On several hosts, start the same command on each, as policylong.main says.
"""

from absl import flags

from policylong import config as config_lib
from policylong import paths
from policylong.commands import config_flags, run
from policylong.errors import UserError, run_command

flags.adopt_module_key_flags(run)
_BASE_MODEL = flags.DEFINE_string(
    "base_model", None, "Where the model that the run in config.model.path started from is now, if it has moved since.")


def main() -> None:
  """The command."""
  config, base_model = config_flags.config(config_lib.FineTuning), _BASE_MODEL.value
  if base_model == "":
    raise UserError("--base_model is empty: name a path")
  with run.started(config.mesh) as workdir:
    from policylong.devices import hosts  # after the flags: --help and mistakes answer at once
    from policylong.sft import tuning

    final = tuning.run(config, workdir, base_model and paths.expand(base_model))
    if hosts.is_first():
      if loss := final["held_out"]:
        print(f"held-out answers ({loss['tokens']:,} tokens): {loss['before']:.4f} nats a token before, "
              f"{loss['after']:.4f} after {final['step']} steps")
      print(f"workdir: {workdir}")


if __name__ == "__main__":
  config_flags.parse(__doc__, required=("config", "workdir"))
  run_command(main)
