"""Where training ends when a signal asks a process to leave (`ending`): after the step that is under way, everywhere.

With one process that is the next step to end. Several processes must end after the same one, and none knows how far
the others are: each may have begun the next step already, and then waits in it for those that have not. So a thread of
each one publishes the last step that its process has begun, and from then on lets it begin no other; the largest of
these is the last step of all. The main threads are never waited for, so that nobody waits in a circle.
"""

import contextlib
import itertools
import signal
import threading

from policylong import ending
from policylong.devices import hosts

# Seconds between two looks for a notice of another process.
_LOOK = 0.5
# So long is another process waited for that has not said how far it is (seconds).
_PATIENCE = 60
# Numbers the spans of steps of a run: all processes make them in the same order.
_numbers = itertools.count()


class Steps:
  """A span of training steps. A context manager, in the main thread; a request to leave is raised when it ends.

    with Steps(start) as steps:
      for step in range(start + 1, last + 1):
        if not steps.may_begin(step):
          break
        ...
      ...save...
  """

  def __init__(self, start: int):
    """The steps after `start`."""
    self._begun = start
    self._last: int | None = None  # of all processes, once it is known
    self._asked = False
    self._lock = threading.Lock()
    self._known = threading.Event()
    self._left = threading.Event()
    self._key = f"policylong/steps/{next(_numbers)}"
    self._deferred = ending.deferred()
    self._thread = threading.Thread(target=self._listen, name="steps", daemon=True) if hosts.count() > 1 else None

  def may_begin(self, step: int) -> bool:
    """Whether the step is one of those that are still made: the same answer in all processes."""
    if self._thread is None:
      return ending.requested() is None
    with self._lock:
      if not self._asked:
        self._begun = step
        return True
    self._known.wait()
    return self._last is None or step <= self._last

  def __enter__(self) -> "Steps":
    self._deferred.__enter__()
    if self._thread is not None:
      self._thread.start()
    return self

  def __exit__(self, *raised) -> None:
    self._left.set()
    if self._thread is not None:
      self._thread.join(_PATIENCE)
    self._deferred.__exit__(*raised)

  def _listen(self) -> None:
    """Waits for a request, to this process or another, or for the span's end; and says how far this process is."""
    client, asked = hosts.client(), self._wait_for_notice()
    with self._lock:
      self._asked, mine = asked, self._begun
    try:
      client.key_value_set(f"{self._key}/{hosts.index()}", str(mine))  # at the end too: another may ask for it just now
      if asked:
        self._last = max(int(client.blocking_key_value_get(f"{self._key}/{i}", 1000 * _PATIENCE))
                         for i in range(hosts.count()))
    finally:
      self._known.set()

  def _wait_for_notice(self) -> bool:
    notice = f"{self._key}/notice"
    while not self._left.wait(_LOOK):
      if (number := ending.requested()) is not None:
        hosts.client().key_value_set(notice, str(int(number)), allow_overwrite=True)
        return True
      with contextlib.suppress(Exception):  # of JAX's own kind: nobody has said anything
        ending.request(signal.Signals(int(hosts.client().key_value_try_get(notice))))
        return True
    return False
