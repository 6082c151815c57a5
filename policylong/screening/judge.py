"""From readings to verdicts: the thresholds, what passes them, and the positives that are kept.

A context is evidence of a dependency if the policy becomes surer with it (its entropy falls by more than the share
epsilon: EntropyLong's rule, kept by PolicyLong). Surer is not right: with `evidence` "entropy_and_loss" the token that
stands there must also have become likelier, its nll lower by more than `loss_margin` nats. Both thresholds may come
from the control: what random chunks pass is not evidence of anything.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from policylong import config as config_lib
from policylong.records import Positive


@dataclasses.dataclass(frozen=True)
class Thresholds:
  """What a verdict must exceed.

  epsilon: of the gain, a share of the entropy before. loss_margin: of nll before - nll after, in nats; None where the
  loss is not asked. control_margin: of the gain above the best control gain at the same anchor; None: not asked.
  """
  epsilon: float
  loss_margin: float | None
  control_margin: float | None


def thresholds(config: config_lib.Screening, control: pa.Table) -> Thresholds:
  """The round's thresholds, from the config and the verdicts of its random chunks (gain, nll_before, nll_after)."""
  epsilon, margin = config.epsilon, config.loss_margin
  if epsilon is None:
    epsilon = smallest_passed_by(control["gain"].to_numpy(), config.epsilon_from_control)
  if config.evidence == "entropy_and_loss" and margin is None:
    margin = smallest_passed_by(loss_drop(control), config.loss_margin_from_control)
  return Thresholds(epsilon, margin if config.evidence == "entropy_and_loss" else None, config.control_margin)


def smallest_passed_by(values: np.ndarray, share: float) -> float:
  """The smallest threshold >= 0 that at most `share` of the values exceed.

  Args:
    values: f64[n], of random chunks at anchors.
    share: in [0, 1], e.g. 0.005.
  """
  passing = int(share * len(values))  # so many may exceed it
  if passing >= len(values):
    return 0.0
  return max(0.0, float(np.sort(values)[::-1][passing]))


def loss_drop(verdicts: pa.Table) -> np.ndarray:
  """f64[rows]: by how many nats the token that stands at the anchor became likelier."""
  return verdicts["nll_before"].to_numpy() - verdicts["nll_after"].to_numpy()


def right(verdicts: pa.Table, limits: Thresholds) -> np.ndarray:
  """bool[rows]: whether the token became likelier, by more than the margin where there is one."""
  return loss_drop(verdicts) > (limits.loss_margin or 0.0)


def accepted(verdicts: pa.Table, limits: Thresholds) -> np.ndarray:
  """bool[rows]: which verdicts pass.

  The margin above the control is asked of retrieved chunks only, as a control would be compared with itself.
  """
  gain = verdicts["gain"].to_numpy()
  passes = gain > limits.epsilon
  if limits.loss_margin is not None:
    passes &= right(verdicts, limits)
  if limits.control_margin is not None:
    best = _best_control(verdicts)
    retrieved = verdicts["kind"].to_numpy(zero_copy_only=False) == "retrieved"
    passes &= ~retrieved | (gain > best + limits.control_margin)
  return passes


def _best_control(scores: pa.Table) -> np.ndarray:
  """f64[rows]: the best gain of a control at the row's anchor; -inf where there is none."""
  control = scores.filter(pc.equal(scores["kind"], "control")).group_by(["doc_id", "position"])
  best = control.aggregate([("gain", "max")]).to_pydict()
  table = dict(zip(zip(best["doc_id"], best["position"]), best["gain_max"]))
  keys = zip(scores["doc_id"].to_pylist(), scores["position"].to_pylist())
  return np.array([table.get(key, -np.inf) for key in keys])


def positives(verdicts: pa.Table) -> list[Positive]:
  """The accepted retrieved chunks, each once per root with its best anchor, best gain first in a root."""
  taken = verdicts.filter(pc.and_(verdicts["accepted"], pc.equal(verdicts["kind"], "retrieved")))
  best: dict[tuple[str, str], Positive] = {}
  for doc_id, position, chunk_id, gain in zip(*(taken[name].to_pylist() for name in (
      "doc_id", "position", "chunk_id", "gain"))):
    known = best.get((doc_id, chunk_id))
    if known is None or gain > known.gain:
      best[doc_id, chunk_id] = Positive(doc_id, chunk_id, position, gain)
  order = {doc_id: i for i, doc_id in enumerate(dict.fromkeys(taken["doc_id"].to_pylist()))}
  return sorted(best.values(), key=lambda p: (order[p.doc_id], -p.gain, p.chunk_id))


def own_or_accepted(verdicts: pa.Table) -> pa.Table:
  """Without what an anchor rejected of the chunks that other anchors of its root retrieved."""
  others = pc.and_(pc.equal(verdicts["kind"], "retrieved"), pc.less(verdicts["rank"], 0))
  return verdicts.filter(pc.or_(verdicts["accepted"], pc.invert(others)))


def rejected(verdicts: pa.Table) -> list[tuple[str, str]]:
  """(doc id, chunk id) of retrieved chunks that no anchor accepted, lowest best gain first.

  Where a table is without what was rejected of other anchors' chunks, the best gain is that at the chunk's own ones.
  """
  retrieved = verdicts.filter(pc.equal(verdicts["kind"], "retrieved"))
  best = retrieved.group_by(["doc_id", "chunk_id"]).aggregate([("gain", "max"), ("accepted", "max")]).to_pydict()
  rows = [(gain, doc_id, chunk_id) for doc_id, chunk_id, gain, taken in zip(
      best["doc_id"], best["chunk_id"], best["gain_max"], best["accepted_max"]) if not taken]
  return [(doc_id, chunk_id) for _, doc_id, chunk_id in sorted(rows)]
