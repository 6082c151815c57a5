"""The off-policy gap: last round's accepted dependencies as the current policy sees them.

A fixed data set would still train on them. The share that the new policy would reject is what a round of
screening with the old weights would have got wrong.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from policylong.corpus.texts import ChunkTokens
from policylong.devices import hosts
from policylong.screening.scorer import Scorer
from policylong.screening.screen import of_all_processes, read_roots
from policylong.screening.verify import Pair, planned_tokens, verify
from policylong.storage import tables
from policylong.storage.progress import Bar
from policylong.storage.workdir import Round


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
  verdicts = tables.read(previous.table("verdicts"), ["doc_id", "position", "chunk_id", "kind", "gain", "accepted"])
  taken = verdicts.filter(pc.and_(verdicts["accepted"], pc.equal(verdicts["kind"], "retrieved")))
  # Whole roots to a process: the pairs of a root share the row of the root alone.
  documents = pc.unique(taken["doc_id"])
  mine = hosts.share(len(documents))
  taken = taken.filter(pc.is_in(taken["doc_id"], documents.slice(mine.start, len(mine))))
  # All accepted anchors of a root are read in each of its rows: pairs of one root share one set of positions.
  positions: dict[str, set[int]] = {}
  then: dict[tuple[str, str], dict[int, float]] = {}
  for doc_id, position, chunk_id, gain in zip(*(taken[name].to_pylist() for name in (
      "doc_id", "position", "chunk_id", "gain"))):
    positions.setdefault(doc_id, set()).add(position)
    then.setdefault((doc_id, chunk_id), {})[position] = gain
  pairs = [Pair(doc_id, root_of[doc_id].tokens, np.asarray(sorted(positions[doc_id]), np.int32),
                chunk_tokens(chunk_id)) for doc_id, chunk_id in then]
  with Bar(desc=f"round {previous.index} re-verified", total=planned_tokens(pairs), unit="tok", unit_scale=True,
           mininterval=1.0, disable=not hosts.is_first()) as bar:
    scores = verify(scorer, pairs, most_positions, bar.update)
  result = []
  for pair, ((doc_id, chunk_id), gains), (before, after) in zip(pairs, then.items(), scores):
    for t, h0, h1 in zip(pair.positions.tolist(), before.tolist(), after.tolist()):
      if t in gains:
        now = (h0 - h1) / h0
        result.append(Recheck(doc_id, t, chunk_id, gains[t], now, h0, h1, now <= epsilon, policy_step))
  return of_all_processes(tables.from_records(Recheck, result))  # in the order of the roots
