"""The disk is full at each stage of a run and in each cache: a sentence, then, with room again, on to the same bytes.

  python -m benchmarks.reliability.disk_full --folder=runs/full [--points="a checkpoint,final.json"] [--raised]
    [--processes=2]

One run is started again and again in one working directory. Each time the disk on which all of it lies, a tmpfs that is
mounted for this (which a plain user may not: --raised has the error raised instead), gets full at the next point. It
must end with code 1 and one sentence that says so; a last start with room must end with the bytes of a run that
always had it. Of several processes, whose numbers are those of `--processes` in turn, each must end with code 1 and a
sentence, and at least one of these must say it; the run that always had room is one of one process. Exits 1 where one
of these is not so.
"""

import argparse
import contextlib
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

from benchmarks.reliability import forked
from benchmarks.reliability.full_run import POINTS
from benchmarks.reliability.runs import DISTURBED_PATIENCE, Runs, numbers, sentence

_SIZE = "600m"


def wrong(processes: Sequence[forked.Ended]) -> str:
  """What is not as it should be with the end of a run's processes on a full disk; "" for nothing."""
  said = [sentence(ran) for ran in processes]
  if not all(said):
    return "; ".join(f"code {ran.code} after {ran.seconds:.0f} s: {ran.err[-1500:]}" for ran in processes)
  return "" if any("the disk is full" in each for each in said) else f"it says {said}"


@contextlib.contextmanager
def disk(folder: pathlib.Path, raised: bool) -> Iterator[tuple[pathlib.Path, str]]:
  """(a folder on a small disk of its own, a file that may fill it); `raised`: any folder, and ""."""
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  if raised:
    yield folder, ""
    return
  subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder)], check=True)
  try:
    yield folder, str(folder / "ballast")
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def battery(folder: pathlib.Path, points: Sequence[str], raised: bool, processes: tuple[int, ...]) -> list[str]:
  """What went wrong at which point."""
  faults = []
  with disk(folder / "disk", raised) as (place, ballast):
    runs = Runs(place / "world", folder, processes)
    runs.make_world()
    for number, point in enumerate(points):
      ended = forked.run_together(
          "benchmarks.reliability.full_run",
          [[point, ballast, *flags] for flags in runs.command(place / "run", number)], folder, DISTURBED_PATIENCE)
      fault = wrong(ended)
      print(f"full at {point}, after {ended[0].seconds:.0f} s: {fault or ' | '.join(map(sentence, ended))}", flush=True)
      faults += [f"{point}: {fault}"] * bool(fault)
      if ballast:
        pathlib.Path(ballast).unlink(missing_ok=True)
    held = []
    for workdir, starts in ((place / "run", runs), (place / "whole", runs.alone())):
      if workdir.name == "whole":
        shutil.rmtree(runs.cache)
      if failed := [ran for ran in starts.start(workdir) if ran.code != 0]:
        return [*faults, f"with room again: {failed[0].err[-1500:]}"]
      held.append(runs.held(workdir))
  return faults + [f"different at the end: {', '.join(sorted(held[0] ^ held[1])[:6])}"] * (held[0] != held[1])


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--folder", type=pathlib.Path, required=True, help="where it happens; what was there goes")
  parser.add_argument("--points", default=",".join(POINTS), help="which ones (default: all of them)")
  parser.add_argument("--raised", action="store_true", help="the error is raised, and no disk is mounted")
  parser.add_argument("--processes", type=numbers, default=(1,), help="of a run, at its starts in turn")
  flags = parser.parse_args()
  folder = flags.folder.absolute()
  folder.mkdir(parents=True, exist_ok=True)
  forked.prepare(folder / "compiled")
  points = flags.points.split(",")
  faults = battery(folder, points, flags.raised, flags.processes)
  print(f"{len(points)} points: {'; '.join(faults) or 'each told in a sentence, and the same bytes at the end'}")
  sys.exit(bool(faults))


if __name__ == "__main__":
  main()
