"""One sentence for a person's mistake or for what is not installed as tested, and the exit codes of every command.

A `UserError` is about what the user gave us: a file, a field, a record. Its text is one sentence that
names the thing, the value found and the value wanted. What the operating system says is put in one sentence at the
end of a command (`oserrors`). Everything else that is raised is our own fault and keeps its stack trace.
"""

import importlib
import importlib.metadata
import importlib.util
import signal
import sys
import types
from collections.abc import Callable, Sequence
from typing import NoReturn

from policylong import ending, oserrors

# As in setup.py, which an environment that had its own JAX before need not follow.
OLDEST_JAX = (0, 12)


class UserError(Exception):
  """Bad input; `str(error)` is one sentence that says what was found and what is wanted."""


class Damaged(UserError):
  """A file does not hold what was written to it; who can make it again catches this, and a person reads it."""

  def __init__(self, path, reason: str, remedy: str = "put a whole copy in its place, or begin again elsewhere"):
    super().__init__(f"{path} cannot be read, as it is damaged ({reason}): {remedy}")
    self.path, self.reason = path, reason


def optional_import(name: str, extra: str, who: str) -> types.ModuleType:
  """The module `name` of a package that a plain install leaves out.

  Args:
    name: of the module, e.g. "tensorflow_datasets".
    extra: the extra of setup.py that brings it, e.g. "tfds".
    who: what needs it, as a sentence begins: "source 'web', of kind tfds,".

  Raises:
    UserError: it, or something that it imports itself, is not installed.
  """
  check_installed([name], extra, who)
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    raise _missing([error.name or name], extra, who) from error


def check_installed(names: Sequence[str], extra: str, who: str) -> None:
  """As `optional_import`, for several top-level modules, and without importing them.

  Raises:
    UserError: at least one is not installed.
  """
  if missing := [name for name in names if importlib.util.find_spec(name) is None]:
    raise _missing(missing, extra, who)


def _missing(names: Sequence[str], extra: str, who: str) -> UserError:
  return UserError(f"{who} needs {', '.join(names)}, which a plain install leaves out: pip install -e '.[{extra}]' in "
                   "the project's folder")


def untested_jax() -> str | None:
  """One sentence where the installed JAX is older than the oldest that is tested; nothing is imported for it."""
  try:
    version = importlib.metadata.version("jax")
  except importlib.metadata.PackageNotFoundError:
    return None  # its import will say so
  if tuple(int(number) for number in version.split(".")[:2]) >= OLDEST_JAX:
    return None
  oldest = ".".join(map(str, OLDEST_JAX))
  return (f"JAX {version} is installed, and {oldest} is the oldest that the tests pass with: on a CPU the compiler of "
          "0.11.2 aborts in attention, on a GPU only what docs/gpu.md lists was run with it")


def run_command(main: Callable[[], None]) -> None:
  """Runs a command line's `main`; exits 1 with one sentence on bad input or on what the operating system says.

  Bad usage (an unknown flag) exits 2: argparse does that by itself. SIGTERM exits 143 and Ctrl-C 130, as `ending` says,
  which also bounds how long the end takes. Says first if the JAX here is older than tested.
  """
  ending.install()
  if untested := untested_jax():
    print(f"note: {untested}", file=sys.stderr, flush=True)
  try:
    main()
  except UserError as error:
    _leave(str(error))
  except (KeyboardInterrupt, ending.Terminated) as error:
    number = signal.SIGTERM if isinstance(error, ending.Terminated) else signal.SIGINT
    _leave(ending.sentence(number), ending.CODES[number])
  except SystemExit as error:
    ending.ends_with(error.code if isinstance(error.code, int) else int(error.code is not None))
    raise
  except Exception as error:
    if sentence := oserrors.sentence(error):
      _leave(sentence)
    raise
  ending.ends_with(0)


def _leave(sentence: str, code: int = 1) -> NoReturn:
  """Says why, and ends the command."""
  ending.say(sentence)
  ending.ends_with(code)
  sys.exit(code)
