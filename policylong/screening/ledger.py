"""What the shards of a round cost and gave so far: whether it is fed, and how the next shards choose their rows.

Shards are entered in their order, each judged by the thresholds that the control so far gives. So what is decided
depends on the shards alone: not on the number of processes, and not on where a killed run goes on.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from policylong import config as config_lib
from policylong.screening import costs, judge
from policylong.screening.promise import FEATURES, Promise
from policylong.synthesis.filling import Filling

# Rows that a fit reads at most: a sixteenth of a large round has more, and learns nothing from them.
_MOST_ROWS = 200_000
CONTROL = ("gain", "nll_before", "nll_after")


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a shard chooses: by which promise, and how many tokens it may score for each that it fills."""
  promise: Promise
  rate: float

  def to_json(self) -> dict:
    """Numbers that read back as they are."""
    return {"promise": self.promise.to_json(), "rate": self.rate}

  @classmethod
  def from_json(cls, value: dict) -> "Plan":
    """What `to_json` gave."""
    return cls(Promise.from_json(value["promise"]), value["rate"])


class Ledger:
  """The accounts of a round.

  Args:
    config: of the screening.
    filling: an empty one of the round's sequences.
    trained: tokens that its training reads.
    to_fill: tokens of the sequences that it is fed with; more than `trained` where training chooses among them.
    begun: the promise that the round begins with.
  """

  def __init__(self, config: config_lib.Screening, filling: Filling, trained: int, to_fill: int, begun: Promise):
    self.filling, self.spent, self.shards = filling, 0, 0
    self._config, self._trained, self._to_fill, self._begun = config, trained, to_fill, begun
    self._budget = None if config.budget is None else config.budget * trained  # tokens
    self._control: list[pa.Table] = []
    self._features: list[np.ndarray] = []
    self._passed: list[np.ndarray] = []

  def enter(self, roots: pa.Table, rows: pa.Table, verdicts: pa.Table) -> None:
    """The next shard: its roots, its rows (`rows.ROWS`), and the verdicts of those that were scored, in order."""
    self.shards += 1
    self.spent += costs.scored_tokens(roots, rows)
    self._control.append(verdicts.filter(pc.equal(verdicts["kind"], "control")).select(CONTROL))
    limits = judge.thresholds(self._config, pa.concat_tables(self._control))
    accepted = judge.accepted(verdicts, limits)
    gain = costs.best_gains(rows, verdicts, accepted)
    scored = rows.filter(rows["scored"])
    retrieved = ~scored["control"].to_numpy(zero_copy_only=False)
    if self._budget is not None:
      features = np.stack(scored["features"].to_numpy(zero_copy_only=False)) if scored.num_rows else (
          np.zeros((0, len(FEATURES))))
      self._features.append(features[retrieved])
      self._passed.append(costs.best_gains(rows, verdicts, accepted, within=True)[retrieved] > 0)
    self._fill(scored, np.where(retrieved, gain, 0.0))

  def _fill(self, scored: pa.Table, gain: np.ndarray) -> None:
    """Roots in order, each with its positives, best first."""
    doc_ids = scored["doc_id"].to_numpy(zero_copy_only=False)
    sizes, root_tokens = scored["chunk_tokens"].to_numpy(), scored["root_tokens"].to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], doc_ids[1:] != doc_ids[:-1]])[:len(doc_ids)])
    for start, end in zip(starts, [*starts[1:], len(doc_ids)]):
      own = start + np.argsort(-gain[start:end], kind="stable")
      self.filling.add(int(root_tokens[start]), sizes[own[gain[own] > 0]].tolist())

  def over(self, sequences: int) -> bool:
    """Whether no further shard is needed, or none can be paid: `sequences` are filled, or the budget is spent."""
    return self.filling.sequences >= sequences or self.exhausted

  @property
  def exhausted(self) -> bool:
    """Whether the budget is spent."""
    return self._budget is not None and self.spent >= self._budget

  def plan(self) -> Plan | None:
    """How the shards that follow choose; None where there is no budget."""
    if self._budget is None:
      return None
    promise = self._begun
    if self._features:
      features, passed = np.concatenate(self._features), np.concatenate(self._passed)
      every = -(-len(passed) // _MOST_ROWS) or 1
      promise = promise.fitted(features[::every], passed[::every])
    left = max(1, self._to_fill - self.filling.tokens)
    # A filled token gives so much of one to training. What was saved is not spent on rows that are worth less than
    # those of other shards.
    worth = self._config.budget * (self._trained / self._to_fill)
    return Plan(promise, min(worth, max(0.0, self._budget - self.spent) / left))
