"""Threads in the place of a run's processes: what a module asks of `devices.hosts`, without devices."""

import contextlib
import threading
from collections.abc import Callable

import numpy as np


class _Processes(threading.local):
  """The collectives of `devices.hosts` that files need, for so many threads."""

  def __init__(self, number: int, waiting: threading.Barrier, said: dict):
    self._number, self._waiting, self._said = number, waiting, said
    self.me = 0

  def index(self):
    return self.me

  def count(self):
    return self._number

  def client(self):
    return self if self._number > 1 else None

  def is_first(self):
    return self.me == 0

  def barrier(self, name):
    self._waiting.wait(60)

  @contextlib.contextmanager
  def first_before_others(self, name):
    if self.me:
      self.barrier(name)
    yield
    if not self.me:
      self.barrier(name)

  def _all(self, value):
    self._said[self.me] = value
    self.barrier("said")
    found = [self._said[i] for i in range(self._number)]
    self.barrier("heard")
    return found

  def agreed(self, value):
    return np.asarray(self._all(value)[0])

  def anyone(self, value):
    return any(self._all(value))


def in_processes(number: int, monkeypatch, module, work: Callable) -> list:
  """What `work` returns in each of so many processes, as far as `module` can tell."""
  hosts = _Processes(number, threading.Barrier(number), {})
  monkeypatch.setattr(module, "hosts", hosts)
  found = {}

  def run(me):
    hosts.me = me
    found[me] = work()

  threads = [threading.Thread(target=run, args=(me,)) for me in range(number)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(found) == number, "a process failed"
  return [found[me] for me in range(number)]
