"""How much memory this process may still take."""

import math
import pathlib


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
