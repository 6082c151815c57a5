"""The on-policy loop: each round, the current policy chooses what it trains on next.

  for each round:
    policy    = the newest checkpoint (the base model at first)
    screening : scan roots, retrieve for their anchors, verify, until the round's sequences are filled; hard negatives
    synthesis : shuffle positives and negatives in front of each root, exactly L tokens
    training  : next-token loss on every token of these sequences (with document masking: on all but the first of
                each document, which nothing of its own predicts; `long_gap` may choose among them)
    evaluation: benchmarks of the new policy (and, before the first round, of the base model)

With `config.max_staleness` n a round is screened before the n rounds before it are trained, by the policy from before
them. 1 is what a run does whose screening goes on beside training (here they still take turns; what it costs in quality
shows); with `config.rounds` - 1 or more the base model screens every round, and nothing is chosen on policy.

`config.method` says how sequences are made (`synthesis.methods`); of the methods that do not ask the policy, nothing
is screened.

Every stage leaves finished files behind, so `run` may be killed at any instant and called again.

With several processes, each scores its share of the roots, holds its share of the index, makes its share of the
sequences and feeds its devices; the first one writes markers and tables, and says what is finished (`hosts.agreed`).
"""

import contextlib
import dataclasses
import functools
import logging
import math
from typing import cast

import numpy as np
from etils import epath

from policylong import config as config_lib
from policylong import door
from policylong.corpus import streamed
from policylong.corpus.given import GivenSequences
from policylong.corpus.roots import sample_documents
from policylong.corpus.store import Corpus, open_corpus
from policylong.corpus.texts import ChunkTokens
from policylong.devices import hosts
from policylong.devices.mesh import make_mesh
from policylong.errors import UserError
from policylong.evaluation.in_loop import RoundEvaluation
from policylong.model import hf, identity
from policylong.model.stored import open_model
from policylong.model.tokenizer import beginning, tokenizer_of
from policylong.records import Negative, Positive
from policylong.report.page import write_report
from policylong.retrieval.embedders import make_embedder
from policylong.retrieval.library import CorpusLibrary
from policylong.retrieval.store import open_index
from policylong.screening import long_gap
from policylong.screening.offpolicy import recheck
from policylong.screening.promise import Promise
from policylong.screening.readings import read_roots
from policylong.screening.retrieve import Retriever
from policylong.screening.scorer import Policy, Scorer
from policylong.screening.screen import Ground, Screener
from policylong.screening.summary import offpolicy_gap, summarise
from policylong.storage import hub, lock, manifest, mending, progress, tables
from policylong.storage.workdir import Round, Workdir, read_json, write_json
from policylong.synthesis import storage
from policylong.synthesis.method import Inputs, Screened
from policylong.synthesis.methods import METHODS
from policylong.synthesis.storage import sequence_paths, write_sequences
from policylong.synthesis.together import write_together
from policylong.training import scalars, wandb_run
from policylong.training.metrics import write_scalars
from policylong.training.state import TrainState
from policylong.training.train import Trainer

log = logging.getLogger(__name__)


def run(config: config_lib.Config, directory) -> epath.Path:
  """Runs or resumes all rounds in the working directory; returns the page's path.

  Raises:
    UserError: bad input of any kind, in one sentence, before expensive work where that is possible.
  """
  workdir = Workdir(directory)
  with lock.held(workdir.lock, str(workdir.directory), follows=not hosts.is_first(), lost=hosts.end):
    with hosts.first_before_others("claim"):
      workdir.claim(config, hosts.is_first())
      if hosts.is_first():
        mending.whole_or_gone(workdir.final_json, read_json)
    if hosts.agreed(workdir.final_json.exists() and workdir.page.exists()):
      if hosts.is_first():
        log.info("%s: all %d rounds are done; nothing to do", workdir.directory, config.rounds)
      return workdir.page
    with (progress.told(workdir.progress, hosts.index(), hosts.count()), wandb_run.opened(config, workdir),
          contextlib.ExitStack() as closing):
      _rounds(workdir.located(config), workdir, closing)
  return workdir.page


def _rounds(config: config_lib.Config, workdir: Workdir, closing: contextlib.ExitStack) -> None:
  """Every round, and of a round every stage, that is not over yet."""
  with hosts.first_before_others("hub"):
    stages = _Stages(from_the_hub(config, workdir), workdir, closing)
  stages.check()
  stages.mend()
  state = stages.newest_state()
  stages.evaluate(0, state)
  for round_ in (workdir.round(r) for r in range(1, config.rounds + 1)):
    if stages.trained(round_, state):
      stages.evaluate(round_.index, state)
      continue
    for ahead in range(round_.index, min(round_.index + config.max_staleness, config.rounds) + 1):
      stages.prepare(workdir.round(ahead), state)
    state = stages.train(round_, state)
    stages.evaluate(round_.index, state)
    stages.write_report()
  stages.finish(state)
  stages.write_report()
  hosts.barrier("done")


def from_the_hub(config: config_lib.Config, workdir: Workdir) -> config_lib.Config:
  """The config with what it takes from the hub fetched, or pinned to the commit that the run began with.

  Raises:
    UserError: something is not there, or the hub is out of reach.
  """
  record, replace = workdir.hub_json, dataclasses.replace
  sources = config.corpus.sources
  if config.corpus.prepared is None:
    sources = tuple(streamed.pinned(source, record) for source in sources)
  documents = streamed.pinned(config.eval.documents, record) if config.eval.tasks else config.eval.documents
  return replace(
      config, model=replace(config.model, path=hub.folder(config.model.path, record)),
      retrieval=replace(config.retrieval, embedder_path=hub.folder(config.retrieval.embedder_path, record)),
      corpus=replace(config.corpus, sources=sources), eval=replace(config.eval, documents=documents))


class _Stages:
  """The stages of a round, and what they need, made when a stage first needs it.

  With several processes all of them come to each stage together. `closing` closes what must be, however they end.
  """

  def __init__(self, config: config_lib.Config, workdir: Workdir, closing: contextlib.ExitStack):
    self.config, self.workdir, self._closing = config, workdir, closing
    self.method = METHODS[config.method]
    self.read = config.training.steps_per_round * config.training.batch_size  # sequences a round
    share = config.training.longfilter_share
    self.sequences = self.read if share is None else math.ceil(self.read / share)  # that a round makes
    self.screening = config.screening if "negatives" in self.method.asks else dataclasses.replace(
        config.screening, negatives="none")

  @property
  def screens(self) -> bool:
    """Whether the method asks the policy."""
    return "policy" in self.method.asks

  @property
  def searches(self) -> bool:
    """Whether the method searches an index of vectors."""
    return "index" in self.method.asks and (self.screens or self.config.method_options.search == "embeddings")

  def check(self) -> None:
    """Finds what is wrong with the run before anything expensive: mesh, model, benchmarks, corpus, roots.

    Raises:
      UserError: in one sentence.
    """
    self.evaluation  # noqa: B018  each checks itself when it is made
    if hosts.is_first():
      base = open_model(self.config.model.path).identity()
      del base["chat template"]  # nothing in a run is asked as a chat
      identity.claim_base(self.workdir, self.config.model.path, base)
    self.tokenizer  # noqa: B018
    config = self.config
    door.check_training(
        config.training, self.trainer.abstract, self.workdir, rounds=config.rounds, sequences=self.sequences,
        length=config.synthesis.sequence_length, scored_in=config.model.scoring_dtype if self.screens else None)
    self.corpus  # noqa: B018
    if self.searches:
      door.check_index(config.retrieval, self.corpus.num_chunks, config.corpus.cache_dir)
    if "roots" in self.method.asks:
      # The last round's roots: whether there are enough documents should not come out after three rounds.
      sample_documents(self.corpus, seed=self.config.seed, round_index=self.config.rounds,
                       count=self.config.screening.roots_per_round, sources=self.config.corpus.root_sources)

  def mend(self) -> None:
    """What is damaged of the rounds goes and is made again, by the policy that made it first: with the same bytes."""
    newest = self.trainer.latest_step() or 0
    for round_ in (self.workdir.round(r) for r in range(1, self.config.rounds + 1)):
      with hosts.first_before_others("mend"):
        if hosts.is_first() and mending.whole_or_gone(round_.done_path, read_json) and round_.done and (
            newest >= self.trainer.start_step(round_.index + 1)):
          mending.mend_finished(round_)
        elif hosts.is_first():
          mending.mend(round_)
      step = self.trainer.start_step(max(1, round_.index - self.config.max_staleness))
      if newest > step and not hosts.agreed(round_.screened_path.exists()):
        self.prepare(round_, self.earlier_state(step, round_.directory))
    for index in range(self.config.rounds + 1):
      step = self.trainer.start_step(index + 1)
      if newest > step and not self.evaluation.done(index):
        self.evaluate(index, self.earlier_state(step, self.workdir.round(index).evaluation))

  def newest_state(self) -> TrainState:
    """The newest checkpoint, or the base model before the first step."""
    return self.state_at(self.trainer.latest_step() or 0)

  def state_at(self, step: int) -> TrainState:
    """The checkpoint of `step`, or the base model before the first one."""
    model = self.config.model
    return self.trainer.restore(step) if step else self.trainer.initial(hf.load_params(
        model.path, self.model, np.float32, self.mesh, sha256=model.sha256))

  def earlier_state(self, step: int, damaged: epath.Path) -> TrainState:
    """As `state_at`, of the policy that made what is `damaged`; without it, a sentence says what helps."""
    try:
      return self.state_at(step)
    except UserError as error:
      raise UserError(f"something of {damaged} is damaged or gone, and the policy that can make it again is too: put a "
                      f"whole copy of that folder or of {self.workdir.checkpoints / str(step)} in its place") from error

  def trained(self, round_: Round, state: TrainState) -> bool:
    """Whether a round is over. A round that is marked as done and whose last checkpoint is gone is trained again."""
    over = bool(hosts.agreed(round_.done)) and int(state.step) >= self.trainer.start_step(round_.index + 1)
    if over and hosts.is_first():
      round_.drop_shards()
    return over

  def prepare(self, round_: Round, state: TrainState) -> None:
    """All that comes before training, unless it is there; `screened.json` is written last."""
    if hosts.agreed(round_.screened_path.exists()):
      return
    weighed = self.config.training.needs_gaps
    policy = self.policy(state) if self.screens or weighed else None
    summary = self.screen_and_synthesize(round_, policy) if self.screens else {
        "round": round_.index, "policy_step": int(state.step), **self.synthesize(round_, int(state.step))}
    if weighed:
      hosts.barrier("synthesized")
      found = long_gap.select(round_, policy.scorer, self.config.training, self.config.synthesis.sequence_length,
                              self.model.vocab_size)
      summary |= {"long_gap": found, "epochs": self.read / found["kept"]} if found else {}
    if hosts.is_first():
      write_json(round_.screened_path, summary)
      log_summary(summary)
    hosts.barrier("screened")
    self.write_report()

  def screen_and_synthesize(self, round_: Round, policy: Policy) -> dict:
    """Screens roots until they fill the sequences that training reads, and writes these; as numbers.

    When a round is fed is reckoned from sizes, before its negatives are known: where these leave sequences missing,
    more roots are screened.
    """
    asked = self.sequences
    while True:
      found = self.screen(round_, policy, asked)
      counts = self.synthesize(round_, policy.step)
      missing = int(hosts.agreed(np.array(self.sequences - counts.get("sequences", 0))))
      judged = read_json(round_.judged_path)
      if missing <= 0 or not judged["fed"]:
        return {**found, **counts}
      asked = judged["asked"] + missing

  def screen(self, round_: Round, policy: Policy, sequences: int) -> dict:
    """What the policy says of the round's roots, and of the dependencies that the last one accepted; as numbers."""
    previous = self.workdir.round(round_.index - 1) if round_.index > 1 else None
    # With `max_staleness` the second round is screened by the policy of the first: nothing can have changed.
    changed = previous and read_json(previous.screened_path)["policy_step"] != policy.step
    if changed and not hosts.agreed(round_.table("offpolicy").exists()):
      table = self.recheck(previous, policy)
      if hosts.is_first():
        tables.write(round_.table("offpolicy"), table)
    begun = read_json(previous.judged_path)["promise"] if previous and self.screening.budget is not None else None
    Screener(self.ground, policy).screen(round_, sequences, Promise.from_json(begun) if begun else Promise.first())
    return summarise(self.screening, round_, previous) if hosts.is_first() else {}

  def recheck(self, previous: Round, policy: Policy):
    """The previous round's accepted dependencies under the current policy."""
    return recheck(previous, policy, self.chunk_tokens, self.screening.max_anchors_per_root)

  def synthesize(self, round_: Round, policy_step: int) -> dict:
    """Writes the round's training sequences; returns their counts, of the first process."""
    config, library, masked = self.config, self.library, self.config.training.document_masking
    hosts.barrier("tables")  # of which sequences are made
    screened = self.screened(round_) if self.screens else None
    inputs = Inputs(config.seed, round_.index, policy_step, config.synthesis.sequence_length - len(self.beginning),
                    self.sequences, config.method_options, library, screened)
    written = 0
    if screened:
      written = write_together(self.method.sequences, inputs, round_, packed=masked, beginning=self.beginning)
    elif hosts.is_first():
      written = write_sequences(self.method.sequences(inputs), round_.directory, packed=masked,
                                beginning=self.beginning)
      library.done()
    else:
      library.serve()
    if not hosts.is_first():
      return {}
    if not written:
      raise UserError(f"{config.method}, round {round_.index}: none of its screening.roots_per_round = "
                      f"{config.screening.roots_per_round} roots gives a sequence, so all "
                      f"{config.synthesis.sequence_length} tokens are missing: lower screening.min_root_tokens or "
                      "take longer documents")
    spans = tables.read(round_.table("sequences"))
    attended = storage.mean_attended_tokens(spans) if masked else config.synthesis.sequence_length
    counts = {"sequences": written, "epochs": self.read / written, "mean_attended_tokens": attended,
              "synthesis": storage.summarise(spans, screened.positives if screened else ())}
    if len(self.beginning):
      counts["begins_with"] = self.tokenizer.convert_ids_to_tokens(self.beginning.tolist())
    return counts

  def screened(self, round_: Round) -> Screened:
    """What the policy said, from the round's tables."""
    roots, _ = read_roots(tables.read(round_.table("roots")))
    positives, negatives = (tables.to_records(kind, tables.read(round_.table(name)))
                            for name, kind in (("positives", Positive), ("negatives", Negative)))
    return Screened(roots, positives, negatives, self.chunk_tokens, self.ground.retriever.filler(round_.index),
                    self.config.synthesis.negatives_per_positive)

  def train(self, round_: Round, state: TrainState) -> TrainState:
    """Trains to the end of the round, then marks the round as done."""
    counts = read_json(round_.screened_path)
    folder = round_.selected if self.config.training.needs_gaps else round_.sequences
    with hosts.first_before_others("sequences"):
      if hosts.is_first():
        manifest.check(folder)
        # Now, and not when it was screened: of the rounds that one policy screened each has a step of its own.
        if (step := int(state.step)) == self.trainer.start_step(round_.index):
          write_scalars(self.workdir, step, scalars.of_round(counts))
    state = self.trainer.train_round(state, round_.index, sequence_paths(folder), counts["mean_attended_tokens"])
    if hosts.is_first():
      for path in round_.tables():  # DONE.json will vouch for them
        tables.check(path)
      round_.finish(counts)
    hosts.barrier("trained")
    self.write_report()
    return state

  def evaluate(self, index: int, state: TrainState) -> None:
    """Benchmarks of the policy after round `index`; 0: of the base model. What is there already stays."""
    self.evaluation.run(index, state, self.tokenizer, self.mesh)

  def finish(self, state: TrainState) -> None:
    """The last policy looks once more at the last round's dependencies."""
    workdir = self.workdir
    if not hosts.agreed(workdir.final_json.exists()):
      table = self.recheck(workdir.round(self.config.rounds), self.policy(state)) if self.screens else None
      if hosts.is_first():
        if table is not None:
          tables.write(workdir.directory / "offpolicy.parquet", table)
        workdir.page.unlink(missing_ok=True)  # so that no end of a run stands beside a page without it
        write_json(workdir.final_json, {"policy_step": int(state.step),
                                        "offpolicy": None if table is None else offpolicy_gap(table)})

  def write_report(self) -> None:
    """The page over all rounds so far."""
    if hosts.is_first():
      corpus = self.corpus
      write_report(self.workdir.directory, lambda chunk_id: corpus.chunk_text(corpus.chunk_row(chunk_id)))

  # What the stages need.

  def policy(self, state: TrainState) -> Policy:
    """The policy as a scoring program: a copy of its weights for each device."""
    config = self.config
    return Policy(int(state.step), Scorer(
        state.params, self.model, self.mesh, dtype=config.model.scoring_dtype,
        tokens_per_batch=config.screening.tokens_per_batch, bucket_multiple=config.screening.bucket_multiple,
        beginning=self.beginning))

  @functools.cached_property
  def mesh(self):
    """The devices."""
    return make_mesh(self.config.mesh)

  @functools.cached_property
  def model(self):
    """The shape of the policy."""
    model = self.config.model
    return hf.read_model_config(model.path).with_rope(theta=model.rope_theta, yarn_factor=model.yarn_factor)

  @functools.cached_property
  def tokenizer(self):
    """The policy's."""
    return tokenizer_of(self.config.model.path, self.model)

  @functools.cached_property
  def beginning(self) -> np.ndarray:
    """int32[b] that every scored and trained row begins with; sequences that exist already are as they are."""
    return beginning(self.tokenizer) if "sequences" not in self.method.asks else np.zeros(0, np.int32)

  @functools.cached_property
  def trainer(self) -> Trainer:
    """Owns the checkpoints."""
    config = self.config
    return self._closing.enter_context(Trainer(
        config.training, self.model, self.mesh, self.workdir, length=config.synthesis.sequence_length,
        rounds=config.rounds, seed=config.seed))

  @functools.cached_property
  def evaluation(self) -> RoundEvaluation:
    """The benchmarks that are asked for."""
    self.mesh  # noqa: B018  a mesh that does not fit the devices is said first
    return RoundEvaluation(self.config, self.model, self.workdir)

  @functools.cached_property
  def corpus(self) -> Corpus:
    """The chunked corpus, or the sequences that were given; it is the one that the run began with."""
    # The method that asks for sequences asks for nothing of a corpus that these lack.
    corpus = cast(Corpus, GivenSequences(self.config, self.model.vocab_size) if "sequences" in self.method.asks
                  else open_corpus(self.config.corpus))
    hosts.barrier("corpus")  # which each host may have built for itself
    with hosts.first_before_others("corpus.json"):
      _claim_corpus(self.workdir, corpus.summary())
    return corpus

  @functools.cached_property
  def chunk_tokens(self) -> ChunkTokens:
    """Chunks as the policy reads them."""
    return ChunkTokens(self.corpus, self.tokenizer, self.config.synthesis.separator,
                       self.config.screening.max_chunk_tokens)

  @functools.cached_property
  def searched(self):
    """(embedder or None, index or None): what the method searches with."""
    config, asks = self.config, self.method.asks
    by_vectors = self.screens or config.method_options.search == "embeddings"
    embedder = make_embedder(config.retrieval) if by_vectors and "embedder" in asks else None
    index = open_index(self.corpus, embedder, config.retrieval, config.corpus.cache_dir,
                       config.seed) if self.searches else None
    return embedder, index

  @functools.cached_property
  def library(self) -> CorpusLibrary:
    """The corpus as methods of synthesis read it."""
    return CorpusLibrary(self.config, self.corpus, self.tokenizer, *self.searched)

  @functools.cached_property
  def ground(self) -> Ground:
    """What screening reads."""
    config = self.config
    embedder, index = self.searched
    retriever = Retriever(self.screening, config.seed, self.corpus, embedder, index, self.chunk_tokens)
    length = config.synthesis.sequence_length
    return Ground(self.screening, config.synthesis, self.read * length, self.sequences * length, config.seed,
                  config.corpus.root_sources, self.corpus, self.tokenizer, self.chunk_tokens, retriever)


def _claim_corpus(workdir: Workdir, summary: dict) -> None:
  """Writes corpus.json; refuses a corpus that is not the one that the run began with."""
  path = workdir.corpus_json
  if hosts.is_first():
    mending.whole_or_gone(path, read_json)
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

  def accepted(name: str) -> str:
    row = summary["acceptance"][name]
    return f"{name} {row['accepted']} of {row['pairs']}" + (f" ({100 * row['rate']:.2f}%)" if row["pairs"] else "")
  gap = summary["offpolicy"]
  log.info("round %d: %d roots, %.1f anchors a root; accepted at epsilon %.3f: %s, %s; %d positives, mean gain %.2f%s",
           summary["round"], summary["roots"], summary["anchors_per_root"], summary["epsilon"], accepted("own"),
           accepted("control"), summary["positives"], summary["mean_gain"],
           f"; the policy now rejects {100 * gap['share']:.0f}% of the last round's dependencies"
           if gap and gap["verified"] else "")
