"""Many rounds of a tiny model in one process: memory and open files must not grow from round to round.

  python -m benchmarks.reliability.rounds --folder=runs/rounds [--rounds=24]

Measured at the end of each round: the process's resident memory after the collector ran, its open files, its threads,
and what JAX holds on its devices. The first rounds compile, so the second half is compared with what was there before.
"""

import argparse
import contextlib
import gc
import json
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.reliability.world import make_world
from policylong import config as config_lib
from policylong import loop
from policylong.storage.workdir import Round
from tests.small_run import small_config, write_talks


def rounds_config(world: pathlib.Path, rounds: int) -> config_lib.Config:
  """The small run, of many short rounds, each with roots of its own."""
  config = small_config(world)
  write_talks(world / "many.jsonl", 4 * rounds)
  config.corpus.sources = ({**config.corpus.sources[0], "path": str(world / "many.jsonl")},)
  config.rounds, config.eval.tasks = rounds, ()
  config.screening.update({"roots_per_round": 4, "budget": None, "max_anchors_per_root": 2,
                           "epsilon": 0.0, "epsilon_from_control": None})
  config.training.update({"steps_per_round": 1, "batch_size": 1, "checkpoint_every": 1, "keep_checkpoints": 1})
  return config_lib.parse(config)


def measure() -> dict[str, int]:
  """What this process holds just now; memory in bytes."""
  gc.collect()
  status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
  return {"memory": int(status["VmRSS"].split()[0]) * 1024, "files": len(os.listdir("/proc/self/fd")),
          "threads": threading.active_count(), "arrays": sum(array.nbytes for array in jax.live_arrays())}


@contextlib.contextmanager
def measured() -> Iterator[list[dict[str, int]]]:
  """Inside, the list gets what `measure` says at the end of each round."""
  found: list[dict[str, int]] = []
  finish = Round.finish

  def finish_and_measure(self, summary):
    finish(self, summary)
    found.append(measure())
    print(f"round {self.index}: {json.dumps(found[-1])}", flush=True)

  Round.finish = finish_and_measure
  try:
    yield found
  finally:
    Round.finish = finish


def grows(found: list[dict[str, int]], memory: int = 2 << 20) -> list[str]:
  """What is not flat in the second half: memory by more than `memory` bytes a round on average, the others at all."""
  half = found[len(found) // 2:]
  faults = [name for name in ("files", "threads", "arrays") if max(row[name] for row in half) > max(
      row[name] for row in found[1:len(found) // 2 + 1])]
  slope = float(np.polyfit(np.arange(len(half)), [row["memory"] for row in half], 1)[0])
  return faults + ([f"memory, by {slope / 2**20:.1f} MiB a round"] if slope > memory else [])


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--folder", type=pathlib.Path, required=True, help="where the run goes; it begins anew")
  parser.add_argument("--rounds", type=int, default=24, help="how many")
  flags = parser.parse_args()
  folder = flags.folder.absolute()
  world = make_world(folder / "world").folder
  shutil.rmtree(folder / "run", ignore_errors=True)
  with measured() as found:
    loop.run(rounds_config(world, flags.rounds), folder / "run")
  faults = grows(found)
  first, last = found[len(found) // 2], found[-1]
  print(f"{len(found)} rounds; from round {len(found) // 2 + 1} to the last: memory {first['memory'] / 2**20:.0f} -> "
        f"{last['memory'] / 2**20:.0f} MiB, open files {first['files']} -> {last['files']}, threads "
        f"{first['threads']} -> {last['threads']}, arrays {first['arrays'] / 2**20:.1f} -> "
        f"{last['arrays'] / 2**20:.1f} MiB; grows: {', '.join(faults) or 'nothing'}")
  sys.exit(bool(faults))


if __name__ == "__main__":
  main()
