"""A three-round run is killed at random, again and again, and must end with the bytes of one that never was.

  python -m benchmarks.reliability.kills --folder=runs/kills [--kills=200] [--seed=0] [--processes=1] [--cold=5]
  python -m benchmarks.reliability.kills --folder=runs/kills2 --kills=20 --processes=2,1,4

Each run begins without corpus and index, is killed (SIGKILL, all its processes at once) after a random part of the
time that a whole one takes, then started again and killed again, until it gets to its end; then its files are compared
and the next run begins. Every `--cold`-th start is a process of its own, that imports and compiles all anew, the others
are copies of one process that has imported the libraries, and take what was compiled before (`forked`). A run's starts
have the numbers of processes of `--processes` in turn; where there are others than 1, a run has four devices. What was
done is kept in FOLDER/results.jsonl, so that an interrupted battery goes on.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.reliability import forked
from tests.devices.test_hosts import SETTINGS, free_address
from tests.test_resume import REPOSITORY, _leaves

# Two rounds, as the small run has them, and one more.
FLAGS = ("--config.rounds=3", "--config.training.steps_per_round=2", "--config.training.checkpoint_every=1",
         "--config.screening.roots_per_round=8")
# What a clock decides: how fast it was, and how far.
_TIMED = ("progress", "lock", "tensorboard", "report")
# Killed at most so often, a run is left to end.
_KILLS_A_RUN = 12
# Seconds within which a run that nobody kills must end.
_PATIENCE = 1800.0


def start(flags: list[list[str]], log: pathlib.Path) -> list[subprocess.Popen]:
  """Starts or resumes a run in processes of their own, each with its flags."""
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  started = []
  for process, own in enumerate(flags):
    with log.with_suffix(f".{process}").open("w") as output:
      started.append(subprocess.Popen([sys.executable, "-m", "tests.small_run", *own], cwd=REPOSITORY,
                                      env=environment, stdout=subprocess.DEVNULL, stderr=output))
  return started


def files(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
  """What must be the same: every table, sequence and marker, the losses, the parameters and the optimizer's state."""
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder)
    if path.is_file() and name.parts[0] not in (*_TIMED, "checkpoints") and name.name not in (
        "metrics.jsonl", "metrics.jsonl.crc32", "origin.json"):
      yield str(name), path.read_bytes()
  lines = [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "step" in line]
  # Not the gradient's norm, whose sum over all devices has the processes' order; the optimizer's moments say more.
  yield "metrics", json.dumps([[line["step"], line["loss"]] for line in lines]).encode()
  step, leaves = _leaves(folder)
  yield f"step {step}", b""
  for name, leaf in sorted(leaves.items()):
    yield name, np.asarray(leaf).tobytes()


def hashes(workdir: pathlib.Path, folder: pathlib.Path) -> set[str]:
  """Name and hash of each of `files` of a run."""
  ran = forked.run("benchmarks.reliability.reread", ["files", str(workdir)], folder, _PATIENCE)
  if ran.code:
    raise SystemExit(f"{workdir} cannot be read: {ran.err[-2000:]}")
  return set(ran.out.splitlines())


@dataclasses.dataclass(frozen=True)
class Battery:
  """A folder with a world and a whole run; how long a cold start of that takes to its end, and a copy's."""
  folder: pathlib.Path
  processes: tuple[int, ...]
  cold: float = _PATIENCE
  copied: float = _PATIENCE

  def attempt(self, name: str, seconds: float, cold: bool, number: int = 0) -> bool:
    """Starts or resumes a run, for the `number`-th time, and kills it after so many seconds; whether it was killed."""
    log, flags = self.folder / f"{name}.log", self._flags(name, self.processes[number % len(self.processes)])
    if not cold:
      for ran in (ended := forked.run_together("tests.small_run", flags, self.folder, seconds)):
        if ran.code:
          raise SystemExit(f"{name} ended with {ran.code}: {ran.err[-2000:]}")
      return any(ran.code is None for ran in ended)
    started = start(flags, log)
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.poll() is None for process in started):
      time.sleep(0.005)
    for process in started:
      process.kill()
    codes = [process.wait() for process in started]
    for number, code in enumerate(codes):
      if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"{name} ended with {code}: {log.with_suffix(f'.{number}').read_text()[-2000:]}")
    return -signal.SIGKILL in codes

  def run(self, name: str, most: int, every: int, rng: random.Random) -> tuple[int, int]:
    """Kills a run up to `most` times, then lets it end; (how often it was killed, how often of these cold)."""
    kills = cold = 0
    while kills < most:
      is_cold = rng.randrange(every) == 0
      if not self.attempt(name, rng.uniform(0, self.cold if is_cold else self.copied), is_cold, kills):
        return kills, cold  # it got to its end first
      kills, cold = kills + 1, cold + is_cold
    if self.attempt(name, _PATIENCE, False, kills):
      raise SystemExit(f"{name} does not end within {_PATIENCE:.0f} s")
    return kills, cold

  def _flags(self, name: str, processes: int) -> list[list[str]]:
    """Of each process."""
    flags = ["", f"--config={self.folder / 'world' / 'small.py'}", f"--workdir={self.folder / name}", *FLAGS]
    if self.processes != (1,):
      flags += [f"--config.{name}={value}" for name, value in SETTINGS.items() if name.startswith("mesh")]
      flags += ["--config.training.clip_norm=1e9"]  # the gradient's norm is a sum over all devices, see test_hosts
    if processes == 1:
      return [flags]
    address = free_address()
    return [[*flags, f"--coordinator_address={address}", f"--num_processes={processes}", f"--process_id={process}"]
            for process in range(processes)]


def measured(folder: pathlib.Path, processes: tuple[int, ...]) -> Battery:
  """Makes the whole run, cold, and others as copies, the second of which compiles nothing; they must be the same."""
  battery, seconds = Battery(folder, processes), []
  for name, cold in (("whole", True), ("copied", False), ("copied", False)):
    shutil.rmtree(folder / name, ignore_errors=True)
    shutil.rmtree(folder / "world" / "cache", ignore_errors=True)
    begin = time.monotonic()
    if battery.attempt(name, _PATIENCE, cold):
      raise SystemExit(f"a whole run does not end within {_PATIENCE:.0f} s")
    seconds.append(time.monotonic() - begin)
  if hashes(folder / "whole", folder) != hashes(folder / "copied", folder):
    raise SystemExit("two runs that nobody killed are different")
  return Battery(folder, processes, seconds[0], seconds[-1])


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--folder", type=pathlib.Path, required=True, help="where runs and results go")
  parser.add_argument("--kills", type=int, default=200, help="so many in all")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  parser.add_argument("--processes", default="1", help="of a run, at its starts in turn")
  parser.add_argument("--cold", type=int, default=5, help="every so-manieth start is cold")
  flags = parser.parse_args()
  folder = flags.folder.absolute()
  folder.mkdir(parents=True, exist_ok=True)
  # In a process of its own: copies of this one must not inherit devices that are set up.
  subprocess.run([sys.executable, "-m", "benchmarks.reliability.world", folder / "world"], check=True, cwd=REPOSITORY)
  results = folder / "results.jsonl"
  done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
  forked.prepare(folder / "compiled")
  battery = measured(folder, tuple(map(int, flags.processes.split(","))))
  whole = hashes(folder / "whole", folder)
  print(f"a whole run takes {battery.cold:.1f} s, as a copy {battery.copied:.1f} s; {len(whole)} things must be the "
        "same each time", flush=True)
  while (killed := sum(row["kills"] for row in done)) < flags.kills:
    name = f"run{len(done)}"
    for path in (folder / name, folder / "world" / "cache"):
      shutil.rmtree(path, ignore_errors=True)
    kills, cold = battery.run(name, min(_KILLS_A_RUN, flags.kills - killed), flags.cold,
                              random.Random(f"{flags.seed} {len(done)}"))
    different = sorted({line.split()[0] for line in whole ^ hashes(folder / name, folder)})
    done.append({"kills": kills, "cold": cold, "different": different})
    with results.open("a") as file:
      file.write(json.dumps(done[-1]) + "\n")
    print(f"{name}: {kills} kills, {cold} of them of cold starts, different: {different or 'nothing'}", flush=True)
    if not different:
      shutil.rmtree(folder / name)
  different = sum(bool(row["different"]) for row in done)
  print(f"{sum(row['kills'] for row in done)} kills, {sum(row['cold'] for row in done)} of them of cold starts, of "
        f"{len(done)} runs: {different} runs ended differently")
  sys.exit(bool(different))


if __name__ == "__main__":
  main()
