"""The off-policy gap: last round's accepted dependencies as the current policy sees them.

A fixed data set would still train on them. The share that the new policy would reject is what a round of
screening with the old weights would have got wrong. Where a round had a budget only its probe is looked at: what the
rule chose is not what it chose the round before, and the gaps could not be compared.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from policylong.corpus.texts import ChunkTokens
from policylong.devices import hosts
from policylong.screening import judge
from policylong.screening.readings import read_roots
from policylong.screening.scorer import Policy
from policylong.screening.screen import of_all_processes
from policylong.screening.verify import Pair, planned_tokens, verify
from policylong.storage import tables
from policylong.storage.progress import Bar
from policylong.storage.workdir import Round, read_json

# What judges read of a verdict, and what a recheck keeps of it.
_NOW = pa.schema([("doc_id", pa.string()), ("position", pa.int64()), ("chunk_id", pa.string()), ("kind", pa.string()),
                  *((name, pa.float64()) for name in (
                      "entropy_before", "entropy_after", "nll_before", "nll_after", "gain"))])


@dataclasses.dataclass(frozen=True)
class Recheck:
  """An accepted dependency of an earlier round under a later policy.

  right_then: whether the token had become likelier too (`judge.right`); rejected: it would not pass any more.
  """
  doc_id: str
  position: int
  chunk_id: str
  gain_then: float
  gain_now: float
  entropy_before: float
  entropy_after: float
  nll_before: float
  nll_after: float
  right_then: bool
  rejected: bool
  policy_step: int


def recheck(previous: Round, policy: Policy, chunk_tokens: ChunkTokens, most_positions: int) -> pa.Table:
  """Verifies again every accepted (anchor, chunk) of the round `previous`; of several processes each takes a share.

  Where a verdict is compared with the control at its anchor (`control_margin`), its root's random chunks are too.

  Args:
    previous: a screened round.
    policy: of now.
    chunk_tokens: as in the screening.
    most_positions: the static number of positions a row reads at most.

  Returns:
    A table of `Recheck` records.
  """
  judged = read_json(previous.judged_path)
  limits = judge.Thresholds(**judged["thresholds"])
  then, control = _accepted(previous, judged, limits)
  # All accepted anchors of a root are read in each of its rows: pairs of one root share one set of positions.
  positions: dict[str, set[int]] = {}
  for (doc_id, _), known in then.items():
    positions.setdefault(doc_id, set()).update(known)
  chunks = [*then, *(pair for pair in control if pair[0] in positions)]
  chunk_tokens.prepare(chunk_id for _, chunk_id in chunks)
  roots, _ = read_roots(tables.read(previous.table("roots")))
  root_of = {root.doc_id: root for root in roots}
  pairs = [Pair(doc_id, root_of[doc_id].tokens, np.asarray(sorted(positions[doc_id]), np.int32),
                chunk_tokens(chunk_id)) for doc_id, chunk_id in chunks]
  with Bar(desc=f"round {previous.index} re-verified", total=planned_tokens(pairs), unit="tok", unit_scale=True,
           mininterval=1.0, disable=not hosts.is_first()) as bar:
    readings = verify(policy.scorer, pairs, most_positions, bar.update)
  rows = []
  for pair, (doc_id, chunk_id), reading in zip(pairs, chunks, readings):
    known = then.get((doc_id, chunk_id))
    for t, h0, h1, l0, l1 in zip(pair.positions.tolist(), *(values.tolist() for values in reading)):
      if known is None or t in known:
        rows.append((doc_id, t, chunk_id, "control" if known is None else "retrieved", h0, h1, l0, l1, (h0 - h1) / h0))
  now = pa.table([list(column) for column in zip(*rows)] or [[] for _ in _NOW], schema=_NOW)
  result = []
  for (doc_id, t, chunk_id, kind, h0, h1, l0, l1, gain), passes in zip(rows, judge.accepted(now, limits).tolist()):
    if kind == "retrieved":
      gain_then, right_then = then[doc_id, chunk_id][t]
      result.append(Recheck(doc_id, t, chunk_id, gain_then, gain, h0, h1, l0, l1, right_then, not passes, policy.step))
  return of_all_processes(tables.from_records(Recheck, result))  # in the order of the roots


def _accepted(previous: Round, judged: dict, limits: judge.Thresholds) -> tuple[dict, list[tuple[str, str]]]:
  """This process's share of a round: {(doc id, chunk id): {position: (gain, right)}}, and its roots' random chunks.

  The latter only where verdicts are compared with them.
  """
  verdicts = tables.read(previous.table("verdicts"), [
      "doc_id", "position", "chunk_id", "kind", "gain", "nll_before", "nll_after", "accepted"])
  retrieved = pc.equal(verdicts["kind"], "retrieved")
  taken = verdicts.filter(pc.and_(verdicts["accepted"], retrieved))
  # Whole roots to a process: the pairs of a root share the row of the root alone.
  documents = pc.unique(taken["doc_id"])
  if "probe" in judged:
    documents = documents.filter(pc.is_in(documents, pa.array(judged["probe"]["documents"], pa.string())))
  mine = hosts.share(len(documents))
  taken = taken.filter(pc.is_in(taken["doc_id"], documents.slice(mine.start, len(mine))))
  then: dict[tuple[str, str], dict[int, tuple[float, bool]]] = {}
  for doc_id, position, chunk_id, gain, right in zip(*(taken[name].to_pylist() for name in (
      "doc_id", "position", "chunk_id", "gain")), judge.right(taken, limits).tolist()):
    then.setdefault((doc_id, chunk_id), {})[position] = gain, right
  if limits.control_margin is None:
    return then, []
  control = verdicts.filter(pc.invert(retrieved))
  return then, list(dict.fromkeys(zip(control["doc_id"].to_pylist(), control["chunk_id"].to_pylist())))
