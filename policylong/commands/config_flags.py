"""The flags of the commands that take a config file: --config=FILE.py[:argument] and --config.any.field=value."""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/demo.py", lock_config=True)


def config_name() -> str:
  """The config file and its argument, as they were given."""
  return config_flags.get_config_filename(flags.FLAGS["config"])


def parse(help_text: str, required: Sequence[str]) -> None:
  """Reads the command line; exits 0 after --help, and 2 with one sentence on bad usage, as argparse does.

  Args:
    help_text: what --help says above the flags.
    required: flags that must be given.
  """
  if any(argument in ("--help", "-h", "-help", "--helpfull") for argument in sys.argv[1:]):
    print(help_text + "\n" + flags.FLAGS.main_module_help())
    sys.exit(0)
  try:
    rest = flags.FLAGS(sys.argv)
    if len(rest) > 1:
      raise flags.Error(f"unexpected argument {rest[1]!r}")
    for name in required:
      if flags.FLAGS[name].value is None:
        raise flags.Error(f"--{name} is missing")
    file = config_name().partition(":")[0]
    if not pathlib.Path(file).exists():
      raise flags.Error(f"--config is {file}, and no such file exists")
    CONFIG.value.to_dict()  # a file that cannot be read is only told of when it is used
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    # A KeyError's str() is its repr, and some of these messages hold another's.
    sentence = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
    print(f"usage error: {sentence} (see --help)", file=sys.stderr)
    sys.exit(2)
