"""The off-policy gap against a plain reading of a scorer whose entropies are known for every row of tokens."""

import logging
import types
import zlib

import numpy as np
import pytest

from policylong import loop
from policylong.screening import offpolicy
from policylong.screening.summary import offpolicy_gap
from policylong.storage import tables
from policylong.storage.workdir import read_json
from policylong.training import scalars
from tests.screening.test_round_tables import BUDGET, judged  # noqa: F401  a fixture


def likelihood(before, token):
  """(entropy, nll) in nats that the policy of now gives a token behind these."""
  rng = np.random.default_rng(zlib.crc32(np.asarray([7, *before, token], np.int32).tobytes()))
  entropy, nll = ((3, 4), (3, 5)) if before[0] == 1 else ((0.2, 3), (1, 4))  # the root alone; behind a chunk
  return np.float32(rng.uniform(*entropy)), np.float32(rng.uniform(*nll))


def scored(rows, most_positions, progress):
  return [tuple(np.array(values, np.float32) for values in zip(*(
      likelihood(row.tokens[:t], row.tokens[t]) for t in row.positions))) for row in rows]


def tokens_of(chunk_id):
  return np.frombuffer(chunk_id.encode(), np.uint8).astype(np.int32)


POLICY = types.SimpleNamespace(step=9, scorer=types.SimpleNamespace(bucket=lambda length: 128, likelihoods=scored))


class Tokens:
  """Chunks as the policy reads them."""
  prepare = staticmethod(lambda chunk_ids: None)
  __call__ = staticmethod(tokens_of)


@pytest.mark.parametrize("settings", [
    {}, {"control_margin": 0.1}, {"evidence": "entropy_and_loss", "loss_margin": 0.5},
    {"evidence": "entropy_and_loss", "loss_margin": 0.5, "control_margin": 0.0}, BUDGET])
def test_rejected_is_what_would_not_pass_any_more(judged, settings):  # noqa: F811
  round_, _ = judged(10**9, **settings)
  root = [1] * 40  # of every document

  def now(row):
    """(gain, by how many nats the token became likelier) of a chunk at an anchor."""
    context, t = [*tokens_of(row["chunk_id"]), *root], row["position"]
    (h0, l0), (h1, l1) = likelihood(root[:t], 1), likelihood(context[:t - 40], 1)
    return (float(h0) - float(h1)) / float(h0), float(l0) - float(l1)

  verdicts = tables.read(round_.table("verdicts")).to_pylist()
  probe = read_json(round_.judged_path).get("probe")
  wanted, by_margin = {}, 0
  for row in verdicts:
    if row["accepted"] and row["kind"] == "retrieved" and (probe is None or row["doc_id"] in probe["documents"]):
      gain, drop = now(row)
      passes = gain > 0.4 and drop > settings.get("loss_margin", -np.inf)
      if settings.get("control_margin") is not None:
        rivals = [now(one)[0] for one in verdicts if one["kind"] == "control" and (
            one["doc_id"], one["position"]) == (row["doc_id"], row["position"])]
        by_margin += passes and gain <= max(rivals) + settings["control_margin"]
        passes = passes and gain > max(rivals) + settings["control_margin"]
      right = row["nll_before"] - row["nll_after"] > settings.get("loss_margin", 0.0)
      wanted[row["doc_id"], row["position"], row["chunk_id"]] = (row["gain"], gain, right, not passes)

  found = offpolicy.recheck(round_, POLICY, Tokens(), 4)
  rows = found.to_pylist()
  assert {(row["doc_id"], row["position"], row["chunk_id"]): (
      row["gain_then"], row["gain_now"], row["right_then"], row["rejected"]) for row in rows} == wanted
  assert len(rows) == len(wanted) and {row["policy_step"] for row in rows} == {9}
  lost = [rejected for *_, rejected in wanted.values()]
  assert 0 < sum(lost) < len(lost)
  assert by_margin or "control_margin" not in settings
  told = offpolicy_gap(found)
  assert (told["verified"], told["rejected"]) == (len(lost), sum(lost)) and told["share"] == sum(lost) / len(lost)
  assert told["right"]["verified"] + told["wrong"]["verified"] == len(lost)


def test_of_nothing_that_was_checked_no_share_is_told(judged, caplog):  # noqa: F811
  round_, said = judged(10**9, budget=9.0, probe_share=0.0)
  told = offpolicy_gap(offpolicy.recheck(round_, POLICY, Tokens(), 4))
  nothing = {"verified": 0, "rejected": 0, "share": None}
  assert told == {**nothing, "right": nothing, "wrong": nothing}
  some = {"verified": 4, "rejected": 1, "share": 0.25}
  caplog.set_level(logging.INFO)
  for gap, sentence in ((told, False), (some, True)):
    caplog.clear()
    loop.log_summary({**said, "offpolicy": gap})
    assert ("rejects 25%" in caplog.text) == ("rejects" in caplog.text) == sentence
    assert scalars.of_round({**said, "offpolicy": gap}).get("round/offpolicy_gap") == gap["share"]
  none = {"pairs": 0, "accepted": 0, "rate": None, "right": 0}
  without = {**said, "acceptance": {**said["acceptance"], "control": none}}
  caplog.clear()
  loop.log_summary(without)
  assert "control 0 of 0;" in caplog.text and "round/accepted_control" not in scalars.of_round(without)
