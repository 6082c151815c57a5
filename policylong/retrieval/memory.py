"""How much memory this process may still take, and how much an index does.

What ScaNN takes was measured by `python -m benchmarks.index_memory` (ScaNN 1.4.2; docs/retrieval.md has the numbers).
"""

import ctypes
import math
import pathlib

# Bytes of memory for each number of a row at the peak of building a tree, the vectors included, and those of the
# first 100,000 rows more, as so many are sampled to train it.
_BUILD_NUMBER, _SAMPLED_NUMBER, _SAMPLED = 15.5, 8, 100_000
# And while it is searched (bfloat16, half a byte of quantised products), and for each row: which leaf it is in.
_SEARCH_NUMBER, _SEARCH_ROW = 2.82, 8
# Where all rows are compared: float32, and a copy while it is built.
_BRUTE_FORCE_NUMBER = 4


def build_bytes(rows: int, dim: int, leaves: int) -> int:
  """Memory at the peak of building a ScaNN index, 0 leaves being brute force."""
  if not leaves:
    return 2 * _BRUTE_FORCE_NUMBER * rows * dim
  return int(dim * (_BUILD_NUMBER * rows + _SAMPLED_NUMBER * min(rows, _SAMPLED)))


def rows_of_build(bytes_: float, dim: int) -> int:
  """The rows of which a tree can be built in so much memory."""
  few = round(bytes_ / dim / (_BUILD_NUMBER + _SAMPLED_NUMBER))
  return few if few <= _SAMPLED else round((bytes_ / dim - _SAMPLED_NUMBER * _SAMPLED) / _BUILD_NUMBER)


def search_bytes(rows: int, dim: int, leaves: int) -> int:
  """Memory of a ScaNN index that is searched; its files are a tenth smaller."""
  return int(rows * (_SEARCH_NUMBER * dim + _SEARCH_ROW)) if leaves else _BRUTE_FORCE_NUMBER * rows * dim


def give_back() -> None:
  """Gives the system what was freed; glibc keeps it else (measured: 9 of the 16 bytes a number that a build took)."""
  if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
    trim(0)


def available_bytes() -> float:
  """Free bytes of the machine or of its control group, the smaller; infinity where the system does not say."""
  return min(_machine(), _group())


def _machine(path: pathlib.Path = pathlib.Path("/proc/meminfo")) -> float:
  try:
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return float(lines["MemAvailable"].split()[0]) * 1024
  except (OSError, KeyError, ValueError):
    return math.inf


def _group(path: pathlib.Path = pathlib.Path("/sys/fs/cgroup")) -> float:
  """Of a container; inactive file pages count as free, as the kernel drops them first."""
  try:
    limit = (path / "memory.max").read_text().strip()
    used = float((path / "memory.current").read_text())
    cached = dict(line.split() for line in (path / "memory.stat").read_text().splitlines()).get("inactive_file", 0)
    return math.inf if limit == "max" else float(limit) - used + float(cached)
  except (OSError, ValueError):
    return math.inf
