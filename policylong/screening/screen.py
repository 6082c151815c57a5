"""One round of screening, shard by shard, until the round is fed.

Each shard of roots goes through scan -> retrieve -> verify: the device scans and verifies while the host retrieves.
Shards come in a fixed order, and no more of them than fill the sequences that the round's training reads
(`ledger`). Within a budget a shard scores the rows that promise most (`budget`). Each step leaves a file, and a restart
takes up where files are missing. The thresholds, which may depend on the control of all shards, are then applied to the
readings, and the round's tables are written.

Of several processes each has every P-th shard. They go in waves, one shard of each, because they search
the index together; accounts, thresholds and tables are the first one's. A shard of a last wave that is not
needed is not used, so that the tables are those of one process.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from policylong import config as config_lib
from policylong.corpus.roots import root_span, sample_documents
from policylong.corpus.store import Corpus
from policylong.corpus.texts import ChunkTokens
from policylong.devices import hosts
from policylong.errors import UserError
from policylong.records import Anchor, Candidate, Negative, Positive
from policylong.screening import judge, ledger, readings
from policylong.screening.anchors import entropy_threshold
from policylong.screening.costs import Costs
from policylong.screening.ledger import Ledger, Plan
from policylong.screening.promise import Promise
from policylong.screening.readings import read_roots
from policylong.screening.retrieve import Retriever
from policylong.screening.rows import choose_rows
from policylong.screening.scorer import Policy
from policylong.screening.verify import planned_tokens, verify
from policylong.storage import tables
from policylong.storage.progress import Bar
from policylong.storage.workdir import Round, read_json, write_json
from policylong.synthesis.filling import Filling

# A round with more verdicts keeps of what other anchors retrieved only the accepted ones: with 35 anchors a root and 32
# candidates each, 25,000 roots have a billion, of which one in 35 is of an anchor's own candidate.
MOST_VERDICTS = 20_000_000
# So often at most a round learns from its verdicts: each sixteenth of the shards that it may ask for, and not of fewer
# than four, so that as many processes have one each.
_FITS, _LEAST_GROUP = 16, 4


@dataclasses.dataclass(frozen=True)
class Ground:
  """What is screened, whoever the policy is.

  `synthesis` says what sequences are to be filled; `trained_tokens` are those that a round's training reads,
  `filled_tokens` those of its sequences: more where training chooses among them.
  """
  config: config_lib.Screening
  synthesis: config_lib.Synthesis
  trained_tokens: int
  filled_tokens: int
  seed: int
  root_sources: tuple[str, ...]
  corpus: Corpus
  tokenizer: object
  chunk_tokens: ChunkTokens
  retriever: Retriever


class Screener:
  """A round of screening."""

  def __init__(self, ground: Ground, policy: Policy):
    self.ground, self.policy, self.config = ground, policy, ground.config

  def screen(self, round_: Round, sequences: int, begun: Promise) -> None:
    """Writes the round's roots, anchors, verdicts, positives and negatives; what is finished stays.

    Args:
      round_: where.
      sequences: that the round must fill; more than last time goes on where that ended.
      begun: the promise that the round begins with, where it has a budget.

    Raises:
      UserError: no root of the round has an anchor, or no candidate was accepted.
    """
    if not hosts.agreed(_is_judged(round_, sequences)):
      if hosts.is_first():  # the tables are of fewer shards than will be used
        round_.judged_path.unlink(missing_ok=True)
        round_.table("negatives").unlink(missing_ok=True)
      account = self._score_shards(round_, sequences, begun)
      if hosts.is_first():
        self._judge(round_, sequences, account)
      hosts.barrier("judged")
    if not hosts.agreed(round_.table("negatives").exists()):
      self._negatives(round_)

  def _shards(self, round_index: int) -> list[list[int]]:
    config = self.config
    documents = sample_documents(self.ground.corpus, seed=self.ground.seed, round_index=round_index,
                                 count=config.roots_per_round, sources=self.ground.root_sources)
    size = config.roots_per_shard
    return [documents[i:i + size] for i in range(0, len(documents), size)]

  def _score_shards(self, round_: Round, sequences: int, begun: Promise) -> Ledger:
    """Shard after shard through scan, retrieve and verify; the host retrieves one wave while the device does others."""
    shards = self._shards(round_.index)
    account = Ledger(self.config, self._filling(), self.ground.trained_tokens, self.ground.filled_tokens, begun)
    waiting: deque[tuple[range, Future]] = deque()
    # Several processes search together, and what they do together they do on their main threads.
    with (ThreadPoolExecutor(1) if hosts.count() == 1 else _AtOnce()) as host, Bar(
        desc=f"round {round_.index} screening", unit="tok", unit_scale=True, mininterval=1.0,
        total=0, grows=True, disable=not hosts.is_first()) as bar:
      for wave, search in self._waves(round_, len(shards)):
        mine = self._mine(wave)
        if mine is not None and not round_.shard("scan", mine).exists():
          self._scan(round_, mine, shards[mine], bar)
        waiting.append((wave, host.submit(self._retrieve, round_, mine) if search else _finished()))
        if len(waiting) > 1 and self._verify_next(round_, waiting, len(shards), account, sequences, bar):
          waiting.clear()
          break
      while waiting and not self._verify_next(round_, waiting, len(shards), account, sequences, bar):
        pass
    return account

  def _filling(self) -> Filling:
    """The round's sequences, empty."""
    synthesis = self.ground.synthesis
    negatives = 0 if self.config.negatives == "none" else synthesis.negatives_per_positive
    return Filling(synthesis.sequence_length, len(self.ground.chunk_tokens.separator), negatives)

  def _group(self, shards: int) -> int:
    """So many shards choose their rows by the same plan."""
    return shards if self.config.budget is None else max(_LEAST_GROUP, -(-shards // _FITS))

  def _waves(self, round_: Round, shards: int) -> Iterator[tuple[range, bool]]:
    """(the shards of a wave, one for each process; whether the index must be searched for any), never of two groups."""
    missing = hosts.agreed(np.array([not round_.shard("candidates", i).exists() for i in range(shards)]))
    group = self._group(shards)
    for first in range(0, shards, group):
      last = min(first + group, shards)
      for start in range(first, last, hosts.count()):
        wave = range(start, min(start + hosts.count(), last))
        yield wave, bool(missing[wave.start:wave.stop].any())

  def _mine(self, wave: range) -> int | None:
    """This process's shard of a wave."""
    return wave[hosts.index()] if hosts.index() < len(wave) else None

  def _scan(self, round_: Round, shard: int, documents: Sequence[int], bar: Bar) -> None:
    """Entropy and nll of every token of the shard's roots."""
    config, ground = self.config, self.ground
    first = shard * config.roots_per_shard
    roots = [(first + place, root) for place, i in enumerate(documents) if (root := root_span(
        ground.corpus, ground.tokenizer, i, root_tokens=config.root_tokens, min_root_tokens=config.min_root_tokens,
        seed=ground.seed)) is not None]
    bar.total += sum(len(root.tokens) for _, root in roots)
    traces = self.policy.scorer.traces([root.tokens for _, root in roots], bar.update)
    rows = []
    for (number, root), (entropy, nll) in zip(roots, traces):
      source = ground.corpus.document(ground.corpus.document_index(root.doc_id)).source
      rows.append((number, root.doc_id, source, root.start, root.end, root.tokens, root.pieces, entropy, nll,
                   entropy_threshold(entropy, config.alpha), self.policy.step))
    columns = [list(column) for column in zip(*rows)] or [[] for _ in readings.ROOTS]
    tables.write(round_.shard("scan", shard), pa.table(columns, schema=readings.ROOTS))

  def _retrieve(self, round_: Round, shard: int | None) -> None:
    """Anchors and candidates of a scanned shard; of one process alone, it runs in the host thread."""
    retriever = self.ground.retriever
    if shard is None or round_.shard("candidates", shard).exists():
      retriever.candidates(round_.index, [], [])  # the other processes search, and this one has rows
      return
    roots, traces = read_roots(tables.read(round_.shard("scan", shard)))
    anchors, candidates = retriever.candidates(round_.index, roots, traces)
    tables.write(round_.shard("anchors", shard), tables.from_records(Anchor, anchors))
    tables.write(round_.shard("candidates", shard), tables.from_records(Candidate, candidates))

  def _verify_next(self, round_: Round, waiting: deque, shards: int, account: Ledger, sequences: int, bar: Bar
                   ) -> bool:
    """Scores the oldest retrieved wave and enters it; whether the round is over with it."""
    wave, retrieved = waiting.popleft()
    retrieved.result()
    plan = self._plan(round_, wave, self._group(shards), account)
    mine = self._mine(wave)
    if mine is not None and not round_.shard("verify", mine).exists():
      self._verify(round_, mine, plan, bar)
    hosts.barrier("verified")
    over = False
    if hosts.is_first():
      for shard in wave:
        account.enter(*(tables.read(round_.shard(stage, shard)) for stage in ("scan", "rows", "verify")))
        if over := account.over(sequences):
          break
    return bool(hosts.agreed(over))

  def _plan(self, round_: Round, wave: range, group: int, account: Ledger) -> Plan | None:
    """How the rows of a wave are chosen; made when its group begins, from all shards before."""
    if self.config.budget is None:
      return None
    path = round_.shard_plan(wave.start // group)
    if hosts.is_first() and not path.exists():
      write_json(path, account.plan().to_json())
    hosts.barrier("plan")
    return Plan.from_json(read_json(path))

  def _verify(self, round_: Round, shard: int, plan: Plan | None, bar: Bar) -> None:
    """Scores the chosen candidates and the controls of a shard against all anchors of their roots."""
    roots = tables.read(round_.shard("scan", shard))
    anchors = tables.to_records(Anchor, tables.read(round_.shard("anchors", shard)))
    candidates = tables.to_records(Candidate, tables.read(round_.shard("candidates", shard)))
    pairs, proposals = readings.pairs(read_roots(roots)[0], anchors, candidates, self.ground.chunk_tokens)
    rows = choose_rows(self.config, roots, anchors, pairs, proposals, plan, self._filling())
    scored = np.flatnonzero(rows["scored"].to_numpy())
    pairs = [dataclasses.replace(pairs[i], positions=pairs[i].positions[:rows["anchors"][i].as_py()]) for i in scored]
    proposals = [proposals[i] for i in scored]
    bar.total += planned_tokens(pairs)
    found = verify(self.policy.scorer, pairs, self.config.max_anchors_per_root, bar.update)
    tables.write(round_.shard("rows", shard), rows)
    tables.write(round_.shard("verify", shard), readings.verdicts(pairs, proposals, found, self.policy.step))

  def _judge(self, round_: Round, sequences: int, account: Ledger) -> None:
    """The round's tables up to the positives; `judged.json` is written last."""
    shards = account.shards
    _collect(round_, "scan", "roots", shards)
    anchors = _collect(round_, "anchors", "anchors", shards)
    if not anchors.num_rows:
      roots = tables.read(round_.table("roots")).num_rows
      if not roots:
        raise UserError(f"round {round_.index}: none of its documents has screening.min_root_tokens = "
                        f"{self.config.min_root_tokens} tokens: lower it or take longer documents")
      raise UserError(f"round {round_.index}: none of the {roots} roots has an "
                      f"anchor at screening.alpha = {self.config.alpha}: lower alpha or screen more roots")
    control, rows = self._control(round_, shards)
    self._check_control(round_, control)
    limits = judge.thresholds(self.config, control)
    kept, positives, costs = [], [], Costs(self.config.budget is not None)
    best = -math.inf
    for i in range(shards):  # a root is in one shard whole
      roots, of_shard, scores = (tables.read(round_.shard(stage, i)) for stage in ("scan", "rows", "verify"))
      accepted = judge.accepted(scores, limits)
      verdicts = scores.set_column(scores.schema.get_field_index("accepted"), "accepted", pa.array(accepted))
      positives += judge.positives(verdicts)
      kept.append(verdicts if rows <= MOST_VERDICTS else judge.own_or_accepted(verdicts))
      costs.enter(roots, of_shard, scores, accepted)
      gains = scores.filter(pc.equal(scores["kind"], "retrieved"))["gain"].to_numpy()
      best = max(best, np.max(gains, initial=-math.inf))
    if not positives:
      raise UserError(
          f"round {round_.index}: of {rows - control.num_rows} verified (anchor, chunk) pairs none passes: the best "
          f"gain is {'none' if best == -math.inf else format(best, '.3f')}, wanted above epsilon = {limits.epsilon:.3f}"
          f"{'' if limits.loss_margin is None else f' with a loss lower by {limits.loss_margin:.2f} nats'}; "
          f"{'raise screening.epsilon_from_control' if self.config.epsilon is None else 'lower screening.epsilon'}, "
          "screen more roots or use a larger corpus")
    tables.write(round_.table("positives"), tables.from_records(Positive, positives))
    tables.write(round_.table("verdicts"), pa.concat_tables(kept))
    write_json(round_.judged_path, {
        "asked": sequences, "shards": shards, "thresholds": dataclasses.asdict(limits), **costs.summary(),
        "fed": account.filling.sequences >= sequences, "budget_spent": account.exhausted,
        "promise": None if (plan := account.plan()) is None else plan.promise.to_json()})

  def _check_control(self, round_: Round, control: pa.Table) -> None:
    config = self.config
    needs = {"epsilon_from_control": config.epsilon is None, "control_margin": config.control_margin is not None,
             "loss_margin_from_control": config.evidence == "entropy_and_loss" and config.loss_margin is None}
    field = next((name for name, needed in needs.items() if needed), None)
    if field and not control.num_rows:
      raise UserError(f"round {round_.index}: no random chunk was left to verify beside the candidates, and screening."
                      f"{field} needs some: use a larger corpus or a smaller screening.top_k")

  def _control(self, round_: Round, shards: int) -> tuple[pa.Table, int]:
    """What the random chunks did, `ledger.CONTROL`, and the number of all verdicts."""
    control, rows = [], 0
    for i in range(shards):
      scores = tables.read(round_.shard("verify", i), ["kind", *ledger.CONTROL])
      control.append(scores.filter(pc.equal(scores["kind"], "control")).select(ledger.CONTROL))
      rows += scores.num_rows
    return pa.concat_tables(control), rows

  def _negatives(self, round_: Round) -> None:
    """Hard negatives; each process ranks those of its share of the roots."""
    positives = tables.to_records(Positive, tables.read(round_.table("positives")))
    rejected = judge.rejected(tables.read(round_.table("verdicts"))) if self.config.negatives in (
        "rejected", "both") else []
    documents = list(dict.fromkeys(positive.doc_id for positive in positives))
    mine = {documents[i] for i in hosts.share(len(documents))}
    roots, _ = read_roots(tables.read(round_.table("roots")))
    negatives = self.ground.retriever.negatives(
        [root for root in roots if root.doc_id in mine], [p for p in positives if p.doc_id in mine],
        [pair for pair in rejected if pair[0] in mine], self.ground.synthesis)
    table = of_all_processes(tables.from_records(Negative, negatives))
    if hosts.is_first():
      tables.write(round_.table("negatives"), table)


def _is_judged(round_: Round, sequences: int) -> bool:
  """Whether so many sequences were asked for; what an earlier version judged without counting pairs is judged again."""
  if not round_.judged_path.exists():
    return False
  judged = read_json(round_.judged_path)
  return judged["asked"] >= sequences and "verified" in judged


class _AtOnce(Executor):
  """Runs what is submitted before it returns, in the caller's thread."""

  def submit(self, function: Callable, /, *arguments, **named) -> Future:
    """A finished future."""
    return _finished(function(*arguments, **named))


def _finished(result=None) -> Future:
  future: Future = Future()
  future.set_result(result)
  return future


def of_all_processes(table: pa.Table) -> pa.Table:
  """The rows of all processes, in the order of their numbers; collective."""
  if hosts.count() == 1:
    return table
  parts = hosts.all_gather(np.frombuffer(tables.to_bytes(table), np.uint8))
  # In one piece, as a single process would have made it: how a file lies depends on the pieces.
  return pa.concat_tables([tables.from_bytes(part.tobytes()) for part in parts]).combine_chunks()


def _collect(round_: Round, stage: str, name: str, shards: int) -> pa.Table:
  table = pa.concat_tables([tables.read(round_.shard(stage, i)) for i in range(shards)])
  tables.write(round_.table(name), table)
  return table
