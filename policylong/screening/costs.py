"""What the rows of a round cost and found."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from policylong.screening import budget


class Costs:
  """What the shards of a round scored, and what the probe says of the rest."""

  def __init__(self, budgeted: bool):
    self._budgeted = budgeted
    self._tokens = {"scored": 0, "padded": 0, "scan": 0}
    self._rows = {"proposed": 0, "scored": 0}
    self._verified = {"retrieved": 0, "control": 0}  # (anchor, chunk) pairs
    self._elsewhere = 0  # positives found outside of the probe
    self._found: list[int] = []  # of each root of the probe, by the rule
    self._there: list[int] = []  # and in all
    self._documents: list[str] = []  # of the probe

  def enter(self, roots: pa.Table, rows: pa.Table, verdicts: pa.Table, accepted: np.ndarray) -> None:
    """A shard: its roots, its rows, the verdicts of those that were scored, and which of these were accepted."""
    self._tokens["scored"] += scored_tokens(roots, rows)
    self._tokens["padded"] += scored_tokens(roots, rows, padded=True)
    self._tokens["scan"] += pc.sum(pc.list_value_length(roots["tokens"])).as_py() or 0
    self._rows["proposed"] += rows.num_rows
    scored = rows.filter(rows["scored"])
    probe, chosen, control = (scored[name].to_numpy() for name in ("probe", "chosen", "control"))
    self._rows["scored"] += scored.num_rows
    self._verified["retrieved"] += int(scored["anchors"].to_numpy()[~control].sum())
    self._verified["control"] += int(scored["anchors"].to_numpy()[control].sum())
    if not self._budgeted:
      return
    passed, within = ((best_gains(rows, verdicts, accepted, within) > 0) & ~control for within in (False, True))
    self._elsewhere += int((passed & ~probe).sum())
    of_probe = pa.table({"doc_id": scored["doc_id"], "there": (passed & probe).astype(int),
                         "found": (within & probe & chosen).astype(int)}).filter(pa.array(probe))
    per_root = of_probe.group_by("doc_id", use_threads=False).aggregate([("there", "sum"), ("found", "sum")])
    self._found += per_root["found_sum"].to_pylist()
    self._there += per_root["there_sum"].to_pylist()
    self._documents += per_root["doc_id"].to_pylist()

  def summary(self) -> dict:
    """Tokens, rows and verified pairs and, with a budget, the share of all positives that it found, 95% interval."""
    result: dict = {"tokens": self._tokens, "rows": self._rows, "verified": self._verified}
    if self._budgeted:
      there = sum(self._there)

      def overall(share: float) -> float:
        """Of the probe everything is found; elsewhere this share."""
        if not share:
          return 0.0 if self._elsewhere else 1.0
        found = self._elsewhere + there
        return found / (self._elsewhere / share + there) if found else math.nan
      share, low, high = budget.found_share(self._found, self._there)
      result["probe"] = {"documents": self._documents, "roots": len(self._there), "positives": there,
                         "found": sum(self._found),
                         "elsewhere": self._elsewhere,
                         "share": None if math.isnan(share) else overall(share),
                         "low": overall(low), "high": overall(high)}
    return result


def scored_tokens(roots: pa.Table, rows: pa.Table, padded: bool = False) -> int:
  """Tokens that a shard scored: of the scan, of the rows, and of the roots alone beside them.

  `padded`: the rows as they were padded; a scan is counted without its padding.
  """
  scan = pc.sum(pc.list_value_length(roots["tokens"])).as_py() or 0
  scored = rows.filter(rows["scored"])
  # Each root was scored alone once for each padded length of its rows.
  alone = pa.table({"doc_id": scored["doc_id"], "padded": scored["padded"],
                    "window": pc.subtract(scored["tokens"], scored["chunk_tokens"])}).group_by(
                        ["doc_id", "padded"]).aggregate([("window", "max")])
  of_rows, of_roots = ("padded", "padded") if padded else ("tokens", "window_max")
  return scan + (pc.sum(scored[of_rows]).as_py() or 0) + (pc.sum(alone[of_roots]).as_py() or 0)


def best_gains(rows: pa.Table, verdicts: pa.Table, accepted: np.ndarray, within: bool = False) -> np.ndarray:
  """float64[scored rows]: the highest accepted gain of each row's verdicts; 0 where no anchor accepted.

  `within`: of the anchors that the row needs to read.
  """
  scored = rows.filter(rows["scored"])
  counts = scored["anchors"].to_numpy()
  if not len(counts):
    return np.zeros(0)
  starts = np.cumsum([0, *counts[:-1]])
  if within:
    accepted = accepted & (np.arange(len(accepted)) - np.repeat(starts, counts) <
                           np.repeat(scored["within"].to_numpy(), counts))
  return np.maximum.reduceat(np.where(accepted, verdicts["gain"].to_numpy(), 0.0), starts)
