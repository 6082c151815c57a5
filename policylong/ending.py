"""How a command ends: told by a signal, or when its work is done or has failed, and always within a bound.

SIGTERM (a scheduler takes the machine back) and SIGINT (Ctrl-C) are a request to leave. As a run may be killed at any
instant, most of the work is simply left: `Terminated` or `KeyboardInterrupt` is raised in the main thread, everything
that is open is closed on the way out, and the exit code is 128 + the signal's number, 143 or 130. Work that is better
finished first stands in `deferred`: it asks `requested` at its next good place. A main thread that cannot be reached,
because it is in native code or waits for another process, is not waited for longer than `GRACE`.

Whatever a library leaves running, the process is gone `LIMIT` seconds after its main thread.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# Seconds between the request and the end where nothing is deferred: schedulers kill after 30 and more.
GRACE = 15.0
# Seconds that threads and what libraries do at the end may take.
LIMIT = 30.0
# A second Ctrl-C ends the process at once; one that comes this soon (seconds) is the same, sent to a group and to its
# processes.
_AGAIN = 1.0

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
# The bars (`storage.progress`) that are open in this process; the innermost is the last one.
bars: list[Any] = []


class Terminated(BaseException):
  """SIGTERM was received. No `Exception`: nothing but the end of the command deals with it."""


class _State:
  """Of this process; signals have no other place."""
  requested: signal.Signals | None = None
  when = 0.0
  deferred = 0
  code = 1  # what the process ends with where its end takes too long
  installed = False
  callbacks: list[Callable[[signal.Signals], None]] = []  # noqa: RUF012 (there is one of it)


def install() -> None:
  """Makes signals requests, and bounds the process's end. The main thread calls it; a second time does nothing."""
  if _State.installed or threading.current_thread() is not threading.main_thread():
    return
  _State.installed = True
  threading.Thread(target=_bound_the_end, name="end", daemon=True).start()
  # The handler is a Python function and waits for the main thread; the thread behind the pipe does not.
  read, write = os.pipe()
  os.set_blocking(write, False)
  signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  threading.Thread(target=_watch, args=(read,), name="signals", daemon=True).start()
  for number in CODES:
    if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of some shells
      signal.signal(number, _handle)


def requested() -> signal.Signals | None:
  """The signal that asked this process to leave, or None."""
  return _State.requested


def request(number: signal.Signals) -> None:
  """Asks this process to leave as if it had received the signal, for another process that did; while it is deferred."""
  if _State.requested is None:
    _State.requested, _State.when = number, time.monotonic()


def ends_with(code: int) -> None:
  """Notes what the process is about to end with."""
  _State.code = code


def say(sentence: str) -> None:
  """Says in one line why the process ends; a bar that is still being drawn keeps its own line."""
  drawn = any(not bar.disable for bar in bars)
  with contextlib.suppress(OSError):  # nobody reads it
    print(f"{'\n' * drawn}error: {' '.join(sentence.split())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Inside, a request waits until it is asked for, or the block ends. In the main thread."""
  _raise_if_requested()
  _State.deferred += 1
  try:
    yield
  finally:
    _State.deferred -= 1
  _raise_if_requested()


@contextlib.contextmanager
def telling(callback: Callable[[signal.Signals], None]) -> Iterator[None]:
  """Inside, `callback` is called once, in a thread of its own, as soon as a signal asks to leave."""
  _State.callbacks.append(callback)
  try:
    yield
  finally:
    _State.callbacks.remove(callback)


def is_deferred() -> bool:
  """Whether a request waits just now."""
  return bool(_State.deferred)


def exception_of(number: signal.Signals) -> BaseException:
  """What is raised for a signal."""
  return KeyboardInterrupt() if number == signal.SIGINT else Terminated()


def _raise_if_requested() -> None:
  if _State.requested and not _State.deferred:
    raise exception_of(_State.requested)


def _handle(number: int, frame) -> None:
  del frame
  if _State.requested is not None:
    if number == signal.SIGINT and time.monotonic() - _State.when > _AGAIN:
      os._exit(CODES[signal.SIGINT])
    return
  _State.requested, _State.when = signal.Signals(number), time.monotonic()
  _raise_if_requested()


def _watch(pipe: int) -> None:
  """Waits for the first request, tells of it, and ends the process if nobody else does."""
  while (number := os.read(pipe, 1)[0]) not in CODES:
    pass
  number = signal.Signals(number)
  for callback in list(_State.callbacks):
    with contextlib.suppress(Exception):  # the others cannot be reached; this one leaves all the same
      callback(number)
  left = GRACE
  while left > 0:
    time.sleep(0.1)
    left = GRACE if _State.deferred else left - 0.1
  say(sentence(number))
  os._exit(CODES[number])


def sentence(number: signal.Signals) -> str:
  """What is said at the end."""
  why = "interrupted" if number == signal.SIGINT else "told to end (SIGTERM)"
  return f"{why}; start the same command again to go on"


def _bound_the_end() -> None:
  threading.main_thread().join()
  signal.alarm(int(2 * LIMIT))  # for what hangs when no thread of Python runs any more
  time.sleep(LIMIT)
  os._exit(_State.code)
