"""The disk is full at each stage of a run and in each cache: a sentence, then, with room again, on to the same bytes.

  python -m benchmarks.reliability.disk_full --folder=runs/full [--points="a checkpoint,final.json"] [--raised]

One run is started again and again in one working directory. Each time the disk on which all of it lies, a tmpfs that is
mounted for this (which a plain user may not: --raised has the error raised instead), gets full at the next point. It
must end with code 1 and one sentence that says so; a last start with room must end with the bytes of a run that
always had it. Exits 1 where one of these is not so.
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

PATIENCE = 600.0
_SIZE = "600m"


def wrong(ran: forked.Ended) -> str:
  """What is not as it should be with the end of a run on a full disk; "" for nothing."""
  last = (ran.err.splitlines() or [""])[-1]
  if ran.code != 1 or "Traceback" in ran.err:
    return f"code {ran.code}: {ran.err[-1500:]}"
  return "" if last.startswith("error: ") and ("full" in last or "No space" in last) else f"it says {last}"


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


def battery(folder: pathlib.Path, points: Sequence[str], raised: bool) -> list[str]:
  """What went wrong at which point."""
  faults = []
  with disk(folder / "disk", raised) as (place, ballast):
    world = place / "world"
    if (made := forked.run("benchmarks.reliability.world", [str(world)], folder, PATIENCE)).code:
      raise SystemExit(made.err[-2000:])
    command = [f"--config={world / 'small.py'}", f"--workdir={place / 'run'}"]
    for point in points:
      ran = forked.run("benchmarks.reliability.full_run", [point, ballast, *command], folder, PATIENCE)
      fault = wrong(ran)
      print(f"full at {point}: {fault or ran.err.splitlines()[-1]}", flush=True)
      faults += [f"{point}: {fault}"] * bool(fault)
      if ballast:
        pathlib.Path(ballast).unlink(missing_ok=True)
    ends = []
    for workdir in (place / "run", place / "whole"):
      if workdir.name == "whole":
        shutil.rmtree(world / "cache")
      ran = forked.run("tests.small_run", ["", command[0], f"--workdir={workdir}"], folder, PATIENCE)
      if ran.code:
        return [*faults, f"with room again: {ran.err[-1500:]}"]
      ends.append(set(forked.run("benchmarks.reliability.reread", ["files", str(workdir)], folder, PATIENCE
                                 ).out.splitlines()))
  return faults + [f"different at the end: {', '.join(sorted(ends[0] ^ ends[1])[:6])}"] * (ends[0] != ends[1])


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--folder", type=pathlib.Path, required=True, help="where it happens; what was there goes")
  parser.add_argument("--points", default=",".join(POINTS), help="which ones (default: all of them)")
  parser.add_argument("--raised", action="store_true", help="the error is raised, and no disk is mounted")
  flags = parser.parse_args()
  folder = flags.folder.absolute()
  folder.mkdir(parents=True, exist_ok=True)
  forked.prepare(folder / "compiled")
  points = flags.points.split(",")
  faults = battery(folder, points, flags.raised)
  print(f"{len(points)} points: {'; '.join(faults) or 'each told in a sentence, and the same bytes at the end'}")
  sys.exit(bool(faults))


if __name__ == "__main__":
  main()
