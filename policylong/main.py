"""Runs or resumes PolicyLong: python -m policylong.main --config=configs/demo.py --workdir=runs/demo.

Any field of the config can be overridden: --config.screening.alpha=1.5; --print_config prints what results, and exits.
On several hosts, start the same command on each, with one --workdir that all of them can write; a TPU pod needs no
more, elsewhere add --coordinator_address=HOST:PORT (of process 0) --num_processes=P --process_id=0, 1, ...
"""

from absl import flags

from policylong.commands import config_flags, run
from policylong.errors import run_command

flags.adopt_module_key_flags(run)


def main() -> None:
  """The command."""
  config = config_flags.config()
  with run.started(config.mesh) as workdir:
    from policylong import loop  # after the flags: --help and mistakes answer at once
    from policylong.devices import hosts

    page = loop.run(config, workdir)
    if hosts.is_first():
      print(f"workdir: {workdir}\npage: {page}")


if __name__ == "__main__":
  config_flags.parse(__doc__, required=("config", "workdir"))
  run_command(main)
