"""How far the work is: progress bars, and what each process of a run tells of itself in the working directory.

Inside `told`, a thread writes progress/<process>.json every few seconds: that the process lives, when something moved,
and what the innermost open `Bar` says. Work that goes on pays an addition for it, and what cannot be written is left
out: a run never waits for it, or fails by it. The file stays where a process was killed or failed, and goes when its
work is done, so that it is no part of what a run leaves behind.

`read` gives what the files say, to whoever wants to know where a run stands.
"""

import contextlib
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator

from etils import epath
from tqdm import tqdm

from policylong import ending
from policylong.errors import UserError
from policylong.storage.workdir import read_json, write_json

log = logging.getLogger(__name__)

# Seconds between two writings.
EVERY = 5.0
# The rate is that of the last so many seconds.
_WINDOW = 300.0

@dataclasses.dataclass(frozen=True)
class Work:
  """A bar as its process told it: done and total in units (None: not known), rate in units a second (None: no unit was
  done yet).
  """
  what: str
  unit: str
  done: float
  total: float | None
  rate: float | None


@dataclasses.dataclass(frozen=True)
class Told:
  """What process 0 <= process < processes said last; times in seconds since 1970, by its own clock.

  started: when the command began. told: when this was written. moved: when a bar began, advanced or ended last.
  every: seconds between two writings. work: what is being done; None: nothing that is counted. stopped: why it ended,
  None where it did not say.
  """
  process: int
  processes: int
  started: float
  told: float
  moved: float
  every: float
  work: Work | None
  stopped: str | None


class Bar(tqdm):
  """A tqdm bar that is told of, also where nothing is drawn (`disable`).

  grows: its total is only what is known so far, so it is drawn and not told.
  """

  def __init__(self, *, desc: str, unit: str = "it", total: float | None = None, initial: float = 0,
               grows: bool = False, **options):
    self.what, self.done, self.grows = desc, initial, grows
    self.changes = deque([(time.time(), initial)])  # (when, how much was done then); the rate is counted from them
    super().__init__(desc=desc, unit=unit, total=total, initial=initial, **options)
    self.unit = unit  # tqdm forgets it where nothing is drawn
    ending.bars.append(self)

  def update(self, n: float = 1):
    """Advances by n units."""
    self.done += n
    return super().update(n)

  def close(self) -> None:
    """Ends the bar; a second time does nothing."""
    ending.bars[:] = [bar for bar in ending.bars if bar is not self]  # equal bars are those at one place on the screen
    super().close()

  def work(self, now: float) -> Work:
    """Where the bar stands."""
    done, changes = self.done, self.changes
    if done != changes[-1][1]:
      changes.append((now, done))
    while len(changes) > 2 and changes[1][0] < now - _WINDOW:
      changes.popleft()
    (first, before), (last, after) = changes[0], changes[-1]
    rate = (after - before) / (last - first) if last > first else None
    return Work(self.what, self.unit, done, None if self.grows else self.total, rate)


@contextlib.contextmanager
def told(directory: epath.PathLike, process: int, processes: int) -> Iterator[None]:
  """Inside, `directory` says every few seconds how far this process is.

  Args:
    directory: `progress/` of the working directory.
    process: the number of this process.
    processes: how many work on it.
  """
  directory = epath.Path(directory)
  if process == 0:
    _forget(directory, processes)
  teller = _Teller(directory, process, processes)
  try:
    yield
  except BaseException as error:
    teller.leave(_reason(error))
    raise
  teller.leave(None)


def read(directory: epath.PathLike) -> list[Told]:
  """What the processes of the last start said last, by their numbers; a file that is missing or damaged is left out."""
  found = {}
  try:
    for path in epath.Path(directory).iterdir():
      if path.suffix == ".json" and path.stem.isdigit():
        with contextlib.suppress(UserError, TypeError, KeyError, AttributeError):
          values = read_json(path, checked=False)
          work = values.pop("work")
          found[int(path.stem)] = Told(**values, work=work and Work(**work))
  except OSError:  # none is there: the work has just ended, or never began
    pass
  processes = found[min(found)].processes if found else 0
  return [each for number, each in sorted(found.items()) if number < processes]


class _Teller:
  """Writes one process's file until it leaves."""

  def __init__(self, directory: epath.Path, process: int, processes: int):
    self._path = directory / f"{process}.json"
    self._process, self._processes = process, processes
    self._started = self._moved = time.time()
    self._seen: tuple | None = None
    self._silent = False
    self._leaving = threading.Event()
    self._tell()
    self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
    self._thread.start()

  def leave(self, reason: str | None) -> None:
    """Ends the thread; the file goes, or keeps the reason why the work failed."""
    self._leaving.set()
    self._thread.join()
    if reason:
      self._tell(reason)
      return
    with contextlib.suppress(Exception):  # each kind of storage has its own
      self._path.unlink(missing_ok=True)
      self._path.parent.rmdir()  # the last one out; of the others it is refused

  def _run(self) -> None:
    while not self._leaving.wait(EVERY):
      self._tell()

  def _tell(self, stopped: str | None = None) -> None:
    now = time.time()
    bar = next(reversed(ending.bars), None)
    work = None if bar is None else bar.work(now)  # without a total, tqdm's bars are neither true nor false
    if (seen := (id(bar), work and work.done)) != self._seen:
      self._seen, self._moved = seen, now
    told_ = Told(self._process, self._processes, self._started, now, self._moved, EVERY, work, stopped)
    try:
      write_json(self._path, dataclasses.asdict(told_))
    except Exception as error:  # each kind of storage has its own
      if not self._silent:
        log.warning("%s cannot be written (%s): where the run stands is not told", self._path, error)
      self._silent = True


def _forget(directory: epath.Path, processes: int) -> None:
  """Removes what processes of an earlier start left that had more of them."""
  with contextlib.suppress(OSError):
    for path in directory.iterdir():
      number = path.name.lstrip(".").partition(".")[0]
      if number.isdigit() and int(number) >= processes:
        path.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
  if isinstance(error, UserError):
    return str(error)
  if isinstance(error, KeyboardInterrupt):
    return "interrupted"
  if isinstance(error, ending.Terminated):
    return "told to end (SIGTERM)"
  return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".rstrip(": ")
