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
import pathlib
import random
import shutil
import sys
import time

from benchmarks.reliability import forked
from benchmarks.reliability.runs import PATIENCE, Runs, numbers

# Two rounds, as the small run has them, and one more.
FLAGS = ("--config.rounds=3", "--config.training.steps_per_round=2", "--config.training.checkpoint_every=1",
         "--config.screening.roots_per_round=8")
# Killed at most so often, a run is left to end.
_KILLS_A_RUN = 12


@dataclasses.dataclass(frozen=True)
class Battery:
  """Runs; how long a cold start of a whole one takes to its end, and a copy's."""
  runs: Runs
  cold: float = PATIENCE
  copied: float = PATIENCE

  def attempt(self, name: str, seconds: float, cold: bool, number: int = 0) -> bool:
    """Starts or resumes a run, for the `number`-th time, and kills it after so many seconds; whether it was killed."""
    ended = self.runs.start(self.runs.folder / name, number, seconds=seconds, cold=cold)
    for ran in ended:
      if ran.code:
        raise SystemExit(f"{name} ended with {ran.code}: {ran.err[-2000:]}")
    return any(ran.code is None for ran in ended)

  def run(self, name: str, most: int, every: int, rng: random.Random) -> tuple[int, int]:
    """Kills a run up to `most` times, then lets it end; (how often it was killed, how often of these cold)."""
    kills = cold = 0
    while kills < most:
      is_cold = rng.randrange(every) == 0
      if not self.attempt(name, rng.uniform(0, self.cold if is_cold else self.copied), is_cold, kills):
        return kills, cold  # it got to its end first
      kills, cold = kills + 1, cold + is_cold
    if self.attempt(name, PATIENCE, False, kills):
      raise SystemExit(f"{name} does not end within {PATIENCE:.0f} s")
    return kills, cold


def measured(runs: Runs) -> Battery:
  """Makes the whole run, cold, and others as copies, the second of which compiles nothing; they must be the same."""
  seconds = []
  for name, cold in (("whole", True), ("copied", False), ("copied", False)):
    for path in (runs.folder / name, runs.cache):
      shutil.rmtree(path, ignore_errors=True)
    begin = time.monotonic()
    if Battery(runs).attempt(name, PATIENCE, cold):
      raise SystemExit(f"a whole run does not end within {PATIENCE:.0f} s")
    seconds.append(time.monotonic() - begin)
  if runs.held(runs.folder / "whole") != runs.held(runs.folder / "copied"):
    raise SystemExit("two runs that nobody killed are different")
  return Battery(runs, seconds[0], seconds[-1])


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--folder", type=pathlib.Path, required=True, help="where runs and results go")
  parser.add_argument("--kills", type=int, default=200, help="so many in all")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  parser.add_argument("--processes", type=numbers, default=(1,), help="of a run, at its starts in turn")
  parser.add_argument("--cold", type=int, default=5, help="every so-manieth start is cold")
  flags = parser.parse_args()
  folder = flags.folder.absolute()
  folder.mkdir(parents=True, exist_ok=True)
  forked.prepare(folder / "compiled")
  runs = Runs(folder / "world", folder, flags.processes, FLAGS)
  runs.make_world()
  results = folder / "results.jsonl"
  done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
  battery = measured(runs)
  whole = runs.held(folder / "whole")
  print(f"a whole run takes {battery.cold:.1f} s, as a copy {battery.copied:.1f} s; {len(whole)} things must be the "
        "same each time", flush=True)
  while (killed := sum(row["kills"] for row in done)) < flags.kills:
    name = f"run{len(done)}"
    for path in (folder / name, runs.cache):
      shutil.rmtree(path, ignore_errors=True)
    kills, cold = battery.run(name, min(_KILLS_A_RUN, flags.kills - killed), flags.cold,
                              random.Random(f"{flags.seed} {len(done)}"))
    different = sorted({line.split()[0] for line in whole ^ runs.held(folder / name)})
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
