"""Runs or resumes PolicyLong: python -m policylong.main --config=configs/demo.py --workdir=runs/demo.

Any field of the config can be overridden: --config.screening.alpha=1.5
On several hosts, start the same command on each, with one --workdir that all of them can write; a TPU pod needs no
more, elsewhere add --coordinator_address=HOST:PORT (of process 0) --num_processes=P --process_id=0, 1, ...
"""

import logging
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from policylong import config as config_lib
from policylong.errors import UserError, run_command

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/demo.py", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; the same folder resumes it.")
_HOSTS = (flags.DEFINE_string("coordinator_address", None, "host:port of process 0, for several processes."),
          flags.DEFINE_integer("num_processes", None, "How many processes there are."),
          flags.DEFINE_integer("process_id", None, "The number of this one, from 0."))


def _parse_flags() -> None:
  """Exits 2 with one sentence on bad usage, as argparse does."""
  try:
    rest = flags.FLAGS(sys.argv)
    if len(rest) > 1:
      raise flags.Error(f"unexpected argument {rest[1]!r}")
    for flag in (_CONFIG, _WORKDIR):
      if flag.value is None:
        raise flags.Error(f"--{flag.name} is missing")
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    if not pathlib.Path(file).exists():
      raise flags.Error(f"--config is {file}, and no such file exists")
    _CONFIG.value.to_dict()  # a file that cannot be read is only told of when it is used
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    # A KeyError's str() is its repr, and some of these messages hold another's.
    sentence = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
    print(f"usage error: {sentence} (see --help)", file=sys.stderr)
    sys.exit(2)


def main() -> None:
  """The command."""
  logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
  logging.getLogger("policylong").setLevel(logging.INFO)
  config = config_lib.parse(_CONFIG.value)
  from policylong import hosts, loop  # after the flags: --help and mistakes answer at once

  if not _WORKDIR.value:
    raise UserError("--workdir is empty: name a folder")
  with hosts.joined(*(flag.value for flag in _HOSTS), config.mesh.simulated_devices):
    page = loop.run(config, _WORKDIR.value)
    if hosts.is_first():
      print(f"workdir: {_WORKDIR.value}\npage: {page}")


if __name__ == "__main__":
  if any(argument in ("--help", "-h", "-help", "--helpfull") for argument in sys.argv[1:]):
    print(__doc__ + "\n" + flags.FLAGS.main_module_help())
    sys.exit(0)
  _parse_flags()
  run_command(main)
