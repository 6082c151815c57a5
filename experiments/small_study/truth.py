"""What screening did on the planted corpus, against what is true there.

A *told* value is one that a letter repeats; its source is the one entry that states it. Pairs are (told value that is
an anchor, chunk that was verified for the letter).
"""

import bisect
import itertools
import json
import pathlib
import re

import numpy as np

from policylong.corpus.chunks import parse_chunk_id
from policylong.screening.anchors import find_anchors
from policylong.storage import tables
from policylong.storage.workdir import Round, Workdir, read_json

EPSILONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)


def measure(workdir: pathlib.Path, corpus: pathlib.Path) -> dict[str, float]:
  """{"round1/recall": ..., ...} of a finished run that screened `corpus`; {} of one that did not screen.

  above@A, told@A, anchored@A: if alpha were A and a root had no limit, anchors a root, the share of them that are told
  values, and the share of told values that are anchors.
  anchored: share of told values that are anchors. recall: share of these whose own k candidates hold the source.
  precision@E, found@E: of the pairs with a gain above E, those that are true; of the true pairs, those above E.
  gain_source, gain_other: mean gain of true and of other pairs. without_value: share of the accepted pairs whose chunk
  does not hold the told value at all.
  positives_true: share of the round's positives that are the source of something told in their letter.
  negatives_unhelpful: share of its hard negatives that are not.
  accepted_own, accepted_control: acceptance of own candidates and of random chunks. roots: that were verified.
  loss_margin: nats by which the value had to be likelier. scored_tokens: to find anchors and to verify.
  offpolicy_gap: share of the round's accepted dependencies that the next policy would reject.
  """
  folder, numbers, truth = Workdir(workdir), {}, Truth(corpus)
  skip_tokens = read_json(workdir / "config.json")["screening"]["skip_tokens"]
  rounds = [folder.round(r) for r in itertools.takewhile(lambda r: folder.round(r).done, itertools.count(1))]
  for round_ in rounds:
    done = read_json(round_.done_path)
    if "acceptance" not in done:
      return {}
    told = truth.told(round_)
    of_round = _by_alpha(round_, told, skip_tokens) | _pairs(round_, told, truth) | _documents(round_, truth) | {
        "accepted_own": done["acceptance"]["own"]["rate"], "accepted_control": done["acceptance"]["control"]["rate"],
        "epsilon": done["epsilon"], "mean_gain": done["mean_gain"], "positives": done["positives"],
        "anchors_per_root": done["anchors_per_root"], "roots": done["roots"], "loss_margin": done["loss_margin"],
        "scored_tokens": done["tokens"]["scan"] + done["tokens"]["scored"]}
    numbers |= {f"round{round_.index}/{name}": value for name, value in of_round.items() if value is not None}
    if done["offpolicy"] and done["offpolicy"]["share"] is not None:
      numbers[f"round{round_.index - 1}/offpolicy_gap"] = done["offpolicy"]["share"]
  if rounds and (share := read_json(folder.final_json)["offpolicy"]["share"]) is not None:
    numbers[f"round{len(rounds)}/offpolicy_gap"] = share
  return numbers


class Truth:
  """What the corpus states where. A told value: (letter, position of its first token) -> (entry, the value)."""

  def __init__(self, corpus: pathlib.Path):
    self.facts = json.loads((corpus / "truth.json").read_text())
    self._texts = {}
    for path in corpus.glob("*.jsonl"):
      for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        self._texts[f"{path.stem}/{record['id']}"] = record["text"]

  def told(self, round_: Round) -> dict[tuple[str, int], tuple[str, str]]:
    """The told values in the windows that the round read of its letters."""
    found = {}
    for row in tables.read(round_.table("roots")).select(["doc_id", "start", "pieces"]).to_pylist():
      starts = list(itertools.accumulate(map(len, row["pieces"]), initial=row["start"]))
      for start, entry, *_ in self.facts[row["doc_id"]]:
        if row["start"] <= start < starts[-1]:
          value = re.compile(r"\w+").match(self._texts[row["doc_id"]], start)[0]
          found[row["doc_id"], bisect.bisect_right(starts, start) - 1] = entry, value
    return found

  def holds(self, chunk_id: str, value: str) -> bool:
    """Whether a chunk has the value as a word."""
    document, start, end = parse_chunk_id(chunk_id)
    return bool(re.search(rf"\b{value}\b", self._texts[document][start:end]))


def _by_alpha(round_, told, skip_tokens):
  roots = tables.read(round_.table("roots")).select(["doc_id", "entropy"]).to_pylist()
  numbers = {}
  for alpha in ALPHAS:
    found = [(root["doc_id"], int(t)) for root in roots for t in find_anchors(
        np.asarray(root["entropy"], np.float32), alpha=alpha, skip_tokens=skip_tokens, most=len(root["entropy"]))[0]]
    numbers |= {f"above@{alpha}": len(found) / len(roots), f"told@{alpha}": _mean([anchor in told for anchor in found]),
                f"anchored@{alpha}": len(told.keys() & set(found)) / len(told)}
  return numbers


def _pairs(round_, told, truth):
  anchors = {(row["doc_id"], row["position"]) for row in tables.read(round_.table("anchors")).to_pylist()}
  anchored = told.keys() & anchors
  pairs = [row for row in tables.read(round_.table("verdicts")).to_pylist()
           if row["kind"] == "retrieved" and (row["doc_id"], row["position"]) in told]
  of = [told[row["doc_id"], row["position"]] for row in pairs]
  true = np.array([_document(row["chunk_id"]) == entry for row, (entry, _) in zip(pairs, of)], bool)
  gain = np.array([row["gain"] for row in pairs])
  own = {(row["doc_id"], row["position"]) for row, is_true in zip(pairs, true) if is_true and row["rank"] >= 0}
  numbers = {"anchored": len(anchored) / len(told), "recall": len(own) / max(1, len(anchored)),
             "gain_source": _mean(gain[true]), "gain_other": _mean(gain[~true]),
             "without_value": _mean([not truth.holds(row["chunk_id"], value) for row, (_, value) in zip(pairs, of)
                                     if row["accepted"]])}
  for epsilon in EPSILONS:
    numbers |= {f"precision@{epsilon}": _mean(true[gain > epsilon]), f"found@{epsilon}": _mean(gain[true] > epsilon)}
  return numbers


def _documents(round_, truth):
  told = {letter: {entry for _, entry, *_ in facts} for letter, facts in truth.facts.items()}
  helpful = {name: [_document(row["chunk_id"]) in told[row["doc_id"]]
                    for row in tables.read(round_.table(name)).to_pylist()] for name in ("positives", "negatives")}
  unhelpful = 1 - _mean(helpful["negatives"]) if helpful["negatives"] else None
  return {"positives_true": _mean(helpful["positives"]), "negatives_unhelpful": unhelpful}


def _document(chunk_id: str) -> str:
  return parse_chunk_id(chunk_id)[0]


def _mean(values) -> float | None:
  """None where there is nothing to take the mean of."""
  return float(np.mean(values)) if len(values) else None
