"""The retrieval index alone: over the documents of a JSONL file, without a policy.

  python -m policylong.index build --input=F.jsonl --output=DIR
  python -m policylong.index search --index=DIR --query="who built the canal" --k=5
  python -m policylong.index search --index=DIR --queries=Q.jsonl

Input: one {"id": ..., "text": ...} a line. `search` prints, best first, the cosine, the document, the
characters of it that the chunk is, and how the chunk begins. A build that was killed goes on when it is
started again.
"""

import argparse
import dataclasses
import pathlib
from typing import Any

from policylong import config as config_lib
from policylong import paths
from policylong.corpus.sources import read_source, source_at
from policylong.corpus.store import Corpus, open_corpus
from policylong.errors import UserError, run_command
from policylong.retrieval.embedders import Embedder, make_embedder
from policylong.retrieval.index import VectorIndex
from policylong.retrieval.pieces import PiecedIndex
from policylong.retrieval.scann_index import ScannIndex
from policylong.retrieval.store import open_index
from policylong.storage import hub
from policylong.storage.workdir import read_json, write_json

_SETTINGS = "index.json"
_SNIPPET = 160
# The flags of `build` by the fields that they set, whose bounds are config.py's.
_FLAGS = {"retrieval.embedder_max_tokens": "--max-tokens", "retrieval.embedder_batch": "--batch",
          "retrieval.dim": "--dim", "retrieval.leaves": "--leaves", "retrieval.target_recall": "--target-recall",
          "retrieval.piece_gib": "--piece-gib", "corpus.chunk_chars": "--chunk-chars",
          "retrieval.embedder": "--embedder"}


def build(arguments: argparse.Namespace) -> None:
  """Reads the documents, embeds their chunks, builds the index, and remembers how."""
  output = pathlib.Path(arguments.output)
  retrieval, corpus_config = _configs(arguments)
  retrieval = dataclasses.replace(retrieval, embedder_path=hub.folder(retrieval.embedder_path))
  corpus = open_corpus(corpus_config)
  index = open_index(corpus, make_embedder(retrieval), retrieval, output, arguments.seed)
  write_json(output / _SETTINGS, {"corpus": corpus.version, "seed": arguments.seed,
                                  "retrieval": dataclasses.asdict(retrieval)})
  print(f"{corpus.num_chunks:,} chunks of {corpus.num_documents:,} documents -> {output} ({_describe(index)})")
  if corpus.bad_records:
    print("skipped: " + ", ".join(f"{count} {reason}" for reason, count in sorted(corpus.bad_records.items())))


def _configs(arguments: argparse.Namespace) -> tuple[config_lib.Retrieval, config_lib.Corpus]:
  """What `build` was told; a flag out of its bounds is bad usage."""
  source = source_at("input", str(arguments.input))
  try:
    return config_lib.Retrieval(
        embedder=arguments.embedder, embedder_path=arguments.embedder_path, embedder_sha256=arguments.embedder_sha256,
        embedder_max_tokens=arguments.max_tokens, embedder_batch=arguments.batch,
        query_instruction=arguments.instruction, dim=arguments.dim, index=arguments.index, leaves=arguments.leaves,
        target_recall=arguments.target_recall, piece_gib=arguments.piece_gib), config_lib.Corpus(
            sources=(source,), root_sources=(), chunk_chars=arguments.chunk_chars,
            cache_dir=paths.Path(arguments.output), prepared=None)
  except config_lib.ConfigError as error:
    sentence = str(error)
    for field, flag in _FLAGS.items():
      sentence = sentence.replace(field, flag)
    arguments.refuse(sentence)
    raise


def search(arguments: argparse.Namespace) -> None:
  """Prints the best chunks of each query."""
  corpus, embedder, index = open_built(arguments.index)
  if arguments.queries is None:
    queries = [("", arguments.query)]
  else:
    queries = [(reading.document.id.removeprefix("input/"), reading.document.text)
               for reading in read_source(source_at("input", str(arguments.queries))) if reading.document]
    if not queries:
      raise UserError(f'{arguments.queries} has no query: every line must be {{"id": ..., "text": ...}}')
  rows, scores = index.search(embedder.embed_queries([text for _, text in queries]), arguments.k)
  for (identifier, text), found, values in zip(queries, rows.tolist(), scores.tolist()):
    if identifier:
      print(f"# {identifier}: {_snippet(text)}")
    for rank, (row, score) in enumerate(zip(found, values), start=1):
      if row >= 0:
        chunk = corpus.chunk(row)
        print(f"{rank:3d}  {score:.4f}  {chunk.doc_id.removeprefix('input/')}[{chunk.start}:{chunk.end}]  "
              f"{_snippet(corpus.chunk_text(row))}")


def open_built(directory: str | pathlib.Path) -> tuple[Corpus, Embedder, VectorIndex]:
  """What `build` left in a folder; its input is not needed any more, the embedder's files are.

  Raises:
    UserError: no finished build is there, it is damaged, or the embedder's files are gone.
  """
  directory = pathlib.Path(directory)
  if not (directory / _SETTINGS).exists():
    raise UserError(f"{directory} has no {_SETTINGS}: make it with `python -m policylong.index build`")
  settings = read_json(directory / _SETTINGS)
  try:
    retrieval = config_lib.Retrieval(**settings["retrieval"])
    version, seed = settings["corpus"], settings["seed"]
  except (KeyError, TypeError) as error:
    raise UserError(f"{directory / _SETTINGS} does not hold the settings of an index ({error!r})") from error
  embedder = make_embedder(retrieval)
  corpus = Corpus(directory / f"corpus-{version}")
  return corpus, embedder, open_index(corpus, embedder, retrieval, directory, seed)


def _describe(index: VectorIndex) -> str:
  if isinstance(index, PiecedIndex):
    return f"{len(index.pieces)} pieces, the first: {_describe(index.pieces[0])}"
  if not isinstance(index, ScannIndex):
    return "exact search"
  if not index.leaves:
    return "ScaNN, brute force"
  point = next(point for point in index.curve if point["leaves"] == index.leaves_to_search)
  return (f"ScaNN, {index.leaves_to_search} of {index.leaves} leaves searched, recall@10 {point['recall']:.3f} at "
          f"{point['queries_per_second']:,.0f} queries/s")


def _snippet(text: str) -> str:
  text = " ".join(text.split())
  return text if len(text) <= _SNIPPET else text[:_SNIPPET] + " ..."


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest="command", required=True)
  with_defaults: dict[str, Any] = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}

  builder = commands.add_parser("build", help="embed the documents of a JSONL file", **with_defaults)
  builder.add_argument("--input", type=paths.flag, required=True, help="JSONL file, {id, text} a line")
  builder.add_argument("--output", type=paths.flag, required=True,
                       help="folder for the chunks, their vectors and the index")
  builder.add_argument("--embedder", choices=("minilm", "qwen3", "hashed"), default="minilm", help="what embeds")
  builder.add_argument("--embedder-path", type=paths.flag, default="material/minilm",
                       help="folder of its weights and tokenizer")
  builder.add_argument("--embedder-sha256", default="", help="wanted hash of its weights; empty: any")
  builder.add_argument("--max-tokens", type=int, default=256, help="longer texts are cut")
  builder.add_argument("--batch", type=int, default=8, help="texts of --max-tokens that a device embeds at once")
  builder.add_argument("--instruction", default="", help="what a query asks for; qwen3 only")
  builder.add_argument("--dim", type=int, help="numbers of a vector that are kept; None: all; qwen3 and hashed only")
  builder.add_argument("--index", choices=("scann", "exact"), default="scann", help="how it is searched")
  builder.add_argument("--leaves", type=int, help="ScaNN leaves; None: about sqrt(chunks) from 20,000 chunks on")
  builder.add_argument("--target-recall", type=float, default=0.95, help="recall@10 that a tree is tuned to")
  builder.add_argument("--piece-gib", type=float, default=16.0,
                       help="memory that building a piece of ScaNN's index may take, GiB")
  builder.add_argument("--chunk-chars", type=int, default=2048, help="characters of whole paragraphs in a chunk")
  builder.add_argument("--seed", type=_natural, default=0, help="chooses the queries for the tuning")
  builder.set_defaults(run=build, refuse=builder.error)

  searcher = commands.add_parser("search", help="print the best chunks", **with_defaults)
  searcher.add_argument("--index", type=paths.flag, required=True, help="folder that build wrote")
  what = searcher.add_mutually_exclusive_group(required=True)
  what.add_argument("--query", help="one query")
  what.add_argument("--queries", type=paths.flag, help="JSONL file of queries, {id, text} a line")
  searcher.add_argument("--k", type=_positive, default=5, help="chunks for each query")
  searcher.set_defaults(run=search)
  return parser


def _positive(text: str) -> int:
  if (value := int(text)) < 1:
    raise argparse.ArgumentTypeError(f"{value} is not at least 1")
  return value


def _natural(text: str) -> int:
  if (value := int(text)) < 0:
    raise argparse.ArgumentTypeError(f"{value} is not at least 0")
  return value


def main() -> None:
  """The command."""
  arguments = _parser().parse_args()
  arguments.run(arguments)


if __name__ == "__main__":
  run_command(main)
