"""ScaNN against our exact search and numpy: recall@10 and queries a second, one run, one machine.

  python -m benchmarks.retrieval [--rows 100000] [--dim 384] [--rows-from runs/cache/rows-X] [--json F]

Rows and queries are clustered vectors of length 1 (a query is a row with noise), or with --rows-from the vectors
of a real corpus, as `policylong.retrieval.store` keeps them, with rows and noise as queries.
Every method gets the same queries in one call and answers the ten best; the best of three calls counts.
The truth is float64 numpy. About a minute for 100,000 x 384 on two idle cores.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable

import numpy as np

from policylong.errors import UserError, run_command
from policylong.retrieval.exact import ExactIndex
from policylong.retrieval.scann_index import ScannIndex, recall_of

K = 10


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rows", type=int, default=100_000, help="made-up rows (default: %(default)s)")
  parser.add_argument("--dim", type=int, default=384, help="their dimension (default: %(default)s)")
  parser.add_argument("--rows-from", type=pathlib.Path, help="folder of vectors (00000.npz ...) to use instead")
  parser.add_argument("--leaves", type=int, help="ScaNN leaves (default: sqrt(rows), brute force below 20,000)")
  parser.add_argument("--queries", type=int, default=1000, help="how many (default: %(default)s)")
  parser.add_argument("--json", type=pathlib.Path, help="also write the results here")
  arguments = parser.parse_args()
  rows = stored(arguments.rows_from) if arguments.rows_from else clustered(arguments.rows, arguments.dim)
  results = compare(rows, noisy(rows, arguments.queries, seed=1), noisy(rows, 1000, seed=2), arguments.leaves)
  print(table(results))
  if arguments.json:
    arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def compare(rows: np.ndarray, queries: np.ndarray, tuning: np.ndarray, leaves: int | None) -> dict:
  """Every method over the same rows [N, D] and queries [n, D]; ScaNN is tuned on other queries."""
  truth = best_ten(rows.astype(np.float64), queries.astype(np.float64))
  started = time.perf_counter()
  scann = ScannIndex.build(rows, leaves=leaves, target_recall=0.95, queries=tuning)
  build_seconds = time.perf_counter() - started
  exact = ExactIndex(rows)
  methods: dict[str, Callable[[], np.ndarray]] = {
      "numpy float32": lambda: best_ten(rows, queries),
      "exact": lambda: exact.search(queries, K)[0],
      "scann": lambda: scann.search(queries, K)[0],
  }
  results = {"rows": len(rows), "dim": rows.shape[1], "queries": len(queries), "leaves": scann.leaves,
             "leaves_to_search": scann.leaves_to_search, "scann_build_and_tune_seconds": build_seconds,
             "methods": {name: measure(search, truth) for name, search in methods.items()}}
  rate = {name: method["queries_per_second"] for name, method in results["methods"].items()}
  return {"scann_over_exact": rate["scann"] / rate["exact"],
          "scann_over_numpy": rate["scann"] / rate["numpy float32"], **results}


def measure(search: Callable[[], np.ndarray], truth: np.ndarray) -> dict:
  search()  # compiles, starts threads
  seconds = []
  for _ in range(3):
    started = time.perf_counter()
    found = search()
    seconds.append(time.perf_counter() - started)
  return {"recall_at_10": recall_of(found, truth), "queries_per_second": len(truth) / min(seconds)}


def best_ten(rows: np.ndarray, queries: np.ndarray, block: int = 100) -> np.ndarray:
  """What one writes with numpy: a matmul, a partial sort, a sort of ten."""
  found = []
  for start in range(0, len(queries), block):
    scores = queries[start:start + block] @ rows.T
    best = np.argpartition(scores, -K, axis=1)[:, -K:]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
    found.append(np.take_along_axis(best, order, axis=1))
  return np.concatenate(found)


def clustered(count: int, dim: int) -> np.ndarray:
  """Around count / 50 centres, which themselves lie in clusters."""
  rng = np.random.default_rng(0)
  centres = rng.standard_normal((20, dim))[rng.integers(20, size=max(1, count // 50))]
  centres = centres + rng.standard_normal(centres.shape)
  return unit(centres[rng.integers(len(centres), size=count)] + 0.7 * rng.standard_normal((count, dim)))


def noisy(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Rows with noise of 0.7 times their length: a text about a chunk, not the chunk."""
  rng = np.random.default_rng(seed)
  chosen = rows[rng.integers(len(rows), size=count)]
  return unit(chosen + 0.7 * rng.standard_normal(chosen.shape) / np.sqrt(rows.shape[1]))


def unit(vectors: np.ndarray) -> np.ndarray:
  return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def stored(directory: pathlib.Path) -> np.ndarray:
  paths = sorted(directory.glob("[0-9]*.npz"))
  if not paths:
    raise UserError(f"{directory} holds no vectors (00000.npz ...): give a rows-<version> folder of a cache_dir")
  return np.concatenate([np.load(path, allow_pickle=False)["rows"] for path in paths]).astype(np.float32)


def table(results: dict) -> str:
  lines = [f"ScaNN answers {results['scann_over_exact']:.1f} x as many queries a second as exact search and "
           f"{results['scann_over_numpy']:.1f} x as many as numpy",
           f"{results['rows']:,} rows x {results['dim']}, {results['queries']:,} queries; "
           f"{results['leaves_to_search']} of {results['leaves']} leaves, built and tuned in "
           f"{results['scann_build_and_tune_seconds']:.1f} s",
           "", f"{'':16s}{'recall@10':>10s}{'queries/s':>12s}"]
  for name, method in results["methods"].items():
    lines.append(f"{name:16s}{method['recall_at_10']:10.3f}{method['queries_per_second']:12,.0f}")
  return "\n".join(lines)


if __name__ == "__main__":
  run_command(main)
