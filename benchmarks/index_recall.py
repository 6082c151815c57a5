"""What half precision, fewer leaves and pieces cost: chunks found, against exact search in float32, on real texts.

  python -m benchmarks.index_recall speeches=material/sotu/*.txt wikipedia=material/wiki.jsonl [--json F]

Each corpus is cut into chunks as a run does it and embedded by all-MiniLM-L6-v2 (128 tokens of a chunk) and by hashed
n-grams; the queries are a thousand windows of about 30 words of it, not those that the trees were tuned on. `half` is
exact search among the rounded vectors that are kept on disk; `tree` is ScaNN as `retrieval.leaves` = sqrt(chunks) and
recall 0.95 make it, in one piece and in several. Ten minutes on one core, nearly all of it for the embedding.
"""

import argparse
import itertools
import json
import math
import pathlib
import tempfile

import numpy as np

from policylong import config as config_lib
from policylong import paths
from policylong.corpus.sources import source_at
from policylong.corpus.store import open_corpus
from policylong.errors import run_command
from policylong.retrieval.embedders import Embedder
from policylong.retrieval.exact import ExactIndex
from policylong.retrieval.hashed import HashedNgrams
from policylong.retrieval.minilm import MiniLM
from policylong.retrieval.pieces import PiecedIndex, piece_leaves
from policylong.retrieval.scann_index import ScannIndex, recall_of
from policylong.retrieval.store import sample_queries

# The candidates of an anchor, and what recall is tuned at.
TOP, K = 32, 10
PIECES = (1, 4, 8)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("corpora", nargs="+", metavar="NAME=FILES", help="a JSONL file, or text files by a pattern")
  parser.add_argument("--minilm", default="material/minilm", help="its folder (default: %(default)s)")
  parser.add_argument("--json", type=pathlib.Path, help="also write what was measured here")
  arguments = parser.parse_args()
  embedders = {"MiniLM": MiniLM(arguments.minilm, sha256="", max_tokens=128, batch=32),
               "hashed": HashedNgrams()}
  found = []
  for corpus in arguments.corpora:
    name, _, pattern = corpus.partition("=")
    for kind, embedder in embedders.items():
      found.append({"corpus": name, "embedder": kind, **measured(pattern, embedder)})
      print(json.dumps(found[-1]), flush=True)
  print(table(found))
  if arguments.json:
    arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def measured(pattern: str, embedder: Embedder) -> dict:
  """All numbers of a corpus and an embedder."""
  with tempfile.TemporaryDirectory() as folder:
    corpus = open_corpus(config_lib.Corpus(sources=(source_at("input", pattern),), root_sources=(), chunk_chars=2048,
                                           cache_dir=paths.Path(folder)))
    rows = embedder.embed_documents([corpus.chunk_text(row) for row in range(corpus.num_chunks)])
    asked, tuning = (embedder.embed_queries(sample_queries(corpus, 1000, seed)) for seed in (1, 0))
  half = rows.astype(np.float16)
  truth, scores = ExactIndex(rows).search(asked, TOP)
  rounded, rounded_scores = ExactIndex(half).search(asked, TOP)
  apart = np.abs(np.einsum("qd,qkd->qk", asked, half.astype(np.float32)[truth]) - scores)
  leaves = round(math.sqrt(len(rows)))
  result = {
      "chunks": len(rows), "dim": rows.shape[1], "queries": len(asked),
      "half": {"score_mean_difference": float(apart.mean()), "score_largest_difference": float(apart.max()),
               "recall_at_10": recall_of(rounded[:, :K], truth[:, :K]), "recall_at_32": recall_of(rounded, truth),
               "first_hit_kept": float((rounded[:, 0] == truth[:, 0]).mean())},
      # Neighbours in a list of hits that have the same score: equal texts, and what rounding made equal.
      "ties": {"float32": ties(scores), "half": ties(rounded_scores)},
      "tree": {}}
  for count in PIECES:
    bounds = [len(rows) * i // count for i in range(count + 1)]
    pieces = [ScannIndex.build(half[a:b], leaves=piece_leaves(b - a, len(rows), leaves), target_recall=0.95,
                               queries=tuning) for a, b in itertools.pairwise(bounds)]
    index = PiecedIndex(pieces)
    found = index.search(asked, TOP)[0]
    result["tree"][str(count)] = {
        "recall_at_10": recall_of(found[:, :K], truth[:, :K]), "recall_at_32": recall_of(found, truth),
        "leaves": sum(piece.leaves for piece in pieces), "leaves_to_search": sum(p.leaves_to_search for p in pieces)}
  return result


def ties(scores: np.ndarray) -> int:
  return int((np.diff(scores, axis=1) == 0).sum())


def table(found: list[dict]) -> str:
  """Markdown: what half precision changes, then the trees."""
  first = ["| corpus | embedder | chunks | score changes by, mean (most) | recall@10 | recall@32 | first hit kept | "
           "equal neighbours of 31,000: float32 (half) |", "|---|---|---|---|---|---|---|---|"]
  second = ["| corpus | embedder | pieces | recall@10 | recall@32 | leaves searched |", "|---|---|---|---|---|---|"]
  for one in found:
    name, half, same = f"| {one['corpus']} | {one['embedder']} |", one["half"], one["ties"]
    first.append(f"{name} {one['chunks']:,} | {half['score_mean_difference']:.1e} "
                 f"({half['score_largest_difference']:.1e}) | {half['recall_at_10']:.4f} | "
                 f"{half['recall_at_32']:.4f} | "
                 f"{half['first_hit_kept']:.1%} | {same['float32']} ({same['half']}) |")
    second += [f"{name} {count} | {tree['recall_at_10']:.3f} | {tree['recall_at_32']:.3f} | "
               f"{tree['leaves_to_search']} of {tree['leaves']} |" for count, tree in one["tree"].items()]
  return "\n".join([*first, "", *second])


if __name__ == "__main__":
  run_command(main)
