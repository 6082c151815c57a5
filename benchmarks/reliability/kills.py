"""A three-round run is killed at random, again and again, and must end with the bytes of one that never was.

  python -m benchmarks.reliability.kills --folder=runs/kills [--kills=200] [--seed=0] [--processes=1]

Each run is killed (SIGKILL, all its processes at once) after a random part of the time that a whole one takes, cold
start and compiling included, then started again and killed again, until it gets to its end; then its files are
compared and the next run begins. What was done is kept in FOLDER/results.jsonl, so that an interrupted battery goes on.
"""

import argparse
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

from benchmarks.reliability.world import make_world
from tests.devices.test_hosts import SETTINGS, free_address
from tests.test_resume import REPOSITORY, _leaves

# Two rounds, as the small run has them, and one more.
FLAGS = ("--config.rounds=3", "--config.training.steps_per_round=2", "--config.training.checkpoint_every=1",
         "--config.screening.roots_per_round=8")
# What a clock decides: how fast it was, and how far.
_TIMED = ("progress", "lock", "tensorboard", "report")
# Killed at most so often, a run is left to end.
_KILLS_A_RUN = 12


def start(folder: pathlib.Path, world: pathlib.Path, processes: int, log: pathlib.Path) -> list[subprocess.Popen]:
  """Starts or resumes the run in `folder`."""
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  address = free_address()
  started = []
  for process in range(processes):
    flags = [*FLAGS, *(f"--config.{name}={value}" for name, value in SETTINGS.items() if name.startswith("mesh"))] if (
        processes > 1) else [*FLAGS]
    if processes > 1:
      flags += [f"--coordinator_address={address}", f"--num_processes={processes}", f"--process_id={process}"]
    with log.with_suffix(f".{process}").open("w") as output:
      command = [sys.executable, "-m", "tests.small_run", "", f"--config={world / 'small.py'}", f"--workdir={folder}"]
      started.append(subprocess.Popen(
          [*command, *flags], cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=output))
  return started


def finish(started: list[subprocess.Popen], log: pathlib.Path, patience: float = 1800) -> float:
  """Waits until the run is done; returns how long that took."""
  begin = time.monotonic()
  for number, process in enumerate(started):
    if code := process.wait(patience):
      raise SystemExit(f"the run ended with {code}: {log.with_suffix(f'.{number}').read_text()[-2000:]}")
  return time.monotonic() - begin


def files(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
  """What must be the same: every table, sequence and marker, the losses, the parameters and the optimizer's state."""
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder)
    if path.is_file() and name.parts[0] not in (*_TIMED, "checkpoints") and name.name not in (
        "metrics.jsonl", "metrics.jsonl.crc32", "origin.json"):
      yield str(name), path.read_bytes()
  lines = [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "step" in line]
  yield "metrics", json.dumps([[line["step"], line["loss"], line["grad_norm"]] for line in lines]).encode()
  step, leaves = _leaves(folder)
  yield f"step {step}", b""
  for name, leaf in sorted(leaves.items()):
    yield name, np.asarray(leaf).tobytes()


def differences(whole: dict[str, bytes], folder: pathlib.Path) -> list[str]:
  """The names of what is not the same in both."""
  found = dict(files(folder))
  return sorted(name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name))


def run(folder: pathlib.Path, world: pathlib.Path, processes: int, seconds: float, most: int, rng: random.Random
        ) -> int:
  """Kills a run up to `most` times at random moments within `seconds` of its start; returns how often it was."""
  kills, log = 0, folder.with_suffix(".log")
  while kills < most:
    started = start(folder, world, processes, log)
    end = time.monotonic() + rng.uniform(0, seconds)
    while time.monotonic() < end and any(process.poll() is None for process in started):
      time.sleep(0.005)
    if all(process.poll() is not None for process in started):
      break  # it got to its end first
    for process in started:
      process.kill()
    kills += [process.wait() for process in started].count(-signal.SIGKILL) > 0
  finish(start(folder, world, processes, log), log)
  return kills


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--folder", type=pathlib.Path, required=True, help="where runs and results go")
  parser.add_argument("--kills", type=int, default=200, help="so many in all")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  parser.add_argument("--processes", type=int, default=1, help="of a run")
  flags = parser.parse_args()
  folder = flags.folder.absolute()
  folder.mkdir(parents=True, exist_ok=True)
  world, results = make_world(folder / "world").folder, folder / "results.jsonl"
  done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
  log = folder / "whole.log"
  begun = time.monotonic()
  finish(start(folder / "whole", world, flags.processes, log), log)
  seconds = done[0]["whole"] if done else time.monotonic() - begun
  whole = dict(files(folder / "whole"))
  print(f"a whole run takes {seconds:.0f} s; {len(whole)} things must be the same in every other", flush=True)
  while (killed := sum(row["kills"] for row in done)) < flags.kills:
    name = f"run{len(done)}"
    shutil.rmtree(folder / name, ignore_errors=True)
    kills = run(folder / name, world, flags.processes, seconds, min(_KILLS_A_RUN, flags.kills - killed),
                random.Random(f"{flags.seed} {len(done)}"))
    row = {"kills": kills, "different": differences(whole, folder / name), "whole": seconds}
    with results.open("a") as file:
      file.write(json.dumps(row) + "\n")
    done.append(row)
    print(f"{name}: {kills} kills, different: {row['different'] or 'nothing'}", flush=True)
    if not row["different"]:
      shutil.rmtree(folder / name)
  different = sum(bool(row["different"]) for row in done)
  print(f"{sum(row['kills'] for row in done)} kills of {len(done)} runs: {different} runs ended differently")
  sys.exit(bool(different))


if __name__ == "__main__":
  main()
