"""Files of a user's that are programs, as configs and grids are: what went wrong in one, and where."""

import traceback
import types
from collections.abc import Callable


def fault(error: BaseException | None, in_file: Callable[[types.FrameType], bool]) -> str:
  """What went wrong in the file and where: "mine.py, line 4: name 'x' is not defined"; "": nothing did.

  Args:
    error: as it came, whatever it is, and what it was raised from.
    in_file: whether a frame is the file's.
  """
  sentence = ""
  while error:  # the first that was raised is the last of the chain
    if isinstance(error, SyntaxError) and error.filename:
      sentence = f"{error.filename}{f', line {error.lineno}' if error.lineno else ''}: {error.msg}"
    for frame, line in traceback.walk_tb(error.__traceback__):
      if in_file(frame):
        sentence = f"{frame.f_code.co_filename}, line {line}: {reason(error)}"
    error = error.__cause__ or error.__context__
  return sentence


def reason(error: BaseException) -> str:
  """What an exception says of itself, with its kind where its text alone says little."""
  text = " ".join(str(error).split())[:500]
  if isinstance(error, SystemExit):
    return f"it ends the command (SystemExit{f': {text}' if text else ''})"
  if isinstance(error, SyntaxError | NameError | ImportError):
    return text or type(error).__name__
  return f"{type(error).__name__}: {text}" if text else type(error).__name__
