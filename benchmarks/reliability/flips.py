"""A byte of a file is flipped, in a run, its caches or its checkpoints: nothing may change in silence.

  python -m benchmarks.reliability.flips --folder=runs/flips [--count=300] [--seed=0] [--processes=1] [--defects]

A small run is stopped at each of `STOPS`, and once left to its end. For each flip one of these is copied, a random byte
of a random file of it or of the caches is changed, and the command that would read it is started: a stopped run goes on
to its end, of an ended one the page is written and the newest checkpoint is loaded. Flips of the same stopped run are
done `--together`; where the end is not as it would be without any, each of them is done once more, alone. Most starts
are copies of one process that has imported the libraries (`forked`), every `--cold`-th one is a process of its own.
With `--processes=2` or `2,4` so many processes go on with a stopped run, at the battery's starts in turn, to the bytes
of one process; nothing of an ended run is flipped, as one process reads that. The outcome is one of

  told      it ended with one sentence and code 1, all its processes, or a line says what is left out
  rebuilt   it ended well, with a line about the damage, and with the bytes of a run that was never touched
  harmless  it ended well, with the same bytes, and without a line: nobody read the byte, or it says nothing
  unread    it ended well, and all but the changed file is the same: nobody read that, and its reader would tell
  SILENT    it ended well, and something is not the same
  BROKEN    a stack trace, no end, or processes that do not end alike

and is kept in FOLDER/results.jsonl, so that an interrupted battery goes on. Exits 1 where one is SILENT or BROKEN.

--defects plants each of `defects.DEFECTS` afterwards, which must come out as SILENT or BROKEN, and without it must not.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import pathlib
import random
import shutil
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from benchmarks.reliability import forked, readers
from benchmarks.reliability.defects import DEFECTS
from benchmarks.reliability.runs import DISTURBED_PATIENCE, Runs, expect, numbers, sentence
from policylong.errors import Damaged

# "stage:n", of tests.small_run: in turn, in one working directory. Shards are half done at the first one, and training
# of the first round is at the second. Of several processes each verifies a few.
STOPS = ("verify:3", "training:3", "verify:4", "training:1")
STOPS_OF_SEVERAL = ("verify:1", "training:3", "verify:1", "training:1")
_OF_DEFECT = {"a lost data cursor": "stopped1"}
WHOLE = "whole"
# What nothing reads again, or who else it is told by: it is written anew, or is there for people alone.
_UNREAD = ("progress", "lock", "tensorboard", "report")


@dataclasses.dataclass(frozen=True)
class Scene:
  """A folder with a world, and runs of it: `whole` and a copy for each of `stops`."""
  runs: Runs
  stops: tuple[str, ...] = STOPS

  @property
  def folder(self) -> pathlib.Path:
    """Where all of it is."""
    return self.runs.folder

  @property
  def flipped(self) -> list[str]:
    """The runs of which bytes are flipped."""
    return [WHOLE] * (self.runs.processes == (1,)) + [f"stopped{number}" for number in range(len(self.stops))]


def make_scene(runs: Runs, stops: tuple[str, ...]) -> Scene:
  """Makes the runs, unless they are there."""
  folder = runs.folder
  if (folder / "DONE").exists():
    return Scene(runs, stops)
  runs.make_world()
  for path in (folder / WHOLE, folder / "stopping", runs.cache):
    shutil.rmtree(path, ignore_errors=True)
  expect(runs.alone().start(folder / WHOLE)[0], 0)
  for number, stop in enumerate(stops):
    for ended in runs.start(folder / "stopping", number, stop=stop):
      expect(ended, -9)
    _copied(folder / "stopping", folder / f"stopped{number}")
  shutil.rmtree(folder / "stopping")
  _copied(runs.cache, folder / "cache")
  (folder / "DONE").write_text("")
  return Scene(runs, stops)


@dataclasses.dataclass(frozen=True)
class Flip:
  """A byte of a file of one of the runs (`run`), or of the caches, by its place below the folder of these."""
  run: str
  cached: bool
  file: str
  at: int
  mask: int


def draw(scene: Scene, rng: random.Random) -> Flip:
  """A random one."""
  run = rng.choice(scene.flipped)
  found = [(cached, path) for cached, parent in ((False, scene.folder / run), (True, scene.folder / "cache"))
           for path in sorted(parent.rglob("*")) if path.is_file() and path.stat().st_size and _is_read(parent, path)]
  cached, path = rng.choice(found)
  parent = scene.folder / ("cache" if cached else run)
  return Flip(run, cached, str(path.relative_to(parent)), rng.randrange(path.stat().st_size), rng.randrange(1, 256))


def outcomes(scene: Scene, flips: Sequence[Flip], whole: "Whole", number: int, cold: bool) -> list[tuple[str, str]]:
  """What became of each of some flips of one run at the battery's `number`-th start, and the line that was said of it;
  [] where they have to be alone.
  """
  trial = _trial(scene, flips[0].run)
  for flip in flips:
    path = (scene.runs.cache if flip.cached else trial) / flip.file
    data = bytearray(path.read_bytes())
    data[flip.at] ^= flip.mask
    path.write_bytes(data)
  changed = {flip.file for flip in flips if not flip.cached}
  ended, said = judged(scene, trial, whole, number, cold, changed)
  if len(flips) == 1:
    return [(ended, "\n".join(said)[:2000])]
  if ended not in ("rebuilt", "harmless", "unread"):
    return []
  found = []
  for flip in flips:
    line = next((line for line in said if flip.file in line), "")
    unread = not line and not flip.cached and (trial / flip.file).exists() and _is_told(trial / flip.file)
    found.append(("rebuilt" if line else "unread" if unread else "harmless", line))
  return found


class Whole(NamedTuple):
  """What a run that was never touched ends with, name and hash of each thing; what is read of it when it is done."""
  files: set[str]
  read: str


def judged(scene: Scene, trial: pathlib.Path, whole: Whole, number: int = 0, cold: bool = False,
           changed: AbstractSet[str] = frozenset()) -> tuple[str, list[str]]:
  """The outcome of going on with a run whose files `changed`, of an ended one of reading it; lines about damage."""
  done = (trial / "final.json").exists()
  processes = [scene.runs.reread(trial, "done", cold)] if done else scene.runs.start(
      trial, number, seconds=DISTURBED_PATIENCE, cold=cold)
  # The page has long lines.
  said = [line[max(0, line.find("damaged") - 200):][:400] for ran in processes for line in [
      *ran.err.splitlines(), *ran.out.splitlines() * done] if "damaged" in line]
  if all(map(sentence, processes)):
    return "told", [sentence(processes[0])]
  if any(ran.code != 0 for ran in processes):
    return "BROKEN", [f"code {ran.code} after {ran.seconds:.0f} s: {ran.err[-1500:]}" for ran in processes]
  if done:
    return ("told" if said else "harmless" if processes[0].out == whole.read else "SILENT"), said
  if different := whole.files ^ scene.runs.held(trial, "told"):
    names = {line.split()[0] for line in different}
    if said and names == {"metrics"}:
      return "told", said  # a line of a step that is over cannot be made again
    if names <= changed and all(_is_told(trial / name) for name in names):
      return "unread", said
    return "SILENT", sorted(different)[:4]
  return ("rebuilt" if said else "harmless"), said


def _is_told(path: pathlib.Path) -> bool:
  """Whether its reader says that a file is damaged."""
  try:
    readers.read(path)
  except Damaged:
    return True
  return False


def unseen_defects(scene: Scene, whole: Whole) -> list[str]:
  """The planted defects that are not seen, or seen where they are not."""
  found = []
  for name, defect in DEFECTS.items():
    for planted in (False, True):
      trial = _trial(scene, _OF_DEFECT.get(name, "stopped0"))
      defect.change(trial)
      with defect.plant() if planted else contextlib.nullcontext():
        ended, said = judged(scene, trial, whole)
      print(f"{name}{'' if planted else ', not planted'}: {ended}: {' '.join(said)[:300]}", flush=True)
      if ended not in (("SILENT", "BROKEN") if planted else (defect.without,)):
        found.append(f"{name}{'' if planted else ', not planted'}: {ended}")
  return found


def grouped(flips: Mapping[int, Flip], together: int) -> list[list[int]]:
  """The numbers of flips that are done together: those of one stopped run; of an ended one each is alone."""
  found: list[list[int]] = []
  for run in sorted({flip.run for flip in flips.values()}):
    mine = [number for number, flip in flips.items() if flip.run == run]
    found += [list(group) for group in itertools.batched(mine, 1 if run == WHOLE else together)]
  return found


def reference(scene: Scene) -> Whole:
  """Of the run that was never touched."""
  trial = _trial(scene, WHOLE)
  return Whole(scene.runs.held(trial, "told"), expect(scene.runs.reread(trial, "done"), 0).out)


def _trial(scene: Scene, run: str) -> pathlib.Path:
  """A copy of a run, with the caches as they were."""
  _copied(scene.folder / "cache", scene.runs.cache)
  return _copied(scene.folder / run, scene.folder / "trial")


def _is_read(parent: pathlib.Path, path: pathlib.Path) -> bool:
  parts = path.relative_to(parent).parts
  return parts[0] not in _UNREAD and not any(part.endswith((".lock", ".owner", ".tmp")) for part in parts)


def _copied(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
  shutil.rmtree(target, ignore_errors=True)
  return pathlib.Path(shutil.copytree(source, target))


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--folder", type=pathlib.Path, required=True, help="where runs and results go")
  parser.add_argument("--count", type=int, default=300, help="flips in all")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--processes", type=numbers, default=(1,), help="of a run, at the starts in turn")
  parser.add_argument("--stops", help=f"where runs are stopped (default: {','.join(STOPS)}; with several processes "
                      f"{','.join(STOPS_OF_SEVERAL)})")
  parser.add_argument("--together", type=int, default=5, help="flips of a start, where the run is a stopped one")
  parser.add_argument("--cold", type=int, default=10, help="every so-manieth start is a process of its own")
  parser.add_argument("--defects", action="store_true", help="plant defects too")
  flags = parser.parse_args()
  folder = flags.folder.absolute()
  folder.mkdir(parents=True, exist_ok=True)
  forked.prepare(folder / "compiled")
  stops = flags.stops.split(",") if flags.stops else STOPS if flags.processes == (1,) else STOPS_OF_SEVERAL
  scene = make_scene(Runs(folder / "world", folder, flags.processes), tuple(stops))
  results = folder / "results.jsonl"
  whole = reference(scene)
  done = {row["number"]: row for row in map(json.loads, results.read_text().splitlines())} if results.exists() else {}
  flips = {number: draw(scene, random.Random(f"{flags.seed} {number}")) for number in range(flags.count)}
  groups = grouped({number: flip for number, flip in flips.items() if number not in done}, flags.together)
  starts = len({row["start"] for row in done.values()})
  while groups:
    group, starts = groups.pop(0), starts + 1
    cold = starts % flags.cold == 0
    found = outcomes(scene, [flips[number] for number in group], whole, starts, cold)
    if not found:
      print(f"{len(group)} flips of {flips[group[0]].run} go alone, as not all ended as without any", flush=True)
      groups[:0] = [[number] for number in group]
    for number, (ended, said) in zip(group, found):
      flip = flips[number]
      done[number] = {"number": number, "outcome": ended, "said": said, "start": starts, "cold": cold,
                      "processes": scene.runs.count(starts), **dataclasses.asdict(flip)}
      with results.open("a") as file:
        file.write(json.dumps(done[number]) + "\n")
      print(f"{len(done)}: {ended}{' (cold)' * cold}: {flip.run}, {'cache, ' * flip.cached}{flip.file}, "
            f"byte {flip.at}: {said}", flush=True)
  counts = collections.Counter(row["outcome"] for row in done.values())
  print(f"{len(done)} flips, {starts} starts, {starts // flags.cold} of them cold: "
        + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
  unseen = unseen_defects(scene, whole) if flags.defects else []
  if flags.defects:
    print(f"{len(DEFECTS)} defects: {'; '.join(unseen) or 'all seen'}")
  sys.exit(bool(counts["SILENT"] + counts["BROKEN"]) or bool(unseen))


if __name__ == "__main__":
  main()
