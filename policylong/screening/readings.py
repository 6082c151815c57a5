"""The tables of a shard: its roots, the rows that may be scored for them, and the verdicts of those that were."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from policylong.corpus.texts import ChunkTokens
from policylong.records import Anchor, Candidate, EntropyTrace, Root, Verdict
from policylong.screening.verify import Pair, Reading
from policylong.storage import tables

ROOTS = pa.schema([
    ("number", pa.int64()),  # which of the round's documents
    ("doc_id", pa.string()), ("source", pa.string()), ("start", pa.int64()), ("end", pa.int64()),
    ("tokens", pa.list_(pa.int32())), ("pieces", pa.list_(pa.string())), ("entropy", pa.list_(pa.float32())),
    ("nll", pa.list_(pa.float32())), ("threshold", pa.float64()), ("policy_step", pa.int64())])
Proposal = tuple[tuple[str, str], Mapping[int, Candidate]]
"""((doc id, chunk id), {position: the candidate of the anchor there}) of a row; {} of a control."""


def read_roots(table: pa.Table) -> tuple[list[Root], list[EntropyTrace]]:
  """The roots and traces of a `ROOTS` table."""
  roots, traces = [], []
  for row in table.select(["doc_id", "start", "end", "tokens", "pieces", "entropy", "nll", "policy_step"]).to_pylist():
    roots.append(Root(row["doc_id"], row["start"], row["end"], np.asarray(row["tokens"], np.int32),
                      tuple(row["pieces"])))
    traces.append(EntropyTrace(row["doc_id"], np.asarray(row["entropy"], np.float32),
                               np.asarray(row["nll"], np.float32), row["policy_step"]))
  return roots, traces


def pairs(roots: Sequence[Root], anchors: Sequence[Anchor], candidates: Sequence[Candidate], chunk_tokens: ChunkTokens
          ) -> tuple[list[Pair], list[Proposal]]:
  """The (chunk, root) pairs of a shard, root by root, and who proposed each."""
  root_of = {root.doc_id: root for root in roots}
  positions: dict[str, list[int]] = {}
  for anchor in anchors:
    positions.setdefault(anchor.doc_id, []).append(anchor.position)
  proposals: dict[tuple[str, str], dict] = {}
  for candidate in candidates:
    own = proposals.setdefault((candidate.doc_id, candidate.chunk_id), {})
    if candidate.kind == "retrieved":
      own[candidate.position] = candidate
  chunk_tokens.prepare(chunk_id for _, chunk_id in proposals)
  places = {doc_id: np.asarray(own, np.int32) for doc_id, own in positions.items()}
  return [Pair(doc_id, root_of[doc_id].tokens, places[doc_id], chunk_tokens(chunk_id))
          for doc_id, chunk_id in proposals], list(proposals.items())


def verdicts(pairs: Sequence[Pair], proposals: Sequence[Proposal], readings: Sequence[Reading], policy_step: int
             ) -> pa.Table:
  """The verdicts of the scored pairs before the thresholds are known: `accepted` is false throughout."""
  if not pairs:
    return tables.from_records(Verdict, [])
  counts = [len(pair.positions) for pair in pairs]
  starts, rows = np.cumsum([0, *counts]), sum(counts)
  read = Reading(*(np.concatenate(values).astype(np.float64) for values in zip(*readings)))
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
      "rank": rank, "similarity": similarity, **read._asdict(),
      "gain": (read.entropy_before - read.entropy_after) / read.entropy_before, "accepted": np.zeros(rows, bool),
      "policy_step": np.full(rows, policy_step)})
