"""One round of screening, shard by shard: the device scans and verifies while the host retrieves.

Each shard of roots goes through scan -> retrieve -> verify; each step leaves a file, and a restart takes
up where files are missing. The threshold, which may depend on the whole round's control, is then applied
to the gains, and the round's tables are written.

Of several processes each has every P-th shard. They go in waves, one shard of each, because they search
the index together; the threshold and the tables are the first one's.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Sequence
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
from policylong.records import Anchor, Candidate, EntropyTrace, Negative, Positive, Root, Verdict
from policylong.screening import judge
from policylong.screening.anchors import entropy_threshold
from policylong.screening.retrieve import Retriever
from policylong.screening.scorer import Scorer
from policylong.screening.verify import Pair, planned_tokens, verify
from policylong.storage import tables
from policylong.storage.progress import Bar
from policylong.storage.workdir import Round

# A round with more verdicts keeps of what other anchors retrieved only the accepted ones: with 35 anchors a root and 32
# candidates each, 25,000 roots have a billion, of which one in 35 is of an anchor's own candidate.
MOST_VERDICTS = 20_000_000

_ROOTS_SCHEMA = pa.schema([
    ("doc_id", pa.string()), ("source", pa.string()), ("start", pa.int64()), ("end", pa.int64()),
    ("tokens", pa.list_(pa.int32())), ("pieces", pa.list_(pa.string())), ("entropy", pa.list_(pa.float32())),
    ("nll", pa.list_(pa.float32())), ("threshold", pa.float64()), ("policy_step", pa.int64())])


@dataclasses.dataclass(frozen=True)
class Screener:
  """What a round of screening needs.

  `policy_step` is the training step of the weights in `scorer`; `sequence_length` the tokens of the sequences that
  negatives are to fill.
  """
  config: config_lib.Screening
  seed: int
  root_sources: tuple[str, ...]
  corpus: Corpus
  tokenizer: object
  retriever: Retriever
  chunk_tokens: ChunkTokens
  scorer: Scorer
  policy_step: int
  sequence_length: int

  def screen(self, round_: Round) -> None:
    """Writes the round's roots, anchors, verdicts, positives and negatives; finished ones stay.

    Raises:
      UserError: no root of the round has an anchor, or no candidate was accepted.
    """
    shards = self._shards(round_.index)
    self._score_shards(round_, shards)
    hosts.barrier("verified")
    if hosts.is_first() and not round_.table("verdicts").exists():
      self._judge(round_, len(shards))
    if not hosts.agreed(round_.table("negatives").exists()):
      self._negatives(round_)

  def _shards(self, round_index: int) -> list[list[int]]:
    config = self.config
    documents = sample_documents(self.corpus, seed=self.seed, round_index=round_index,
                                 count=config.roots_per_round, sources=self.root_sources)
    size = config.roots_per_shard
    return [documents[i:i + size] for i in range(0, len(documents), size)]

  def _score_shards(self, round_: Round, shards: Sequence[Sequence[int]]) -> None:
    """Every shard through scan, retrieve and verify; the host retrieves one while the device does others."""
    waves = self._waves(round_, len(shards))
    if not waves:
      return
    waiting: deque[tuple[int | None, Future | None]] = deque()
    # Several processes search together, and what they do together they do on their main threads.
    with (ThreadPoolExecutor(1) if hosts.count() == 1 else _AtOnce()) as host, Bar(
        desc=f"round {round_.index} screening", unit="tok", unit_scale=True, mininterval=1.0,
        total=0, grows=True, disable=not hosts.is_first()) as bar:
      for i, search in waves:
        if i is not None and not round_.shard("scan", i).exists():
          self._scan(round_, i, shards[i], bar)
        waiting.append((i, host.submit(self._retrieve, round_, i) if search else None))
        if len(waiting) > 1:
          self._verify_next(round_, waiting, bar)
      while waiting:
        self._verify_next(round_, waiting, bar)

  def _waves(self, round_: Round, shards: int) -> list[tuple[int | None, bool]]:
    """What is left: (the shard of this process or None, whether the index is searched for any shard of the wave)."""
    missing = {stage: hosts.agreed(np.array([not round_.shard(stage, i).exists() for i in range(shards)]))
               for stage in ("candidates", "verify")}
    waves = []
    for start in range(0, shards, hosts.count()):
      mine, wave = start + hosts.index(), slice(start, start + hosts.count())
      if missing["verify"][wave].any():
        unfinished = mine < shards and missing["verify"][mine]
        waves.append((mine if unfinished else None, bool(missing["candidates"][wave].any())))
    return waves

  def _scan(self, round_: Round, shard: int, documents: Sequence[int], bar: Bar) -> None:
    """Entropy and nll of every token of the shard's roots."""
    config = self.config
    roots = [root for i in documents if (root := root_span(
        self.corpus, self.tokenizer, i, root_tokens=config.root_tokens, min_root_tokens=config.min_root_tokens,
        seed=self.seed)) is not None]
    bar.total += sum(len(root.tokens) for root in roots)
    traces = self.scorer.traces([root.tokens for root in roots], bar.update)
    rows = []
    for root, (entropy, nll) in zip(roots, traces):
      source = self.corpus.document(self.corpus.document_index(root.doc_id)).source
      rows.append((root.doc_id, source, root.start, root.end, root.tokens, root.pieces, entropy, nll,
                   entropy_threshold(entropy, config.alpha), self.policy_step))
    columns = [list(column) for column in zip(*rows)] or [[] for _ in _ROOTS_SCHEMA]
    tables.write(round_.shard("scan", shard), pa.table(columns, schema=_ROOTS_SCHEMA))

  def _retrieve(self, round_: Round, shard: int | None) -> None:
    """Anchors and candidates of a scanned shard; of one process alone, it runs in the host thread."""
    if shard is None or round_.shard("candidates", shard).exists():
      self.retriever.candidates(round_.index, [], [])  # the other processes search, and this one has rows
      return
    roots, traces = read_roots(tables.read(round_.shard("scan", shard)))
    anchors, candidates = self.retriever.candidates(round_.index, roots, traces)
    tables.write(round_.shard("anchors", shard), tables.from_records(Anchor, anchors))
    tables.write(round_.shard("candidates", shard), tables.from_records(Candidate, candidates))

  def _verify_next(self, round_: Round, waiting: deque, bar: Bar) -> None:
    """Scores the oldest retrieved shard: every candidate and control against all anchors of its root."""
    shard, retrieved = waiting.popleft()
    if retrieved:
      retrieved.result()
    if shard is None:
      return
    roots, _ = read_roots(tables.read(round_.shard("scan", shard)))
    anchors = tables.to_records(Anchor, tables.read(round_.shard("anchors", shard)))
    candidates = tables.to_records(Candidate, tables.read(round_.shard("candidates", shard)))
    pairs, proposals = _pairs(roots, anchors, candidates, self.chunk_tokens)
    bar.total += planned_tokens(pairs)
    scores = verify(self.scorer, pairs, self.config.max_anchors_per_root, bar.update)
    tables.write(round_.shard("verify", shard), _score_table(pairs, proposals, scores, self.policy_step))

  def _judge(self, round_: Round, shards: int) -> None:
    """The round's tables up to the positives; `verdicts` is written last."""
    _collect(round_, "scan", "roots", shards)
    anchors = _collect(round_, "anchors", "anchors", shards)
    if not anchors.num_rows:
      roots = tables.read(round_.table("roots")).num_rows
      if not roots:
        raise UserError(f"round {round_.index}: none of its documents has screening.min_root_tokens = "
                        f"{self.config.min_root_tokens} tokens: lower it or take longer documents")
      raise UserError(f"round {round_.index}: none of the {roots} roots has an "
                      f"anchor at screening.alpha = {self.config.alpha}: lower alpha or screen more roots")
    control, rows = self._control_gains(round_, shards)
    if not len(control) and (self.config.epsilon is None or self.config.control_margin is not None):
      field = "epsilon_from_control" if self.config.epsilon is None else "control_margin"
      raise UserError(f"round {round_.index}: no random chunk was left to verify beside the candidates, and screening."
                      f"{field} needs some: use a larger corpus or a smaller screening.top_k")
    epsilon, _ = judge.threshold(self.config, control)
    kept, positives, best = [], [], -math.inf
    for i in range(shards):  # a root is in one shard whole
      scores = tables.read(round_.shard("verify", i))
      accepted = pa.array(judge.accepted(scores, epsilon, self.config.control_margin))
      verdicts = scores.set_column(scores.schema.get_field_index("accepted"), "accepted", accepted)
      positives += judge.positives(verdicts)
      kept.append(verdicts if rows <= MOST_VERDICTS else judge.own_or_accepted(verdicts))
      gains = scores.filter(pc.equal(scores["kind"], "retrieved"))["gain"].to_numpy()
      best = max(best, np.max(gains, initial=-math.inf))
    if not positives:
      raise UserError(
          f"round {round_.index}: of {rows - len(control)} verified (anchor, chunk) pairs none passes: the best gain "
          f"is {'none' if best == -math.inf else format(best, '.3f')}, wanted above epsilon = {epsilon:.3f}; "
          f"{'raise screening.epsilon_from_control' if self.config.epsilon is None else 'lower screening.epsilon'}, "
          "screen more roots or use a larger corpus")
    tables.write(round_.table("positives"), tables.from_records(Positive, positives))
    tables.write(round_.table("verdicts"), pa.concat_tables(kept))

  def _control_gains(self, round_: Round, shards: int) -> tuple[np.ndarray, int]:
    """The gains of all random chunks, f64[n], and the number of all verdicts."""
    control, rows = [np.zeros(0)], 0
    for i in range(shards):
      scores = tables.read(round_.shard("verify", i), ["kind", "gain"])
      control.append(scores.filter(pc.equal(scores["kind"], "control"))["gain"].to_numpy())
      rows += scores.num_rows
    return np.concatenate(control), rows

  def _negatives(self, round_: Round) -> None:
    """Hard negatives; each process ranks those of its share of the roots."""
    positives = tables.to_records(Positive, tables.read(round_.table("positives")))
    rejected = judge.rejected(tables.read(round_.table("verdicts"))) if self.config.negatives in (
        "rejected", "both") else []
    documents = list(dict.fromkeys(positive.doc_id for positive in positives))
    mine = {documents[i] for i in hosts.share(len(documents))}
    roots, _ = read_roots(tables.read(round_.table("roots")))
    negatives = self.retriever.negatives(
        [root for root in roots if root.doc_id in mine], [p for p in positives if p.doc_id in mine],
        [pair for pair in rejected if pair[0] in mine], self.sequence_length)
    table = of_all_processes(tables.from_records(Negative, negatives))
    if hosts.is_first():
      tables.write(round_.table("negatives"), table)


class _AtOnce(Executor):
  """Runs what is submitted before it returns, in the caller's thread."""

  def submit(self, function: Callable, /, *arguments, **named) -> Future:
    """A finished future."""
    future: Future = Future()
    future.set_result(function(*arguments, **named))
    return future


def of_all_processes(table: pa.Table) -> pa.Table:
  """The rows of all processes, in the order of their numbers; collective."""
  if hosts.count() == 1:
    return table
  parts = hosts.all_gather(np.frombuffer(tables.to_bytes(table), np.uint8))
  # In one piece, as a single process would have made it: how a file lies depends on the pieces.
  return pa.concat_tables([tables.from_bytes(part.tobytes()) for part in parts]).combine_chunks()


def read_roots(table: pa.Table) -> tuple[list[Root], list[EntropyTrace]]:
  """The roots and traces of a `roots` table (or scan shard)."""
  roots, traces = [], []
  for row in table.select(["doc_id", "start", "end", "tokens", "pieces", "entropy", "nll", "policy_step"]).to_pylist():
    roots.append(Root(row["doc_id"], row["start"], row["end"], np.asarray(row["tokens"], np.int32),
                      tuple(row["pieces"])))
    traces.append(EntropyTrace(row["doc_id"], np.asarray(row["entropy"], np.float32),
                               np.asarray(row["nll"], np.float32), row["policy_step"]))
  return roots, traces


def _pairs(roots, anchors, candidates, chunk_tokens):
  """The (chunk, root) pairs of a shard, and for each pair {position: its own Candidate} ({} for a control)."""
  root_of = {root.doc_id: root for root in roots}
  positions: dict[str, list[int]] = {}
  for anchor in anchors:
    positions.setdefault(anchor.doc_id, []).append(anchor.position)
  proposals: dict[tuple[str, str], dict] = {}
  for candidate in candidates:
    own = proposals.setdefault((candidate.doc_id, candidate.chunk_id), {})
    if candidate.kind == "retrieved":
      own[candidate.position] = candidate
  pairs = [Pair(doc_id, root_of[doc_id].tokens, np.asarray(positions[doc_id], np.int32), chunk_tokens(chunk_id))
           for doc_id, chunk_id in proposals]
  return pairs, list(proposals.items())


def _score_table(pairs, proposals, scores, policy_step: int) -> pa.Table:
  """The verdicts of a shard before the threshold is known: `accepted` is false throughout."""
  if not pairs:
    return tables.from_records(Verdict, [])
  counts = [len(pair.positions) for pair in pairs]
  starts, rows = np.cumsum([0, *counts]), sum(counts)
  before, after = (np.concatenate(entropies).astype(np.float64) for entropies in zip(*scores))
  rank, similarity = np.full(rows, -1), np.full(rows, np.nan)
  for start, pair, (_, own) in zip(starts, pairs, proposals):
    for position, candidate in own.items():
      row = start + np.searchsorted(pair.positions, position)
      rank[row], similarity[row] = candidate.rank, candidate.similarity

  def repeated(values):
    return pa.array(values).take(pa.array(np.repeat(np.arange(len(values)), counts)))
  return tables.from_columns(Verdict, {
      "doc_id": repeated([doc_id for (doc_id, _), _ in proposals]),
      "position": np.concatenate([pair.positions for pair in pairs]),
      "chunk_id": repeated([chunk_id for (_, chunk_id), _ in proposals]),
      "kind": repeated(["retrieved" if own else "control" for _, own in proposals]),
      "rank": rank, "similarity": similarity, "entropy_before": before, "entropy_after": after,
      "gain": (before - after) / before, "accepted": np.zeros(rows, bool), "policy_step": np.full(rows, policy_step)})


def _collect(round_: Round, stage: str, name: str, shards: int) -> pa.Table:
  table = pa.concat_tables([tables.read(round_.shard(stage, i)) for i in range(shards)])
  tables.write(round_.table(name), table)
  return table
