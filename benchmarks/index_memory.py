"""Memory of the index a chunk: at the peak of building a piece, while it is searched, and on disk.

  python -m benchmarks.index_memory [--dims 64 128 256] [--rows 50000 100000 200000] [--json docs/index_memory.json]

Each size is built and opened as `policylong.retrieval.store` does it, from made-up vectors of length 1 in half
precision, each in two processes of its own: one builds, one searches. A process's memory is the most that it held over
what it held before (Linux: VmHWM). Least squares through the sizes say what of it grows with the numbers of all rows,
what with those of the 100,000 that ScaNN samples at most, what with the rows, and what does not grow: the numbers of
`policylong/retrieval/memory.py` are from there. About five minutes on two cores, with 2 GB.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from policylong.errors import run_command

# Rows that ScaNN trains a tree and its quantiser on, at most: its own default.
SAMPLED = 100_000


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--dims", type=int, nargs="+", default=(64, 128, 256), help="numbers of a vector")
  parser.add_argument("--rows", type=int, nargs="+", default=(50_000, 100_000, 200_000), help="vectors")
  parser.add_argument("--json", type=pathlib.Path, help="also write what was measured here")
  parser.add_argument("--one", nargs=4, metavar=("WHAT", "ROWS", "DIM", "FOLDER"), help="measure this in this process")
  arguments = parser.parse_args()
  if arguments.one:
    what, rows, dim, folder = arguments.one
    print(json.dumps({"build": build, "search": search}[what](int(rows), int(dim), pathlib.Path(folder))))
    return
  found = [measured(rows, dim) for dim in arguments.dims for rows in arguments.rows]
  kinds = ("build_bytes", "search_bytes", "disk_bytes")
  result = {"sizes": found, "bytes": {kind: fitted(found, kind) for kind in kinds}}
  print(table(result))
  if arguments.json:
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def measured(rows: int, dim: int) -> dict:
  """One size, each half of it in a process of its own."""
  with tempfile.TemporaryDirectory() as folder:
    parts = [json.loads(subprocess.run(
        [sys.executable, "-m", "benchmarks.index_memory", "--one", what, str(rows), str(dim), f"{folder}/index"],
        check=True, capture_output=True, text=True).stdout.splitlines()[-1]) for what in ("build", "search")]
  print(f"{rows:,} x {dim}: {parts}", file=sys.stderr, flush=True)
  return {"rows": rows, "dim": dim, **parts[0], **parts[1]}


def build(rows: int, dim: int, folder: pathlib.Path) -> dict:
  """The peak of a tree's build, its vectors in half precision included, and its files."""
  from policylong.retrieval.scann_index import ScannIndex
  half, queries = vectors(rows, dim), vectors(1000, dim, seed=1).astype(np.float32)
  warm_up(dim)
  before, began = rest() - half.nbytes, time.perf_counter()
  index = ScannIndex.build(half, leaves=round(rows ** 0.5), target_recall=0.95, queries=queries)
  seconds = time.perf_counter() - began
  index.save(folder, "made-up vectors")
  return {"build_bytes": peak() - before, "build_seconds": round(seconds, 1), "leaves": index.leaves,
          "leaves_to_search": index.leaves_to_search,
          "disk_bytes": sum(path.stat().st_size for path in folder.iterdir())}


def search(rows: int, dim: int, folder: pathlib.Path) -> dict:
  """What an opened index holds, while queries are answered."""
  from policylong.retrieval.scann_index import ScannIndex
  queries = vectors(1024, dim, seed=2).astype(np.float32)
  warm_up(dim)
  before = rest()
  index = ScannIndex.load(folder, "made-up vectors")
  index.search(queries, 10)
  began = time.perf_counter()
  index.search(queries, 32)
  return {"search_bytes": peak() - before, "queries_per_second": round(len(queries) / (time.perf_counter() - began))}


def warm_up(dim: int) -> None:
  """What any process has that searches at all: libraries, threads, a compiled program of exact search."""
  from policylong.retrieval.scann_index import ScannIndex
  few = vectors(2000, dim, seed=3)
  ScannIndex.build(few, leaves=40, target_recall=0.95, queries=few[:1000].astype(np.float32)).search(
      few.astype(np.float32), 10)


def vectors(rows: int, dim: int, seed: int = 0) -> np.ndarray:
  """float16[rows, dim] of length 1, in clusters, made a few at a time."""
  rng, centres = np.random.default_rng(seed), np.random.default_rng(99).standard_normal((1000, dim))
  out = np.empty((rows, dim), np.float16)
  for start in range(0, rows, 4096):
    count = min(4096, rows - start)
    part = centres[rng.integers(1000, size=count)] + 0.7 * rng.standard_normal((count, dim))
    out[start:start + count] = part / np.linalg.norm(part, axis=1, keepdims=True)
  return out


def rest() -> int:
  """The bytes that are held now, from which on the peak counts."""
  from policylong.retrieval import memory
  memory.give_back()
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  return status("VmRSS")


def peak() -> int:
  return status("VmHWM")


def status(name: str) -> int:
  lines = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
  return int(lines[name].split()[0]) * 1024


def fitted(found: list[dict], kind: str) -> dict:
  """What a size's bytes are made of, by least squares of the relative error."""
  values = np.array([size[kind] for size in found], float)
  of = {"number": lambda rows, dim: rows * dim, "fixed": lambda rows, dim: 1}
  of |= ({"sampled_number": lambda rows, dim: min(rows, SAMPLED) * dim} if kind == "build_bytes" else
         {"row": lambda rows, dim: rows})
  terms = np.array([[term(size["rows"], size["dim"]) for term in of.values()] for size in found], float)
  weights, *_ = np.linalg.lstsq(terms / values[:, None], np.ones(len(values)), rcond=None)
  worst = float(np.abs(terms @ weights / values - 1).max())
  return {name: round(float(weight), 2) for name, weight in zip(of, weights)} | {"worst_error": round(worst, 3)}


def table(result: dict) -> str:
  lines = ["| rows | numbers | build, bytes a number | search, bytes a number | on disk, bytes a number | built in s |",
           "|---|---|---|---|---|---|"]
  for size in result["sizes"]:
    numbers = size["rows"] * size["dim"]
    lines.append(f"| {size['rows']:,} | {size['dim']} | " + " | ".join(
        f"{size[kind] / numbers:.2f}" for kind in ("build_bytes", "search_bytes", "disk_bytes"))
                 + f" | {size['build_seconds']} |")
  lines += ["", *(f"{kind}: {found}" for kind, found in result["bytes"].items())]
  return "\n".join(lines)


if __name__ == "__main__":
  run_command(main)
