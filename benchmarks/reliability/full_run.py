"""tests.small_run on a disk that gets full at one point, and stays so.

  python -m benchmarks.reliability.full_run POINT BALLAST ...flags of policylong.main...

POINT is one of `POINTS`; BALLAST is a file that takes all the room that is left when it is reached, on a disk of its
own; "" has the point raise what the system would. Of several processes the first one to be there has the disk full for
all.
"""

import errno
import fnmatch
import functools
import os
import pathlib
import runpy
import sys
from collections.abc import Callable

from etils import epath

# Files that `storage.workdir` writes: the stages of a run and its evaluation, in the order in which they come, and of
# shards the next one, whichever process has it.
_WRITTEN = ("config.json", "base_model.json", "corpus.json", "results.json", "scan-*.parquet", "candidates-*.parquet",
            "plan-*.json", "verify-*.parquet", "verdicts.parquet", "judged.json", "negatives.parquet",
            "sequences.parquet", "screened.json", "DONE.json", "offpolicy.parquet", "final.json", "index.html")
# What others write: the caches, array_record, TensorStore, a growing file.
_CALLED = {"the corpus cache": ("policylong.corpus.builder", "build"),
           "the index cache": ("policylong.loop", "open_index"),
           "the sequences": ("policylong.synthesis.storage", "_Shard"),
           "metrics.jsonl": ("policylong.training.metrics", "MetricsLog.write"),
           "a checkpoint": ("policylong.training.checkpoint", "Checkpoints.save")}
POINTS = (*_WRITTEN[:2], "the corpus cache", *_WRITTEN[2:4], "the index cache", *_WRITTEN[4:11], "the sequences",
          *_WRITTEN[11:13], "metrics.jsonl", "a checkpoint", *_WRITTEN[13:])


def install(point: str, full: Callable[[str], None]) -> None:
  """Calls `full` with a path before the first thing that is written at a point."""
  if point not in _CALLED:
    kind = type(epath.Path("/"))
    kind.write_bytes = _first(kind.write_bytes, full, lambda path, *_: fnmatch.fnmatch(path.name, f".{point}.tmp"))
    return
  module, names = _CALLED[point]
  *outer, name = names.split(".")
  owner = functools.reduce(getattr, outer, __import__(module, fromlist=["_"]))
  setattr(owner, name, _first(getattr(owner, name), full, lambda *_: True))


def fill(ballast: str, path: str) -> None:
  """Takes all room on the disk; without a ballast, raises what would be raised then."""
  if not ballast:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
  with open(ballast, "ab", buffering=0) as file:
    room = os.fstatvfs(file.fileno())
    if room.f_bavail:  # another process may have been here
      os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, room.f_bavail * room.f_frsize)


def _first(function, full, applies):
  met = []

  def wrapper(*arguments, **keywords):
    if not met and applies(*arguments):
      met.append(True)
      full(str(arguments[0]) if isinstance(arguments[0], os.PathLike) else "an output file")
    return function(*arguments, **keywords)
  return wrapper


if __name__ == "__main__":
  point, ballast = sys.argv[1:3]
  sys.argv[1:3] = [""]
  if ballast:
    pathlib.Path(ballast).unlink(missing_ok=True)
  install(point, functools.partial(fill, ballast))
  runpy.run_module("tests.small_run", run_name="__main__", alter_sys=True)
