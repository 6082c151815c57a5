"""Verification as built against one row for each (candidate, anchor), on real text with SmolLM2-135M.

  python -m benchmarks.verification [--json=results.json]

As built: one row for each (candidate, root) reads all anchors of the root, and the entropy before is one more row
of the same bucket. The plain way: a row for each (candidate, anchor) and one for each anchor alone. Both use the
same scoring program, rows and batches of the same size; gains must agree to the rounding of bfloat16 and the
verdicts at epsilon 0.2 must be the same. Takes about three minutes on two CPU cores.
"""

import argparse
import json
import pathlib
import time

import numpy as np

from policylong import config as config_lib
from policylong.devices.mesh import make_mesh
from policylong.model import hf
from policylong.model.tokenizer import load_tokenizer
from policylong.screening.anchors import find_anchors
from policylong.screening.scorer import Row, Scorer
from policylong.screening.verify import Pair, verify

MATERIAL = pathlib.Path("material")
EPSILON = 0.2
ROOTS, CANDIDATES, ANCHORS, ROOT_TOKENS, CHUNK_TOKENS = 2, 5, 6, 192, 384


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--json", help="also write the numbers to this file")
  arguments = parser.parse_args()
  path = MATERIAL / "smollm2.gguf"
  model, tokenizer = hf.read_model_config(path), load_tokenizer(path)
  mesh = make_mesh(config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1))
  scorer = Scorer(hf.load_params(path, model, np.dtype(np.float32)), model, mesh, dtype="bfloat16",
                  tokens_per_batch=1536, bucket_multiple=128)
  pairs = example(scorer, tokenizer)
  seconds, gains = {}, {}
  for name, way in (("as built", as_built), ("plain", plain)):
    way(scorer, pairs)  # compiles
    start = time.perf_counter()
    gains[name] = way(scorer, pairs)
    seconds[name] = time.perf_counter() - start
  verdicts = {name: gain > EPSILON for name, gain in gains.items()}
  different = verdicts["plain"] != verdicts["as built"]
  results = {
      "ratio": seconds["plain"] / seconds["as built"], "seconds": seconds, "verdicts": len(gains["plain"]),
      "accepted": int(verdicts["plain"].sum()), "different_verdicts": int(different.sum()),
      "largest_difference_in_gain": float(np.abs(gains["plain"] - gains["as built"]).max())}
  print(f"{results['ratio']:.1f} times as fast: {seconds['as built']:.1f} s against {seconds['plain']:.1f} s for "
        f"{results['verdicts']} (candidate, anchor) verdicts, {results['accepted']} accepted; "
        f"{results['different_verdicts']} verdicts differ, gains by at most "
        f"{results['largest_difference_in_gain']:.1e}")
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


def example(scorer, tokenizer) -> list[Pair]:
  """Passages of speeches as roots, passages of the speeches a year later as candidates."""
  speeches = sorted((MATERIAL / "sotu").glob("19[5-9]*.txt"))
  tokens = [np.asarray(tokenizer(path.read_text()[:40_000]).input_ids, np.int32) for path in speeches[:2 * ROOTS]]
  pairs = []
  for r in range(ROOTS):
    root = tokens[2 * r][500:500 + ROOT_TOKENS]
    ((entropy, _),) = scorer.traces([root])
    positions, _ = find_anchors(entropy, alpha=1.0, skip_tokens=16, most=ANCHORS)
    for c in range(CANDIDATES):
      chunk = tokens[2 * r + 1][c * 700:c * 700 + CHUNK_TOKENS - 30 * c]
      pairs.append(Pair(f"root{r}", root, positions.astype(np.int32), chunk))
  return pairs


def as_built(scorer, pairs) -> np.ndarray:
  """Gains of all (candidate, anchor), in the order of the pairs and their anchors."""
  scores = verify(scorer, pairs, ANCHORS)
  return np.concatenate([(read.entropy_before - read.entropy_after) / read.entropy_before for read in scores])


def plain(scorer, pairs) -> np.ndarray:
  """The same gains, each from two rows of its own."""
  rows = []
  for pair in pairs:
    for t in pair.positions:
      window, shift = pair.root[:t + 1], len(pair.chunk)
      bucket = scorer.bucket(shift + len(window))
      rows.append(Row(np.concatenate([pair.chunk, window]), np.array([t + shift], np.int32), bucket))
      rows.append(Row(window, np.array([t], np.int32), bucket))
  values = np.concatenate([entropy for entropy, _ in scorer.likelihoods(rows, 1)]).reshape(-1, 2)
  return (values[:, 1] - values[:, 0]) / values[:, 1]


if __name__ == "__main__":
  main()
