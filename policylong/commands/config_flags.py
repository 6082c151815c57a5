"""The flags of the commands that take a config: --config=FILE.py[:argument], --config.a.field=value, --print_config."""

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import overload

from absl import flags
from ml_collections import config_flags

from policylong import config as config_lib
from policylong import paths
from policylong.commands import printed_config, user_code

_MODULE = "config_config"  # the name under which ml_collections loads the file
_MISTAKES = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError)  # what it and absl raise of them

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/demo.py", lock_config=True)
_PRINT = flags.DEFINE_bool("print_config", False, "Prints every field with what it means, as a config file, and exits.")


@overload
def config() -> config_lib.Config: ...
@overload
def config[Kind](kind: type[Kind]) -> Kind: ...
def config(kind=config_lib.Config):
  """The config that was given, validated. With --print_config it is printed, and the command ends.

  Raises:
    ConfigError: a field is missing, unknown, of the wrong type, or contradicts another.
  """
  validated = config_lib.parse(CONFIG.value, kind)
  if _PRINT.value:
    print(printed_config.text(CONFIG.value), end="")
    sys.exit(0)
  return validated


def config_name() -> str:
  """The config file and its argument, as they were given."""
  return config_flags.get_config_filename(flags.FLAGS["config"])


def parse(help_text: str, required: Sequence[str], passes: bool = False) -> list[str]:
  """Reads the command line; exits 0 after --help, and 2 with one sentence on bad usage, as argparse does.

  Args:
    help_text: what --help says above the flags.
    required: flags that must be given; with --print_config it is --config only.
    passes: whether flags that are not known are somebody else's.

  Returns:
    These flags.
  """
  if any(argument in ("--help", "-h", "-help", "--helpfull") for argument in sys.argv[1:]):
    print(help_text + "\n" + flags.FLAGS.main_module_help())
    sys.exit(0)
  try:
    arguments = _with_home(sys.argv)
    _check_file(arguments)
    rest = flags.FLAGS(arguments, known_only=passes)[1:]
    for argument in rest:
      if not passes or not argument.startswith("--") or argument.startswith("--config"):
        raise flags.Error(f"unexpected argument {argument!r}")
    for name in ("config",) if _PRINT.value else required:
      if flags.FLAGS[name].value is None and not (name == "config" and flags.FLAGS[name].present):
        raise flags.Error(f"--{name} is missing")
    file = config_name().partition(":")[0]
    if not pathlib.Path(file).is_file():
      raise flags.Error(f"--config is {file}, and no such file exists")
    if not hasattr(CONFIG.value, "to_dict"):
      raise flags.Error(f"get_config() of {file} gives {CONFIG.value!r}; it must return a ConfigDict")
    CONFIG.value.to_dict()  # a file that cannot be read is only told of when it is used
  except (Exception, SystemExit) as error:  # a config file is a program, and may raise anything
    sentence = user_code.fault(error, lambda frame: frame.f_globals.get("__name__") == _MODULE)
    sentence = sentence or _of_get_config(error)
    if not sentence and not isinstance(error, _MISTAKES):
      sentence = f"{_file()} is no config ({user_code.reason(error)})"
    # A KeyError's str() is its repr, and some of these messages hold another's.
    sentence = " ".join((sentence or str(error)).replace("\\n", " ").replace("\\'", "'").split())
    print(f"usage error: {sentence} (see --help)", file=sys.stderr)
    sys.exit(2)
  return rest


def _check_file(arguments: Sequence[str]) -> None:
  """Refuses a config file that is no file before the flags read it: a FIFO is waited for, a device may never end."""
  for before, argument in zip(["", *arguments], arguments):
    flag, equals, value = argument.partition("=")
    if not equals and before in ("--config", "-config"):
      flag, value = before, argument
    path = pathlib.Path(value.partition(":")[0])
    if flag in ("--config", "-config") and os.path.exists(path) and not path.is_file():
      raise flags.Error(f"--config is {path}, which is {'a folder' if path.is_dir() else 'no regular file'}; a config "
                        "file is wanted")


def _file() -> str:
  """The config file, as far as its flag could be read."""
  try:
    return config_name()
  except Exception:
    return "--config"


def _of_get_config(error: BaseException | None) -> str:
  """Why the file's function could not be called, where that is what went wrong."""
  sentence = ""
  while error:
    if isinstance(error, AttributeError | TypeError) and not sentence and "get_config" in str(error):
      sentence = f"the config file's get_config(): {str(error).strip().splitlines()[-1]}"
    error = error.__cause__ or error.__context__
  return sentence


def _with_home(arguments: Sequence[str]) -> list[str]:
  """The command line with the home folder for the ~ of --config, whose file is read with the flags."""
  found = list(arguments)
  for i, argument in enumerate(arguments):
    flag, equals, value = argument.partition("=")
    if equals and flag in ("--config", "-config"):
      found[i] = f"{flag}={paths.expand(value)}"
    elif i and arguments[i - 1] in ("--config", "-config"):
      found[i] = paths.expand(argument)
  return found
