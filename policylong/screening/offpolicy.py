"""The off-policy gap: last round's accepted dependencies as the current policy sees them.

A fixed data set would still train on them. The share that the new policy would reject is what a round of
screening with the old weights would have got wrong.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from policylong import hosts, tables
from policylong.screening.scorer import Scorer
from policylong.screening.screen import read_roots
from policylong.screening.texts import ChunkTokens
from policylong.screening.verify import Pair, planned_tokens, verify
from policylong.workdir import Round


@dataclasses.dataclass(frozen=True)
class Recheck:
  """An accepted dependency of an earlier round under a later policy. rejected: gain_now <= its epsilon."""
  doc_id: str
  position: int
  chunk_id: str
  gain_then: float
  gain_now: float
  entropy_before: float
  entropy_after: float
  rejected: bool
  policy_step: int


def recheck(previous: Round, epsilon: float, scorer: Scorer, chunk_tokens: ChunkTokens, most_positions: int,
            policy_step: int) -> pa.Table:
  """Verifies again every accepted (anchor, chunk) of the round `previous`; of several processes each takes a share.

  Args:
    previous: a screened round.
    epsilon: the threshold that it used.
    scorer: the policy of now, at training step `policy_step`.
    chunk_tokens: as in the screening.
    most_positions: the static number of positions a row reads at most.

  Returns:
    A table of `Recheck` records.
  """
  roots, _ = read_roots(tables.read(previous.table("roots")))
  root_of = {root.doc_id: root for root in roots}
  verdicts = tables.read(previous.table("verdicts"))
  taken = verdicts.filter(pc.and_(verdicts["accepted"], pc.equal(verdicts["kind"], "retrieved"))).to_pylist()
  # All accepted anchors of a root are read in each of its rows: pairs of one root share one set of positions.
  positions: dict[str, set[int]] = {}
  then: dict[tuple[str, str], dict[int, float]] = {}
  for row in taken:
    positions.setdefault(row["doc_id"], set()).add(row["position"])
    then.setdefault((row["doc_id"], row["chunk_id"]), {})[row["position"]] = row["gain"]
  # Whole roots to a process: the pairs of a root share the row of the root alone.
  documents = list(positions)
  mine = {documents[i] for i in hosts.share(len(documents))}
  then = {key: gains for key, gains in then.items() if key[0] in mine}
  pairs = [Pair(doc_id, root_of[doc_id].tokens, np.asarray(sorted(positions[doc_id]), np.int32),
                chunk_tokens(chunk_id)) for doc_id, chunk_id in then]
  with tqdm(desc=f"round {previous.index} re-verified", total=planned_tokens(pairs), unit="tok", unit_scale=True,
            mininterval=1.0, disable=not hosts.is_first()) as bar:
    scores = verify(scorer, pairs, most_positions, bar.update)
  result = []
  for pair, ((doc_id, chunk_id), gains), (before, after) in zip(pairs, then.items(), scores):
    for t, h0, h1 in zip(pair.positions.tolist(), before.tolist(), after.tolist()):
      if t in gains:
        now = (h0 - h1) / h0
        result.append(Recheck(doc_id, t, chunk_id, gains[t], now, h0, h1, now <= epsilon, policy_step))
  return _of_all(tables.from_records(Recheck, result))


def _of_all(table: pa.Table) -> pa.Table:
  """The rows of all processes in the order of their numbers, which is that of the roots."""
  if hosts.count() == 1:
    return table
  parts = hosts.all_gather(np.frombuffer(tables.to_bytes(table), np.uint8))
  # In one piece, as a single process would have made it: how a file lies depends on the pieces.
  return pa.concat_tables([tables.from_bytes(part.tobytes()) for part in parts]).combine_chunks()
