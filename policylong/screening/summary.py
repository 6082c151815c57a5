"""A screened round in numbers: counts and rates, read off its tables."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from policylong import config as config_lib
from policylong.screening import judge
from policylong.storage import tables
from policylong.storage.workdir import Round, read_json


def summarise(config: config_lib.Screening, round_: Round, previous: Round | None) -> dict:
  """The round's summary for `screened.json`, `DONE.json` and the page; entropies in nats.

  Acceptance is counted over the (anchor, chunk) pairs that were scored: "own" pairs an anchor with what it retrieved
  itself, "other" with what another anchor of its root retrieved, "retrieved" is both, "control" random chunks. Of the
  accepted ones "right" are those whose token became likelier too (`judge.right`).
  """
  judged = read_json(round_.judged_path)
  limits = judge.Thresholds(**judged["thresholds"])
  roots = tables.read(round_.table("roots"))
  anchors = tables.read(round_.table("anchors"))
  verdicts = tables.read(round_.table("verdicts"), ["kind", "rank", "gain", "nll_before", "nll_after", "accepted"])
  positives = tables.read(round_.table("positives"))
  entropy = roots["entropy"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
  entropy = entropy[~np.isnan(entropy)].astype(np.float64)
  retrieved = pc.equal(verdicts["kind"], "retrieved").to_numpy()
  ranks, gains = verdicts["rank"].to_numpy(), verdicts["gain"].to_numpy()
  accepted = verdicts["accepted"].to_numpy()
  right = accepted & judge.right(verdicts, limits)
  own = retrieved & (ranks >= 0)
  # Of a large round the table of verdicts is not whole.
  pairs = {"own": int(own.sum()), "other": judged["verified"]["retrieved"] - int(own.sum()), **judged["verified"]}
  groups = {"own": own, "other": retrieved & ~own, "retrieved": retrieved, "control": ~retrieved}
  taken = gains[retrieved & accepted]
  return {
      "round": round_.index,
      "policy_step": roots["policy_step"][0].as_py(),
      "roots": roots.num_rows,
      "root_tokens": int(pc.sum(pc.list_value_length(roots["tokens"])).as_py()),
      "roots_without_anchors": roots.num_rows - len(pc.unique(anchors["doc_id"])),
      "roots_with_positives": len(pc.unique(positives["doc_id"])),
      "entropy": {"mean": float(entropy.mean()), "std": float(entropy.std()),
                  "percentiles": {str(p): float(np.percentile(entropy, p)) for p in (5, 25, 50, 75, 95)}},
      "anchors": anchors.num_rows,
      "anchors_per_root": anchors.num_rows / roots.num_rows,
      "epsilon": limits.epsilon,
      "epsilon_source": "control" if config.epsilon is None else "config",
      "loss_margin": limits.loss_margin,
      "acceptance": {name: _rate(int(accepted[members].sum()), pairs[name], int(right[members].sum()))
                     for name, members in groups.items()},
      **{name: judged[name] for name in ("shards", "tokens", "rows", "verified", "probe", "promise", "budget_spent")
         if name in judged},
      "excluded": {name: int(pc.sum(anchors[name]).as_py()) for name in ("same_document", "near_copy")},
      "positives": positives.num_rows,
      "negatives": tables.read(round_.table("negatives")).num_rows,
      "mean_gain": float(taken.mean()),
      "overlap": _overlap(positives, tables.read(previous.table("positives"))) if previous else None,
      "offpolicy": offpolicy_gap(tables.read(path)) if (path := round_.table("offpolicy")).exists() else None,
  }


def offpolicy_gap(rechecks: pa.Table) -> dict:
  """How many of an earlier round's accepted dependencies a later policy would reject; of right and of wrong ones.

  The share of none is None: a round with a budget and without a probe, say, has nothing to look at.
  """
  rejected, right = rechecks["rejected"].to_numpy(), rechecks["right_then"].to_numpy()

  def gap(members: np.ndarray) -> dict:
    verified, lost = int(members.sum()), int((rejected & members).sum())
    return {"verified": verified, "rejected": lost, "share": lost / verified if verified else None}
  return {**gap(np.ones(len(rejected), bool)), "right": gap(right), "wrong": gap(~right)}


def _rate(accepted: int, pairs: int, right: int) -> dict:
  return {"pairs": pairs, "accepted": accepted, "rate": accepted / pairs if pairs else None, "right": right}


def _overlap(now: pa.Table, before: pa.Table) -> dict:
  """Chunks that are positive in both rounds, whatever their roots; the share is of this round's."""
  mine, theirs = set(now["chunk_id"].to_pylist()), set(before["chunk_id"].to_pylist())
  shared = len(mine & theirs)
  return {"shared": shared, "before": len(theirs), "share": shared / len(mine)}
