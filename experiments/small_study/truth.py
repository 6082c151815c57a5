"""What screening did on the planted corpus, against what is true there.

A *told* value is one that a letter repeats; its source is the one entry that states it. Pairs are (told value that is
an anchor, chunk that was verified for the letter).
"""

import bisect
import itertools
import json
import pathlib

import numpy as np

from policylong import tables
from policylong.corpus.chunks import parse_chunk_id
from policylong.workdir import Workdir, read_json

EPSILONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def measure(workdir: pathlib.Path, truth_path: pathlib.Path) -> dict[str, float]:
  """{"round1/recall": ..., ...} of a finished run that screened; {} of one that did not.

  anchored: share of told values that are anchors. recall: share of these whose own k candidates hold the source.
  precision@E, found@E: of the pairs with a gain above E, those that are true; of the true pairs, those above E.
  gain_source, gain_other: mean gain of true and of other pairs. positives_true: share of the round's positives that
  are the source of something told in their letter. negatives_unhelpful: share of its hard negatives that are not.
  accepted_own, accepted_control: acceptance of own candidates and of random chunks. offpolicy_gap: share of the round's
  accepted dependencies that the next policy would reject.
  """
  truth = json.loads(truth_path.read_text())
  folder, numbers = Workdir(workdir), {}
  rounds = [folder.round(r) for r in itertools.takewhile(lambda r: folder.round(r).done, itertools.count(1))]
  for round_ in rounds:
    done = read_json(round_.done_path)
    if "acceptance" not in done:
      return {}
    numbers |= {f"round{round_.index}/{name}": value for name, value in _of_round(round_, truth).items()}
    numbers |= {f"round{round_.index}/accepted_own": done["acceptance"]["own"]["rate"],
                f"round{round_.index}/accepted_control": done["acceptance"]["control"]["rate"],
                f"round{round_.index}/epsilon": done["epsilon"], f"round{round_.index}/mean_gain": done["mean_gain"],
                f"round{round_.index}/positives": done["positives"],
                f"round{round_.index}/anchors_per_root": done["anchors_per_root"]}
    if done["offpolicy"]:
      numbers[f"round{round_.index - 1}/offpolicy_gap"] = done["offpolicy"]["share"]
  if rounds:
    numbers[f"round{len(rounds)}/offpolicy_gap"] = read_json(folder.final_json)["offpolicy"]["share"]
  return numbers


def _of_round(round_, truth) -> dict[str, float]:
  sources: dict[tuple[str, int], str] = {}  # (letter, position of a told value) -> entry
  for row in tables.read(round_.table("roots")).select(["doc_id", "start", "pieces"]).to_pylist():
    starts = list(itertools.accumulate(map(len, row["pieces"]), initial=row["start"]))
    for start, entry, _ in truth[row["doc_id"]]:
      if row["start"] <= start < starts[-1]:
        sources[row["doc_id"], bisect.bisect_right(starts, start) - 1] = entry
  told = {letter: {entry for _, entry, _ in facts} for letter, facts in truth.items()}

  anchors = {(row["doc_id"], row["position"]) for row in tables.read(round_.table("anchors")).to_pylist()}
  anchored = [value for value in sources if value in anchors]
  true, gain, own = [], [], set()
  for row in tables.read(round_.table("verdicts")).to_pylist():
    value = row["doc_id"], row["position"]
    if row["kind"] == "retrieved" and value in sources:
      true.append(_document(row["chunk_id"]) == sources[value])
      gain.append(row["gain"])
      if true[-1] and row["rank"] >= 0:
        own.add(value)
  true, gain = np.asarray(true, bool), np.asarray(gain)
  numbers = {"anchored": len(anchored) / len(sources), "recall": len(own) / max(1, len(anchored)),
             "gain_source": _mean(gain[true]), "gain_other": _mean(gain[~true])}
  for epsilon in EPSILONS:
    numbers |= {f"precision@{epsilon}": _mean(true[gain > epsilon]), f"found@{epsilon}": _mean(gain[true] > epsilon)}
  helpful = {name: [_document(row["chunk_id"]) in told[row["doc_id"]]
                    for row in tables.read(round_.table(name)).to_pylist()] for name in ("positives", "negatives")}
  numbers["positives_true"] = _mean(helpful["positives"])
  if helpful["negatives"]:
    numbers["negatives_unhelpful"] = 1 - _mean(helpful["negatives"])
  return {name: value for name, value in numbers.items() if value is not None}


def _document(chunk_id: str) -> str:
  return parse_chunk_id(chunk_id)[0]


def _mean(values) -> float | None:
  """None where there is nothing to take the mean of."""
  return float(np.mean(values)) if len(values) else None
