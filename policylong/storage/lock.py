"""One owner of a folder: who holds it, whether that one still lives, and taking over from one that does not.

In the lock's folder, which is there only while somebody holds the lock or asks for it:

  <token>.json    a claim: host, process, since when, a heartbeat that a thread renews, and whether it holds the lock

Who wants the lock writes a claim and then looks at all others. While none of them lives, it holds the lock. Of two that
ask at the same time the later to look sees the other, and the one with the larger token withdraws. Nothing is asked of
the storage but that what was written is there for the next to look, as disks, network mounts and object storage have
it (on a network mount flock may hold on one machine alone); and as nobody touches another's claim before it holds the
lock, two that take over from the same dead one cannot both win.

A claim of this machine lives while its process does (by number and start, as numbers are used again), so that a run
that was killed is started again at once. One of another machine lives while its heartbeat goes on: as whoever asks sees
it change by its own clock, since the clocks of two machines need not agree. A process that was taken for dead (it was
suspended, or cut off from the storage) finds another holding the lock at its next heartbeat, and ends.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from etils import epath

from policylong import ending, paths
from policylong.errors import UserError
from policylong.storage.workdir import listed

log = logging.getLogger(__name__)

# Seconds between two heartbeats.
BEAT = 5.0
# A claim of another machine whose heartbeat stood still for so many seconds is nobody's.
STALE = 60.0
# Seconds between two looks at the others' claims.
_LOOK = 0.2
# Bytes of a claim's file.
_SIZE = 512


@dataclasses.dataclass(frozen=True)
class Claim:
  """What a file of the lock's folder says.

  machine: names the machine, its start and what of its processes can be seen, as far as the system tells. began: when
  the process began, in the machine's own unit, None where it does not tell. since: for a person. beat: the heartbeat.
  """
  host: str
  machine: str
  process: int
  began: int | None
  since: str
  beat: int
  holds: bool

  def __str__(self) -> str:
    return f"process {self.process} on {self.host}, since {self.since}"


@contextlib.contextmanager
def held(folder: epath.PathLike, what: str, *, wait: bool = False, follows: bool = False,
         lost: Callable[[str], None] | None = None) -> Iterator[None]:
  """Inside, this process alone holds the lock.

  Args:
    folder: the lock's own; it is made, and gone when nobody is left in it.
    what: is locked, as the sentences name it.
    wait: where another process holds it, wait for that one instead of refusing.
    follows: whether another process of the same run holds it for this one too; then nothing happens here.
    lost: is given a sentence where another process has taken the lock over; what it does must end this one. None:
      says it, and ends the process with code 1.

  Raises:
    UserError: another process holds it, or nothing can be written there.
  """
  if follows:
    yield
    return
  mine = _Mine(epath.Path(folder), what)
  try:
    mine.ask(wait)
  except BaseException:
    mine.withdraw()
    raise
  leaving = threading.Event()
  thread = threading.Thread(target=_beat, args=(mine, leaving, lost or _end), name="lock", daemon=True)
  thread.start()
  try:
    yield
  finally:
    leaving.set()
    thread.join()
    mine.withdraw()


class _Mine:
  """A claim of this process, from the first question to the end."""

  def __init__(self, folder: epath.Path, what: str):
    self.what = what
    self._folder = folder
    self._path = folder / f"{secrets.token_hex(8)}.json"
    self._claim = Claim(socket.gethostname(), _machine(), os.getpid(), _began(os.getpid()),
                        time.strftime("%Y-%m-%d %H:%M:%S"), 0, False)
    self._watched: dict[str, _Watched] = {}
    self._told: set[str] = set()

  def ask(self, wait: bool) -> None:
    """Returns when the lock is held."""
    while True:
      while self._ahead(wait):
        time.sleep(_LOOK)
      self.write(holds=False)
      while others := self.living():
        if self._ahead(wait):
          break
        time.sleep(_LOOK)  # they asked when this claim was not there yet, and withdraw or hold the lock in a moment
        self.write(holds=False)
      if not others:
        break
      self.withdraw()
    self.write(holds=True)
    for path, claim in self._dead():
      log.warning("%s: the lock of %s, which is gone, is taken over", self.what, claim or path)
      path.unlink(missing_ok=True)

  def living(self) -> dict[str, Claim | None]:
    """The others' claims that may live, by their names; None: one that cannot be read, or not just now."""
    return {path.name: claim for path, claim, lives in self._look() if lives}

  def holder(self) -> Claim | None:
    """Another that holds the lock, if there is one."""
    return next((claim for claim in self.living().values() if claim and claim.holds), None)

  def write(self, holds: bool) -> None:
    """Says once more that this process lives.

    Raises:
      UserError: the system does not let it.
    """
    self._claim = dataclasses.replace(self._claim, beat=self._claim.beat + 1, holds=holds)
    data = json.dumps(dataclasses.asdict(self._claim)).encode().ljust(_SIZE)
    for attempt in range(10):
      try:
        self._folder.mkdir(parents=True, exist_ok=True)
        _overwrite(self._path, data)
        return
      except FileNotFoundError:  # the folder went just now, with the claim of another
        if attempt == 9:
          raise
      except OSError as error:
        raise UserError(f"{self.what} cannot be locked: {self._folder} cannot be written ({error.strerror or error}); "
                        "name a folder that can be") from error

  def withdraw(self) -> None:
    """The claim goes, and the folder with the last one."""
    with contextlib.suppress(Exception):  # each kind of storage has its own
      self._path.unlink(missing_ok=True)
      if not paths.is_url(self._folder):  # buckets have no folders
        os.rmdir(self._folder)  # refused while others are in it; etils would look first and then remove all

  def _ahead(self, wait: bool) -> bool:
    """Whether another holds the lock or asks before this one; refuses where it is known to live and not waited for."""
    found = False
    for name, claim in self.living().items():
      if claim and claim.holds:
        found = True
        if not wait and (self._here(claim) or self._watched[name].moved):
          raise UserError(f"{self.what} is held by {claim}: wait until that one ends, or stop it, or choose another "
                          "folder")
        if name not in self._told:
          log.info("%s is held by %s: %s", self.what, claim, "waiting until it ends" if wait else
                   f"waiting at most {STALE:.0f} s for a sign of life")
        self._told.add(name)
      elif name < self._path.name:
        found = True
    return found

  def _dead(self) -> list[tuple[epath.Path, Claim | None]]:
    return [(path, claim) for path, claim, lives in self._look() if not lives]

  def _look(self) -> Iterator[tuple[epath.Path, Claim | None, bool]]:
    """(path, claim, whether it may live) of each other file of the folder."""
    for path in listed(self._folder):
      if path.name == self._path.name:
        continue
      try:
        data = path.read_bytes()
      except OSError:  # gone, or a folder
        continue
      claim = _parsed(data)
      if claim and self._here(claim):
        yield path, claim, _runs(claim.process, claim.began)
        continue
      seen = self._watched.setdefault(path.name, _Watched(data, time.monotonic()))
      if seen.data != data:
        self._watched[path.name] = seen = _Watched(data, time.monotonic(), moved=True)
      yield path, claim, time.monotonic() - seen.since < STALE

  def _here(self, claim: Claim) -> bool:
    return claim.machine == self._claim.machine


class _Watched(NamedTuple):
  """What was seen of a claim of another machine: its bytes, since when (by this machine), whether they ever changed."""
  data: bytes
  since: float
  moved: bool = False


def _beat(mine: _Mine, leaving: threading.Event, lost: Callable[[str], None]) -> None:
  """Renews the heartbeat until the lock is left, or another holds it."""
  silent = False
  while not leaving.wait(BEAT):
    try:
      if holder := mine.holder():
        lost(f"{mine.what} was taken over by {holder}, which saw no sign of life of this process for {STALE:.0f} s")
        return
      mine.write(holds=True)
      silent = False
    except Exception as error:  # each kind of storage has its own
      if not silent:
        log.warning("the lock of %s cannot be renewed (%s); after %.0f s another may take it over", mine.what, error,
                    STALE)
      silent = True


def _overwrite(path: epath.Path, data: bytes) -> None:
  """In place: a network mount may be late to show another file of the same name."""
  if paths.is_url(path):
    path.write_bytes(data)
    return
  # Never cut to nothing before: all of a claim's writings are of one length, and none is seen half done.
  with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
    file.write(data)


def _end(sentence: str) -> None:
  ending.say(sentence)
  os._exit(1)  # a run may be killed at any instant; nothing more may be written


def _parsed(data: bytes) -> Claim | None:
  """What a file says; None: it is being written, or is damaged."""
  try:
    values = json.loads(data)
    claim = Claim(**values)
  except (ValueError, TypeError):
    return None
  kinds = {"process": int, "began": int | None, "beat": int, "holds": bool}
  return claim if all(isinstance(values[name], kinds.get(name, str)) for name in values) else None


def _machine() -> str:
  """This machine since its start, and what of its processes is seen: where two are equal, so are process numbers."""
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):  # not on every system
    parts += [pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
  return " ".join(parts)


def _runs(process: int, began: int | None) -> bool:
  """Whether a process of this machine is there, and is the one that began then."""
  try:
    os.kill(process, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except PermissionError:  # another user's
    pass
  return _began(process) == began


def _began(process: int) -> int | None:
  """When a process began, in ticks since the machine's start; None: it has ended, or the system does not tell."""
  try:
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
  except OSError:
    return None
  return None if fields[0] in "ZX" else int(fields[19])  # ended, and only not waited for yet
