"""The small runs that the batteries start, by one process or by several, and what such a run holds when it is over."""

import dataclasses
import pathlib

from benchmarks.reliability import forked
from tests.devices.test_hosts import SETTINGS, free_address

# Seconds within which whatever nobody kills must end.
PATIENCE = 1800.0
# Seconds within which a start on damage or on a full disk must end: no process may wait for one that is gone.
DISTURBED_PATIENCE = 300.0
# Sums over four devices that are the same whichever process each of them belongs to; the gradient's norm is not such a
# one, so nothing is clipped by it (see there).
_FOUR_DEVICES = tuple(f"--config.{name}={value}" for name, value in SETTINGS.items()
                      if name.startswith("mesh") or name == "training.clip_norm")


def numbers(text: str) -> tuple[int, ...]:
  """A flag's "2,1,4"."""
  return tuple(map(int, text.split(",")))


@dataclasses.dataclass(frozen=True)
class Runs:
  """Starts runs of one config.

  world: the folder with model, corpus, config and cache. folder: where the files go that hold what processes say.
  processes: how many a run has, at its starts in turn; where there are others than 1, it has four devices. flags: more
  of them.
  """
  world: pathlib.Path
  folder: pathlib.Path
  processes: tuple[int, ...] = (1,)
  flags: tuple[str, ...] = ()

  @property
  def cache(self) -> pathlib.Path:
    """What all runs have in common."""
    return self.world / "cache"

  def make_world(self) -> None:
    """Unless it is there."""
    expect(forked.run("benchmarks.reliability.world", [str(self.world)], self.folder, PATIENCE), 0)

  def alone(self) -> "Runs":
    """The same runs, each by one process."""
    return dataclasses.replace(self, flags=self._all_flags(), processes=(1,))

  def count(self, number: int) -> int:
    """Of the processes of the `number`-th start."""
    return self.processes[number % len(self.processes)]

  def command(self, workdir: pathlib.Path, number: int = 0) -> list[list[str]]:
    """The flags of each process of the `number`-th start of a run."""
    flags = [f"--config={self.world / 'small.py'}", f"--workdir={workdir}", *self._all_flags()]
    if (processes := self.count(number)) == 1:
      return [flags]
    address = free_address()
    return [[*flags, f"--coordinator_address={address}", f"--num_processes={processes}", f"--process_id={process}"]
            for process in range(processes)]

  def start(self, workdir: pathlib.Path, number: int = 0, *, seconds: float = PATIENCE, cold: bool = False,
            stop: str = "") -> list[forked.Ended]:
    """Starts or resumes a run, for the `number`-th time; how each process ended.

    All of them are killed after so many seconds, or at `stop` ("stage:n", of tests.small_run) of the last one.
    """
    *others, last = self.command(workdir, number)
    return forked.run_together("tests.small_run", [*(["", *flags] for flags in others), [stop, *last]], self.folder,
                               seconds, cold=cold)

  def held(self, workdir: pathlib.Path, what: str = "files") -> set[str]:
    """Lines with name and hash of what a run holds; `what`: see `reread`."""
    return set(expect(self.reread(workdir, what), 0).out.splitlines())

  def reread(self, workdir: pathlib.Path, what: str, cold: bool = False) -> forked.Ended:
    """Runs `reread`."""
    return forked.run("benchmarks.reliability.reread", [what, str(workdir)], self.folder, PATIENCE, cold=cold)

  def _all_flags(self) -> tuple[str, ...]:
    return self.flags if self.processes == (1,) else (*self.flags, *_FOUR_DEVICES)


def sentence(ended: forked.Ended) -> str:
  """The one with which a process ended, with code 1; "" where it ended otherwise, or said more than one.

  Where another process ended it, its main thread may have closed a bar or logged a line after that.
  """
  said = [line for line in ended.err.splitlines() if line.startswith("error: ")]
  return said[0] if ended.code == 1 and "Traceback" not in ended.err and len(said) == 1 else ""


def expect(ended: forked.Ended, code: int) -> forked.Ended:
  """It, if it ended with that code; else the battery ends."""
  if ended.code != code:
    raise SystemExit(f"it ended with {ended.code}, wanted {code}: {ended.err[-2000:]}")
  return ended
