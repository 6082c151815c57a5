"""The numbers of a run by the names that TensorBoard and Weights & Biases show them under."""

from collections.abc import Mapping
from typing import Any

_ROUND = ("policy_step", "roots", "anchors_per_root", "epsilon", "positives", "roots_with_positives", "negatives",
          "mean_gain", "sequences", "epochs")


def of_step(line: Mapping[str, Any]) -> dict[str, float]:
  """Of a training step, from its line in metrics.jsonl."""
  return {f"training/{name}": value for name, value in line.items() if name != "step" and value is not None}


def of_round(summary: Mapping[str, Any]) -> dict[str, float]:
  """Of a round's screening and synthesis, from screened.json; what the round's method does not have is left out.

  They are shown at the step after which training on the round begins; `policy_step` is that of who screened it.
  """
  values = {name: summary.get(name) for name in _ROUND}
  for group, counts in (summary.get("acceptance") or {}).items():
    values[f"accepted_{group}"] = counts.get("rate") if counts.get("pairs") else None
  gap = summary.get("offpolicy") or {}
  values["offpolicy_gap"] = gap.get("share") if gap.get("verified") else None
  return {f"round/{name}": value for name, value in values.items() if value is not None}


def of_evaluation(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
  """Of a policy's benchmarks, from results.json."""
  return {f"evaluation/{task}/{length}" if length else f"evaluation/{task}": result["value"]
          for task, lengths in results.items() for length, result in lengths.items() if result["value"] is not None}
