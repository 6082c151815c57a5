"""One sentence for a person's mistake, and the exit codes of every command.

A `UserError` is about what the user gave us: a file, a field, a record. Its text is one sentence that
names the thing, the value found and the value wanted. Everything else that is raised is our own fault
and keeps its stack trace.
"""

import errno
import sys
from collections.abc import Callable


class UserError(Exception):
  """Bad input; `str(error)` is one sentence that says what was found and what is wanted."""


def run_command(main: Callable[[], None]) -> None:
  """Runs a command line's `main`; exits 1 with one sentence on bad input or a full disk.

  Bad usage (an unknown flag) exits 2: argparse does that by itself.
  """
  try:
    main()
  except UserError as error:
    sys.exit(_say(str(error)))
  except KeyboardInterrupt:
    sys.exit(_say("interrupted; start the same command again to go on", code=130))
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    sys.exit(_say(f"the disk is full (writing {error.filename or 'an output file'}): "
                  "free some space and start the same command again"))


def _say(sentence: str, code: int = 1) -> int:
  print(f"error: {sentence}", file=sys.stderr, flush=True)
  return code
