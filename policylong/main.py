"""Runs or resumes PolicyLong: python -m policylong.main --config=configs/demo.py --workdir=runs/demo.

Any field of the config can be overridden: --config.screening.alpha=1.5
On several hosts, start the same command on each, with one --workdir that all of them can write; a TPU pod needs no
more, elsewhere add --coordinator_address=HOST:PORT (of process 0) --num_processes=P --process_id=0, 1, ...
"""

import logging

from absl import flags

from policylong import command_line
from policylong import config as config_lib
from policylong.errors import UserError, run_command

flags.adopt_module_key_flags(command_line)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; the same folder resumes it.")
_HOSTS = (flags.DEFINE_string("coordinator_address", None, "host:port of process 0, for several processes."),
          flags.DEFINE_integer("num_processes", None, "How many processes there are."),
          flags.DEFINE_integer("process_id", None, "The number of this one, from 0."))


def main() -> None:
  """The command."""
  logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
  logging.getLogger("policylong").setLevel(logging.INFO)
  config = config_lib.parse(command_line.CONFIG.value)
  from policylong import hosts, loop  # after the flags: --help and mistakes answer at once

  if not _WORKDIR.value:
    raise UserError("--workdir is empty: name a folder")
  with hosts.joined(*(flag.value for flag in _HOSTS), config.mesh.simulated_devices):
    page = loop.run(config, _WORKDIR.value)
    if hosts.is_first():
      print(f"workdir: {_WORKDIR.value}\npage: {page}")


if __name__ == "__main__":
  command_line.parse(__doc__, required=("config", "workdir"))
  run_command(main)
