"""The on-policy loop: each round, the current policy chooses what it trains on next.

  for each round:
    policy    = the newest checkpoint (the base model at first)
    screening : scan the round's roots, retrieve for their anchors, verify, take hard negatives
    synthesis : shuffle positives and negatives in front of each root, exactly L tokens
    training  : next-token loss on every token of these sequences (with document masking: on all but the first of
                each document, which nothing of its own predicts; `long_gap` may choose among them)
    evaluation: benchmarks of the new policy (and, before the first round, of the base model)

With `config.max_staleness` 1 a round is screened before the one before it is trained, by the policy from before that:
what a run does whose screening goes on beside training. (Here they still take turns; what it costs in quality shows.)

`config.method` says how sequences are made (`synthesis.methods`); of the methods that do not ask the policy, nothing
is screened.

Every stage leaves finished files behind, so `run` may be killed at any instant and called again.

With several processes, each scores its share of the roots, holds its share of the index and feeds its
devices; the first one writes markers and tables, and says what is finished (`hosts.agreed`).
"""

import dataclasses
import logging
import math
from typing import Any, cast

import numpy as np
from etils import epath

from policylong import config as config_lib
from policylong.corpus import streamed
from policylong.corpus.given import GivenSequences
from policylong.corpus.roots import sample_documents
from policylong.corpus.store import open_corpus
from policylong.corpus.texts import ChunkTokens
from policylong.devices import hosts
from policylong.devices.mesh import make_mesh
from policylong.errors import UserError
from policylong.evaluation.in_loop import RoundEvaluation
from policylong.model import hf, identity
from policylong.model.stored import open_model
from policylong.model.tokenizer import load_tokenizer
from policylong.records import Negative, Positive
from policylong.report.page import write_report
from policylong.retrieval.embedders import make_embedder
from policylong.retrieval.library import CorpusLibrary
from policylong.retrieval.store import open_index
from policylong.screening import long_gap
from policylong.screening.offpolicy import recheck
from policylong.screening.retrieve import Retriever
from policylong.screening.scorer import Scorer
from policylong.screening.screen import Screener, read_roots
from policylong.screening.summary import offpolicy_gap, summarise
from policylong.storage import hub, progress, tables
from policylong.storage.workdir import Round, Workdir, read_json, write_json
from policylong.synthesis import storage
from policylong.synthesis.method import Inputs, Screened
from policylong.synthesis.methods import METHODS
from policylong.synthesis.storage import sequence_paths, write_sequences
from policylong.training import scalars, wandb_run
from policylong.training.metrics import write_scalars
from policylong.training.train import Trainer

log = logging.getLogger(__name__)


def run(config: config_lib.Config, directory) -> epath.Path:
  """Runs or resumes all rounds in the working directory; returns the page's path.

  Raises:
    UserError: bad input of any kind, in one sentence, before expensive work where that is possible.
  """
  workdir = Workdir(directory)
  first = hosts.is_first()
  with hosts.first_before_others("claim"):
    workdir.claim(config, first)
  if hosts.agreed(workdir.final_json.exists() and workdir.page.exists()):
    if first:
      log.info("%s: all %d rounds are done; nothing to do", workdir.directory, config.rounds)
    return workdir.page
  with progress.told(workdir.progress, hosts.index(), hosts.count()), wandb_run.opened(config, workdir):
    _rounds(config, workdir)
  return workdir.page


def _rounds(config: config_lib.Config, workdir: Workdir) -> None:
  """Every round, and of a round every stage, that is not over yet."""
  first = hosts.is_first()
  with hosts.first_before_others("hub"):
    config = from_the_hub(config, workdir)
  loop = _Loop(config, workdir)
  loop.evaluate(0)
  for index in range(1, config.rounds + 1):
    round_ = workdir.round(index)
    # Marked as done and not trained so far: its last checkpoint is gone, so it is trained again, on the same sequences.
    if hosts.agreed(round_.done) and int(loop.state.step) >= loop.trainer.start_step(index + 1):
      if first:
        round_.drop_shards()
      loop.evaluate(index)
      continue
    for ahead in range(index, min(index + config.max_staleness, config.rounds) + 1):
      if not hosts.agreed(workdir.round(ahead).screened_path.exists()):
        loop.prepare(workdir.round(ahead))
    loop.train(round_)
    loop.evaluate(index)
    loop.write_report()
  loop.finish()
  loop.write_report()
  hosts.barrier("done")


def from_the_hub(config: config_lib.Config, workdir: Workdir) -> config_lib.Config:
  """The config with what it takes from the hub fetched, or pinned to the commit that the run began with.

  Raises:
    UserError: something is not there, or the hub is out of reach.
  """
  record, replace = workdir.hub_json, dataclasses.replace
  sources = tuple(streamed.pinned(source, record) for source in config.corpus.sources)
  documents = streamed.pinned(config.eval.documents, record) if config.eval.tasks else config.eval.documents
  return replace(
      config, model=replace(config.model, path=hub.folder(config.model.path, record)),
      retrieval=replace(config.retrieval, embedder_path=hub.folder(config.retrieval.embedder_path, record)),
      corpus=replace(config.corpus, sources=sources), eval=replace(config.eval, documents=documents))


class _Loop:
  """What stays the same from round to round, and the stages."""

  def __init__(self, config: config_lib.Config, workdir: Workdir):
    self.config, self.workdir = config, workdir
    self.mesh = make_mesh(config.mesh)
    self.read = config.training.steps_per_round * config.training.batch_size  # sequences a round
    self.model = hf.read_model_config(config.model.path).with_rope(
        theta=config.model.rope_theta, yarn_factor=config.model.yarn_factor)
    self.evaluation = RoundEvaluation(config, self.model, workdir)
    if hosts.is_first():
      base = open_model(config.model.path).identity()
      del base["chat template"]  # nothing in a run is asked as a chat
      identity.claim_base(workdir, config.model.path, base)
    self.tokenizer = load_tokenizer(config.model.path)
    self.trainer = Trainer(config.training, self.model, self.mesh, workdir, length=config.synthesis.sequence_length,
                           rounds=config.rounds, seed=config.seed)
    self.method = METHODS[config.method]
    self.corpus = cast(Any, GivenSequences(config, self.model.vocab_size) if "sequences" in self.method.asks
                       else open_corpus(config.corpus))
    hosts.barrier("corpus")  # which each host may have built for itself
    with hosts.first_before_others("corpus.json"):
      _claim_corpus(workdir, self.corpus.summary())
    self.screens = "policy" in self.method.asks
    self.screening = config.screening if "negatives" in self.method.asks else dataclasses.replace(
        config.screening, negatives="none")
    if "roots" in self.method.asks:
      # The last round's roots: whether there are enough documents should not come out after three rounds.
      sample_documents(self.corpus, seed=config.seed, round_index=config.rounds,
                       count=config.screening.roots_per_round, sources=config.corpus.root_sources)
    # The weights before the index: a broken file should be found before the corpus is embedded.
    self.state = self.trainer.restore_latest() or self.trainer.initial(hf.load_params(
        config.model.path, self.model, np.float32, self.mesh, sha256=config.model.sha256))
    searches = self.screens or config.method_options.search == "embeddings"
    embedder = make_embedder(config.retrieval) if searches and "embedder" in self.method.asks else None
    index = open_index(self.corpus, embedder, config.retrieval, config.corpus.cache_dir,
                       config.seed) if searches and "index" in self.method.asks else None
    self.library = CorpusLibrary(config, self.corpus, self.tokenizer, embedder, index)
    self.chunk_tokens = ChunkTokens(self.corpus, self.tokenizer, config.synthesis.separator,
                                    config.screening.max_chunk_tokens)
    self.retriever = Retriever(self.screening, config.seed, self.corpus, embedder, index,
                               self.chunk_tokens) if self.screens else None

  def scorer(self) -> Scorer:
    """The current policy as a scoring program."""
    config = self.config
    return Scorer(self.state.params, self.model, self.mesh, dtype=config.model.scoring_dtype,
                  tokens_per_batch=config.screening.tokens_per_batch,
                  bucket_multiple=config.screening.bucket_multiple)

  def prepare(self, round_: Round) -> None:
    """All that comes before training; `screened.json` is written last."""
    config, step = self.config, int(self.state.step)
    previous = self.workdir.round(round_.index - 1) if round_.index > 1 else None
    if self.screens:
      self.screen(round_, previous, step)
    summary: dict = {}
    if hosts.is_first():
      summary = summarise(self.screening, round_, previous) if self.screens else {
          "round": round_.index, "policy_step": step}
      summary |= self.synthesize(round_, step)
      self.library.done()
    else:
      self.library.serve()
    if config.training.needs_gaps:
      hosts.barrier("synthesized")
      found = long_gap.select(round_, self.scorer(), config.training, config.synthesis.sequence_length,
                               self.model.vocab_size)
      summary |= {"long_gap": found, "epochs": self.read / found["kept"]} if found else {}
    if hosts.is_first():
      write_json(round_.screened_path, summary)
      write_scalars(self.workdir, summary["policy_step"], scalars.of_round(summary))
      log_summary(summary)
    hosts.barrier("screened")
    self.write_report()

  def screen(self, round_: Round, previous: Round | None, step: int) -> None:
    """What the current policy says of the round's roots, and of the dependencies that the last one accepted."""
    config, scorer = self.config, self.scorer()
    # With `max_staleness` the second round is screened by the policy of the first: nothing can have changed.
    if previous and read_json(previous.screened_path)["policy_step"] == step:
      previous = None
    if previous and not hosts.agreed(round_.table("offpolicy").exists()):
      table = self.recheck(previous, scorer)
      if hosts.is_first():
        tables.write(round_.table("offpolicy"), table)
    Screener(self.screening, config.seed, config.corpus.root_sources, self.corpus, self.tokenizer, self.retriever,
             self.chunk_tokens, scorer, step, config.synthesis.sequence_length).screen(round_)

  def recheck(self, previous: Round, scorer: Scorer):
    """The previous round's accepted dependencies under the current policy."""
    return recheck(previous, read_json(previous.screened_path)["epsilon"], scorer, self.chunk_tokens,
                   self.config.screening.max_anchors_per_root, int(self.state.step))

  def synthesize(self, round_: Round, policy_step: int) -> dict:
    """Writes the round's training sequences; returns their counts."""
    config, share = self.config, self.config.training.longfilter_share
    count = self.read if share is None else math.ceil(self.read / share)
    screened = self.screened(round_) if self.screens else None
    written = write_sequences(self.method.sequences(Inputs(
        config.seed, round_.index, policy_step, config.synthesis.sequence_length, count, config.method_options,
        self.library, screened)), round_.directory, packed=config.training.document_masking)
    if not written:
      raise UserError(f"{config.method}, round {round_.index}: none of its screening.roots_per_round = "
                      f"{config.screening.roots_per_round} roots gives a sequence, so all "
                      f"{config.synthesis.sequence_length} tokens are missing: lower screening.min_root_tokens or "
                      "take longer documents")
    spans = tables.read(round_.table("sequences"))
    masked = config.training.document_masking
    attended = storage.mean_attended_tokens(spans) if masked else config.synthesis.sequence_length
    return {"sequences": written, "epochs": self.read / written, "mean_attended_tokens": attended,
            "synthesis": storage.summarise(spans, screened.positives if screened else ())}

  def screened(self, round_: Round) -> Screened:
    """What the policy said, from the round's tables."""
    roots, _ = read_roots(tables.read(round_.table("roots")))
    positives, negatives = (tables.to_records(kind, tables.read(round_.table(name)))
                            for name, kind in (("positives", Positive), ("negatives", Negative)))
    return Screened(roots, positives, negatives, self.chunk_tokens, self.retriever.filler(round_.index))

  def train(self, round_: Round) -> None:
    """Trains to the end of the round, then marks the round as done."""
    counts = read_json(round_.screened_path)
    folder = round_.selected if self.config.training.needs_gaps else round_.sequences
    self.state = self.trainer.train_round(self.state, round_.index, sequence_paths(folder),
                                          counts["mean_attended_tokens"])
    if hosts.is_first():
      round_.finish(counts)
    hosts.barrier("trained")
    self.write_report()

  def evaluate(self, index: int) -> None:
    """Benchmarks of the policy after round `index`; 0: of the base model. What is there already stays."""
    self.evaluation.run(index, self.state, self.tokenizer, self.mesh)

  def finish(self) -> None:
    """The last policy looks once more at the last round's dependencies."""
    last = self.workdir.round(self.config.rounds)
    if not hosts.agreed(self.workdir.final_json.exists()):
      table = self.recheck(last, self.scorer()) if self.screens else None
      if hosts.is_first():
        if table is not None:
          tables.write(self.workdir.directory / "offpolicy.parquet", table)
        self.workdir.page.unlink(missing_ok=True)  # so that no end of a run stands beside a page without it
        write_json(self.workdir.final_json, {"policy_step": int(self.state.step),
                                             "offpolicy": None if table is None else offpolicy_gap(table)})

  def write_report(self) -> None:
    """The page over all rounds so far."""
    if hosts.is_first():
      corpus = self.corpus
      write_report(self.workdir.directory, lambda chunk_id: corpus.chunk_text(corpus.chunk_row(chunk_id)))


def _claim_corpus(workdir: Workdir, summary: dict) -> None:
  """Writes corpus.json; refuses a corpus that is not the one that the run began with."""
  path = workdir.corpus_json
  if path.exists() and (begun := read_json(path)["version"]) != summary["version"]:
    raise UserError(f"{workdir.directory} began with the corpus {begun}, and corpus.sources now give another one "
                    f"({summary['version']}): put the files back as they were, or choose another --workdir")
  if hosts.is_first():
    write_json(path, summary)


def log_summary(summary: dict) -> None:
  """One line a round: enough to see a starved one."""
  if "acceptance" not in summary:
    log.info("round %d: %d sequences, read %.2f times", summary["round"], summary["sequences"], summary["epochs"])
    return
  own, control = summary["acceptance"]["own"], summary["acceptance"]["control"]
  log.info("round %d: %d roots, %.1f anchors a root; accepted at epsilon %.3f: own %d of %d (%.2f%%), control %d of %d "
           "(%.2f%%); %d positives, mean gain %.2f%s", summary["round"], summary["roots"], summary["anchors_per_root"],
           summary["epsilon"], own["accepted"], own["pairs"], 100 * own["rate"], control["accepted"], control["pairs"],
           100 * control["rate"], summary["positives"], summary["mean_gain"],
           "" if summary["offpolicy"] is None else
           f"; the policy now rejects {100 * summary['offpolicy']['share']:.0f}% of the last round's dependencies")

