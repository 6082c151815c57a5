"""Hundreds of hostile inputs over all commands: each must end with exit code 1 or 2 in one sentence, soon.

  python -m benchmarks.reliability.hostile --folder=runs/hostile [--count=500] [--seed=0] [--only=WORDS] [--real=20]

Each case runs in a copy of one process that has imported what commands need; every `--real`-th one also as a process of
its own, as a person would start it. Says what is wrong with each that is, and at the end how many there were; what was
run is kept in FOLDER/results.jsonl, so that an interrupted battery goes on.
"""

import argparse
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

from benchmarks.reliability import cases_config, cases_data, forked
from benchmarks.reliability.world import Case, World

# Seconds that a hostile input may take.
PATIENCE = 120


def all_cases(world: World) -> list[Case]:
  """Every case, in a fixed order."""
  kinds = (cases_config.programs, cases_config.flags, cases_config.fields, cases_data.corpora, cases_data.conversations,
           cases_data.models)
  return [case for kind in kinds for case in kind(world)]


def chosen(world: World, count: int, seed: int, only: str = "") -> list[Case]:
  """So many of the cases, at random, each kind of thing at least once; all of them where there are no more."""
  cases = [case for case in all_cases(world) if only in f"{case.module} {case.name}"]
  return cases if len(cases) <= count else random.Random(seed).sample(cases, count)


def wrong(case: Case, ended: forked.Ended) -> str:
  """What is wrong with how a case ended, "" if nothing is."""
  if ended.code is None:
    return f"hangs: not ended after {ended.seconds:.0f} s"
  if ended.code not in case.codes:
    return f"exit code {ended.code}, wanted one of {case.codes}"
  if "Traceback (most recent call last)" in ended.err + ended.out:
    return "a stack trace"
  said = [line for line in ended.err.splitlines() if line.startswith(("error: ", "usage error: "))
          or ": error: " in line]
  if ended.code and len(said) != 1:
    return f"{len(said)} sentences, wanted one"
  return ""


def run(case: Case, world: World, real: bool = False) -> forked.Ended:
  """Runs one case in a folder of its own."""
  with tempfile.TemporaryDirectory(prefix="hostile") as temporary:
    folder = pathlib.Path(temporary)
    case.make(folder)
    arguments = [word.replace("{folder}", str(folder)).replace("{world}", str(world.folder)) for word in case.arguments]
    if not real:
      ended = forked.run(case.module, arguments, folder, PATIENCE)
      # A copy may inherit a lock that a thread of a library holds, and lacks that thread: the copy's fault alone.
      return run(case, world, real=True) if ended.code == -6 and "mutex.cc" in ended.err else ended
    return forked.run(case.module, arguments, folder, PATIENCE, cold=True)


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--folder", type=pathlib.Path, required=True, help="where the world and the results go")
  parser.add_argument("--count", type=int, default=500, help="so many of all cases")
  parser.add_argument("--seed", type=int, default=0, help="chooses them")
  parser.add_argument("--only", default="", help="cases whose module and name hold these words")
  parser.add_argument("--real", type=int, default=20, help="every so-manieth also as a process of its own; 0: none")
  parser.add_argument("--list", action="store_true", help="print the cases, and run none")
  flags = parser.parse_args()
  folder = flags.folder.absolute()
  # In a process of its own: copies of this one must not inherit devices that are set up, or their threads.
  subprocess.run([sys.executable, "-m", "benchmarks.reliability.world", folder / "world"], check=True,
                 cwd=forked.REPOSITORY)
  world = World(folder / "world")
  cases = chosen(world, flags.count, flags.seed, flags.only)
  if flags.list:
    print("\n".join(f"{case.module}  {case.name}" for case in cases) + f"\n{len(cases)} cases")
    return
  results = folder / "results.jsonl"
  done = {(row["case"], row["real"]): row for row in map(json.loads, results.read_text().splitlines())
          } if results.exists() else {}
  forked.prepare()
  bad = 0
  for number, case in enumerate(cases):
    for real in (False, True) if flags.real and number % flags.real == 0 else (False,):
      key = (f"{case.module} {case.name} {' '.join(case.arguments)}", real)
      if key not in done:
        ended = run(case, world, real)
        row = {"case": key[0], "real": real, "wrong": wrong(case, ended), "code": ended.code,
               "seconds": round(ended.seconds, 1), "said": ended.err[-2000:]}
        with results.open("a") as file:
          file.write(json.dumps(row) + "\n")
        done[key] = row
      if fault := done[key]["wrong"]:
        bad += 1
        print(f"{case.module}  {case.name}{' (a process of its own)' if real else ''}: {fault}\n"
              f"  {done[key]['said'][-300:]!r}", flush=True)
  slowest = max(row["seconds"] for row in done.values())
  print(f"{len(cases)} hostile inputs, {sum(real for _, real in done)} of them also as processes of their own: {bad} "
        f"ended wrongly; the slowest took {slowest:.1f} s")
  shutil.rmtree(folder / "world" / "cache", ignore_errors=True)
  sys.exit(bool(bad))


if __name__ == "__main__":
  main()
