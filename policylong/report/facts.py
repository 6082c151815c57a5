"""What a round's tables say: the counts of DONE.json made a second time, and checks of the verdicts.

The page shows DONE.json's numbers; where the two differ, it says so.
"""

import math
from typing import Any

import numpy as np

from policylong.report.tables import RoundData

# The smallest difference of gains that means anything: they may have been computed in float32.
GAIN_TOLERANCE = 1e-5


def summary(round_: RoundData) -> dict:
  """DONE.json's numbers; what it lacks (an unfinished round), or has wrong, is counted from the tables."""
  found = counted(round_)
  told = {**found, **round_.summary}
  if _counts_too_many(round_):
    told["acceptance"] = {name: {**row, **found.get("acceptance", {}).get(name, {})}
                          for name, row in round_.summary["acceptance"].items()}
  return told


def _counts_too_many(round_: RoundData) -> bool:
  """Whether DONE.json takes each row of a budget to have read all anchors of its root, as earlier versions did."""
  return round_.budgeted and bool(round_.summary.get("acceptance")) and "verified" not in round_.summary


def counted(round_: RoundData) -> dict:
  """The counts of DONE.json, from the tables alone; a table that is not there leaves its keys out."""
  result: dict[str, Any] = {}
  roots, anchors = round_.rows("roots"), round_.columns("anchors", ("doc_id",))
  if roots is not None:
    result["roots"] = roots
  if anchors is not None:
    result["anchors"] = len(anchors["doc_id"])
    if roots:
      result["anchors_per_root"] = len(anchors["doc_id"]) / roots
      result["roots_without_anchors"] = roots - len(set(anchors["doc_id"]))
  if pairs := acceptance(round_):
    result["acceptance"] = pairs
  gains = accepted_gains(round_)
  if len(gains):
    result["mean_gain"] = float(gains.mean())
  positives = round_.columns("positives", ("doc_id",))
  if positives is not None:
    result["positives"] = len(positives["doc_id"])
    result["roots_with_positives"] = len(set(positives["doc_id"]))
  if (negatives := round_.rows("negatives")) is not None:
    result["negatives"] = negatives
  return result


def acceptance(round_: RoundData) -> dict[str, dict]:
  """{"own" | "other" | "retrieved" | "control": {"pairs", "accepted", "rate"}} from the verdicts; {} if absent.

  Where the table is not whole and the number of "other" pairs is not known, these and "retrieved" are left out.
  """
  groups = {name: (len(pairs["accepted"]), int(pairs["accepted"].sum())) for name, pairs in round_.pairs.items()}
  if not groups:
    return {}
  own, other = groups["own"], groups.pop("other")
  if (verified := round_.verified_pairs) is not None:
    groups |= {"other": (verified - own[0], other[1]), "retrieved": (verified, own[1] + other[1])}
  return {name: {"pairs": pairs, "accepted": accepted, "rate": accepted / pairs if pairs else None}
          for name, (pairs, accepted) in groups.items()}


def accepted_gains(round_: RoundData) -> np.ndarray:
  """The gains of all accepted pairs of retrieved chunk and anchor."""
  groups = [round_.pairs[name] for name in ("own", "other") if name in round_.pairs]
  return np.concatenate([group["gain"][group["accepted"].astype(bool)] for group in groups]) if groups else np.array([])


def disagreements(round_: RoundData) -> list[str]:
  """Sentences: where the tables and DONE.json count differently."""
  sentences = []
  for name, found in counted(round_).items():
    stated = round_.summary.get(name)
    if name == "acceptance":
      for group, row in found.items():
        told = (stated or {}).get(group)
        for field in ("pairs", "accepted"):
          if field == "pairs" and group in ("other", "retrieved") and _counts_too_many(round_):
            continue
          if told is not None and told.get(field) != row[field]:
            sentences.append(f"{field} ({group}) is {row[field]} in verdicts.parquet and {told.get(field)} "
                             "in DONE.json")
    elif isinstance(found, int) and stated is not None and stated != found:
      sentences.append(f"{name} is {found} in the tables and {stated} in DONE.json")
  return sentences


def wrong_verdicts(round_: RoundData, epsilon: float | None, margin: bool) -> tuple[int, int, int]:
  """Recomputes every verdict: (verdicts, gains that are not (before - after) / before, decisions against thresholds).

  With a margin over the control a gain above epsilon may be refused; a gain below it never passes.
  """
  loss_margin = round_.summary.get("loss_margin")
  total = gains = decisions = 0
  for name, pairs in round_.pairs.items():
    before, after, gain = (pairs[key].astype(np.float64) for key in ("entropy_before", "entropy_after", "gain"))
    accepted = pairs["accepted"].astype(bool)
    total += len(gain)
    expected = np.divide(before - after, before, out=np.full_like(before, np.nan), where=before > 0)
    wrong = np.isfinite(expected) & ~(np.abs(expected - gain) <= GAIN_TOLERANCE * np.maximum(1, np.abs(expected)))
    gains += int(wrong.sum())
    if epsilon is not None:
      drop = pairs["nll_before"].astype(np.float64) - pairs["nll_after"].astype(np.float64)
      beyond = math.inf if loss_margin is None else drop - loss_margin
      decisions += int((accepted & ((gain < epsilon - GAIN_TOLERANCE) | (beyond < -GAIN_TOLERANCE))).sum())
      if not margin or name == "control":
        decisions += int((~accepted & (gain > epsilon + GAIN_TOLERANCE) & (beyond > GAIN_TOLERANCE)).sum())
  return total, gains, decisions


def anchors_below_threshold(round_: RoundData) -> int:
  """How many anchors are not above their root's threshold."""
  columns = round_.columns("anchors", ("entropy", "threshold"))
  return 0 if columns is None else int((~(columns["entropy"] >= columns["threshold"] - GAIN_TOLERANCE)).sum())


def wilson(accepted: int, pairs: int) -> tuple[float, float]:
  """The 95% interval of a rate (Wilson 1927), as if the pairs were independent."""
  if not pairs:
    return 0.0, 1.0
  z, rate = 1.959964, accepted / pairs
  middle = rate + z * z / (2 * pairs)
  half = z * math.sqrt(rate * (1 - rate) / pairs + z * z / (4 * pairs * pairs))
  scale = 1 + z * z / pairs
  return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
