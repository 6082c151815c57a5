"""What the operating system says, in one sentence: which path, what it said, what to do.

It says it in many dialects. Python raises an OSError with its number. TensorStore (below Orbax), Arrow, Riegeli (below
array_record), Rust (tokenizers, safetensors) and XLA raise errors of their own kinds, with the number or the words
inside the text. Everything that reaches the end of a command comes here, so that no place has to think of it.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

# What to do about it, after "<path>: <what the system says>".
_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the quota of this user or folder is used up: free some space, or have it raised",
    errno.EACCES: "name a path that this user may read and write, or change its permissions",
    errno.EPERM: "name a path that this user may read and write, or change its permissions",
    errno.EROFS: "it can only be read there: name a path where it can be written",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.EISDIR: "it is a folder, and a file is wanted there: move it, or name another path",
    errno.ENOTDIR: "something on the way to it is a file, and a folder is wanted there: move it, or name another path",
    errno.EEXIST: "it is there already: move it, or name another path",
    errno.ENOTEMPTY: "something lies in it that another process has just put there: start one at a time",
    errno.ENOENT: "it is not there, or was taken away meanwhile: put it back, or name another path",
    errno.EMFILE: "this process has as many files open as it may: raise the limit (ulimit -n)",
    errno.ENFILE: "the machine has as many files open as it may: end something else",
    errno.EIO: "the disk does not read or write: look after it, or name a path on another one",
    errno.ESTALE: "what was open there was taken away on the server: mount it again",
    errno.ELOOP: "its links lead round in a circle: name another path",
    errno.ENODEV: "it is no place for files: name another path",
    errno.ENXIO: "it is no file: name another path",
    errno.EFBIG: "it may not become so large there: raise the limit (ulimit -f), or name a path elsewhere",
    errno.EBUSY: "another process holds it: wait for that one, or end it",
    errno.ETXTBSY: "another process holds it: wait for that one, or end it",
    errno.EINVAL: "it is no path that the system takes: name another one",
    errno.EPIPE: "who read the output has ended",
    errno.ENOMEM: "the host's memory is full: give it more, or ask for less at once",
    errno.ETIMEDOUT: "the storage does not answer: try again",
    errno.ECONNREFUSED: "the other side does not answer: try again",
}
_NUMBER = re.compile(r"os_error_code='(\d+)'|\[?[Ee]rrno[: =]+(\d+)|\(os error (\d+)\)")
_WORDS = {os.strerror(number): number for number in _ADVICE if number not in (errno.EINVAL, errno.EEXIST, errno.ENOENT)}
_PATH = re.compile(r"""['"`“]?((?:/|\w+://)[^\s'"`”:;,\]]+)""")


def sentence(error: BaseException) -> str:
  """What the system said and what to do about it; "" where the error is none of the system's.

  Args:
    error: as it was raised, and what it was raised from.
  """
  if isinstance(error, MemoryError):
    return f"the host's memory is full{_first_line(error, ' (', ')')}: give it more, or ask for less at once"
  if "RESOURCE_EXHAUSTED" in str(error) and "ut of memory" in str(error):
    return (f"the devices' memory is full ({_first_line(error)}): take more devices (mesh), training.remat = 'full', "
            "a larger training.accumulation, or a smaller batch")
  if isinstance(error, RecursionError) and _where(error).endswith("json/decoder.py"):
    return "a JSON file has more brackets in brackets than can be read: repair it, or take it out"
  if isinstance(error, ValueError) and "embedded null" in str(error):
    return "a path has a character with the number 0 in it, which no path can have: name another one"
  seen: BaseException | None = error
  while seen is not None:
    if number := _number(seen):
      return _worded(number, _path(seen), seen)
    seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
  if isinstance(error, OSError):  # without a number: a library's own, of a file that it does not understand
    return f"{_first_line(error) or type(error).__name__}: give a whole file that can be read, or name another one"
  return ""


@contextlib.contextmanager
def about(path: str | os.PathLike) -> Iterator[None]:
  """Inside, what the system says of no path in particular (it ran out of space in a write) is said of this one."""
  try:
    yield
  except OSError as error:
    if error.errno is not None and error.filename is None:
      error.filename = os.fspath(path)
    raise


def _number(error: BaseException) -> int:
  """The system's number of an error, 0 where it has none."""
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno
  if isinstance(error, KeyError | AttributeError | TypeError | AssertionError | BaseExceptionGroup):
    return 0  # Python's own, of a mistake in the code, whatever the text
  text = str(error)
  if found := _NUMBER.search(text):
    return int(next(filter(None, found.groups())))
  return next((number for words, number in _WORDS.items() if words.lower() in text.lower()), 0)


def _where(error: BaseException) -> str:
  """The file of Python's in which it was raised."""
  trace = error.__traceback__
  while trace is not None and trace.tb_next is not None:
    trace = trace.tb_next
  return trace.tb_frame.f_code.co_filename if trace else ""


def _path(error: BaseException) -> str:
  """The path that an error is about, as far as it says."""
  if isinstance(error, OSError) and error.filename is not None:
    name = error.filename if not isinstance(error.filename, bytes) else os.fsdecode(error.filename)
    return str(name)
  found = _PATH.search(str(error))
  return found[1] if found else ""


def _worded(number: int, path: str, error: BaseException) -> str:
  said = os.strerror(number) if number in errno.errorcode else _first_line(error)
  advice = _ADVICE.get(number, "see what is wrong there, or name another path")
  again = ", and start the same command again" if number not in (errno.EPIPE, errno.ENAMETOOLONG, errno.EINVAL) else ""
  return f"{_shortened(path) or 'a file'} ({said[:1].lower() + said[1:]}): {advice}{again}"


def _shortened(path: str) -> str:
  return path if len(path) <= 300 else f"{path[:150]}...{path[-100:]} ({len(path)} characters)"


def _first_line(error: BaseException, before: str = "", after: str = "") -> str:
  line = (str(error).strip().splitlines() or [""])[0][:300]
  return f"{before}{line}{after}" if line else ""
