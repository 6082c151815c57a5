"""From gains to verdicts: the threshold, what passes it, and the positives that are kept."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from policylong import config as config_lib
from policylong.records import Positive


def epsilon_from_control(control_gains: np.ndarray, share: float) -> float:
  """The smallest epsilon >= 0 that at most `share` of the control's gains exceed.

  Args:
    control_gains: f64[n] gains of random chunks at anchors.
    share: in [0, 1], e.g. 0.005.
  """
  passing = int(share * len(control_gains))  # so many may exceed it
  if passing >= len(control_gains):
    return 0.0
  return max(0.0, float(np.sort(control_gains)[::-1][passing]))


def accepted(scores: pa.Table, epsilon: float, control_margin: float | None) -> np.ndarray:
  """bool[rows]: gain > epsilon and, with a margin, also above the best control gain at the same anchor.

  The margin is asked of retrieved chunks only: of a control, `accepted` is just gain > epsilon.
  """
  gain = scores["gain"].to_numpy()
  passes = gain > epsilon
  if control_margin is not None:
    best = _best_control(scores)
    retrieved = scores["kind"].to_numpy(zero_copy_only=False) == "retrieved"
    passes &= ~retrieved | (gain > best + control_margin)
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


def threshold(config: config_lib.Screening, control_gains: np.ndarray) -> tuple[float, str]:
  """The round's epsilon, and whether it comes from the "config" or the "control"."""
  if config.epsilon is not None:
    return config.epsilon, "config"
  return epsilon_from_control(control_gains, config.epsilon_from_control), "control"
