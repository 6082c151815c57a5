"""The worlds of benchmarks/screening.py: corpora with something to find, and one with little."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from configs import demo
from experiments.small_study.small import SIZE
from experiments.small_study.truth import Truth
from policylong import config as config_lib
from policylong.corpus.chunks import parse_chunk_id
from policylong.corpus.store import open_corpus
from policylong.corpus.texts import ChunkTokens
from policylong.devices.mesh import make_mesh
from policylong.model import hf
from policylong.model.tokenizer import load_tokenizer
from policylong.retrieval.embedders import make_embedder
from policylong.retrieval.store import open_index
from policylong.screening.retrieve import Retriever
from policylong.screening.scorer import Policy, Scorer
from policylong.screening.screen import Ground
from policylong.storage.workdir import Round

EVIDENCE = {"evidence": "entropy_and_loss", "loss_margin": None, "loss_margin_from_control": 0.02, "probe_share": 0.05}


@dataclasses.dataclass(frozen=True)
class World:
  """A corpus and who reads it. sequences: that training reads of a round; budget: of the side after.

  truth: what is true of the accepted verdicts of a round, in words; None where nobody knows.
  """
  ground: Ground
  policy: Policy
  sequences: int
  budget: float
  truth: Callable[[Round, Sequence[dict]], str] | None = None


def planted(folder: pathlib.Path) -> World:
  """The small study's letters and entries, and its base model."""
  SIZE.prepare()
  config = SIZE.get_config()
  config.screening.update({**EVIDENCE, "roots_per_round": 120, "roots_per_shard": 3, "top_k": 4, "control_chunks": 1})
  return dataclasses.replace(make(config, sequences=36, budget=4.0), truth=truth_of_letters)


def truth_of_letters(round_: Round, accepted: Sequence[dict]) -> str:
  """Of the accepted pairs: whether the chunk holds the told value at whose token it was accepted, or is its source."""
  known = Truth(SIZE.corpus)
  told = known.told(round_)
  holds, source, pairs = set(), set(), set()
  for row in accepted:
    pair = row["doc_id"], row["chunk_id"]
    pairs.add(pair)
    entry, value = told.get((row["doc_id"], row["position"]), (None, None))
    if value is not None and known.holds(row["chunk_id"], value):
      holds.add(pair)
    if parse_chunk_id(row["chunk_id"])[0] == entry:
      source.add(pair)
  return (f"{len(pairs)} positives, {len(holds) / len(pairs):.1%} hold the value that they were accepted for, "
          f"{len(source)} are its source")


def code(folder: pathlib.Path) -> World:
  """The demo's corpus."""
  return _of_the_demo(folder, demo.get_config().corpus.sources)


def speeches(folder: pathlib.Path) -> World:
  """A corpus with little to find: State of the Union speeches among encyclopaedia leads."""
  return _of_the_demo(folder, (
      {"name": "sotu", "kind": "text", "path": "material/sotu/[12][90]*.txt", "id_field": "", "text_field": "",
       "split": ""},
      {"name": "wiki", "kind": "jsonl", "path": "material/wiki-sample.jsonl", "id_field": "id", "text_field": "text",
       "split": ""}))


def _of_the_demo(folder: pathlib.Path, sources: tuple[dict, ...]) -> World:
  """The demo's policy and settings, over more roots; those of the first source."""
  config = demo.get_config()
  config.corpus.update({"sources": sources, "root_sources": (sources[0]["name"],), "cache_dir": str(folder / "cache")})
  config.screening.update({**EVIDENCE, "roots_per_round": 64, "roots_per_shard": 2, "top_k": 4, "control_chunks": 1})
  return make(config, sequences=12, budget=3.0)


def make(values, sequences: int, budget: float) -> World:
  """The parts of a run, as policylong/loop.py makes them."""
  config = config_lib.parse(values)
  mesh = make_mesh(dataclasses.replace(config.mesh, data=-1, fsdp=1, context=1, tensor=1, simulated_devices=0))
  model = hf.read_model_config(config.model.path).with_rope(
      theta=config.model.rope_theta, yarn_factor=config.model.yarn_factor)
  tokenizer, corpus = load_tokenizer(config.model.path), open_corpus(config.corpus)
  embedder = make_embedder(config.retrieval)
  index = open_index(corpus, embedder, config.retrieval, config.corpus.cache_dir, config.seed)
  chunk_tokens = ChunkTokens(corpus, tokenizer, config.synthesis.separator, config.screening.max_chunk_tokens)
  tokens = sequences * config.synthesis.sequence_length
  ground = Ground(config.screening, config.synthesis, tokens, tokens, config.seed,
                  config.corpus.root_sources, corpus, tokenizer, chunk_tokens,
                  Retriever(config.screening, config.seed, corpus, embedder, index, chunk_tokens))
  scorer = Scorer(hf.load_params(config.model.path, model, np.float32, mesh), model, mesh,
                  dtype=config.model.scoring_dtype, tokens_per_batch=config.screening.tokens_per_batch,
                  bucket_multiple=config.screening.bucket_multiple)
  return World(ground, Policy(0, scorer), sequences, budget)


WORLDS = {"planted": planted, "code": code, "speeches": speeches}
