"""The table of rounds: every count and rate of DONE.json and of the training, with its unit."""

import numpy as np

from policylong.report import facts
from policylong.report.markup import Markup, element, join, table
from policylong.report.tables import Run
from policylong.report.words import NONE, count, decimal, of, share


def round_table(run: Run) -> Markup | None:
  """One column a round, one row a quantity with its unit; None without rounds."""
  if not run.rounds:
    return None
  numbers = [facts.summary(round_) for round_ in run.rounds]
  head = ["quantity", *(f"round {round_.index}" + ("" if round_.finished else " (unfinished)")
                       for round_ in run.rounds)]
  rows = [(_header(name, unit), *(value(entry) for entry in numbers)) for name, unit, value in _QUANTITIES]
  rows += [(_header(name, unit), *(value([row for row in run.metrics if row.get("round") == round_.index])
                                        for round_ in run.rounds)) for name, unit, value in _TRAINING]
  if not run.screened:
    rows = [row for row in rows if any(cell != NONE for cell in row[1:])]
  return table(head, rows, class_="rounds")


def _header(name, unit):
  return join((name, element("small", unit))) if unit else name


def _entropy(name):
  return lambda entry: decimal((entry.get("entropy") or {}).get(name))


def _percentiles(*names):
  def cell(entry):
    found = (entry.get("entropy") or {}).get("percentiles") or {}
    return " to ".join(decimal(found[name]) for name in names if name in found) or NONE
  return cell


def _group(name):
  def cell(entry):
    row = (entry.get("acceptance") or {}).get(name)
    return f"{of(row['accepted'], row['pairs'])} ({share(row['rate'])})" if row and row["pairs"] else NONE
  return cell


def _ratio(entry):
  rates = [((entry.get("acceptance") or {}).get(name) or {}).get("rate") for name in ("own", "control")]
  return decimal(rates[0] / rates[1], 1) if all(rates) else NONE


def _nested(name, text):
  return lambda entry: text(entry[name]) if entry.get(name) else NONE


def _number(name, form=count):
  return lambda entry: form(entry.get(name))


def _right(entry):
  """Of the accepted pairs those whose token became likelier too."""
  row = (entry.get("acceptance") or {}).get("retrieved") or {}
  if "right" not in row or not row["accepted"]:
    return NONE
  return f"{of(row['right'], row['accepted'])} ({share(row['right'] / row['accepted'])})"


def _gap(name=None):
  def cell(entry):
    gap = entry.get("offpolicy") or {}
    gap = gap.get(name) if name else gap
    return f"{of(gap['rejected'], gap['verified'])} ({share(gap['share'])})" if gap and gap.get("verified") else NONE
  return cell


def _padding(entry):
  tokens = entry.get("tokens")
  return share(1 - tokens["scored"] / tokens["padded"]) if tokens and tokens["padded"] else NONE


def _probed(entry):
  probe = entry.get("probe")
  if not probe or probe.get("share") is None:
    return NONE
  return f"{share(probe['share'])} ({share(probe['low'])} to {share(probe['high'])})"


_QUANTITIES = (
    ("policy that screened", "training step", _number("policy_step")),
    ("root documents", "", _number("roots")),
    ("entropy, mean", "nats", _entropy("mean")),
    ("entropy, standard deviation", "nats", _entropy("std")),
    ("entropy, median", "nats", _percentiles("50")),
    ("entropy, 5th to 95th percentile", "nats", _percentiles("5", "95")),
    ("anchors", "", _number("anchors")),
    ("anchors per root", "", _number("anchors_per_root", decimal)),
    ("roots without anchors", "", _number("roots_without_anchors")),
    ("epsilon", "gain", _number("epsilon", lambda value: decimal(value, 3))),
    ("epsilon from", "", lambda entry: entry.get("epsilon_source") or NONE),
    ("loss margin", "nats", _number("loss_margin", decimal)),
    ("accepted: own candidates", "pairs", _group("own")),
    ("accepted: other anchors' candidates", "pairs", _group("other")),
    ("accepted: control", "pairs", _group("control")),
    ("accepted, surer and right", "of the accepted pairs", _right),
    ("own against control", "times as often", _ratio),
    ("mean gain of the accepted", "", _number("mean_gain", lambda value: decimal(value, 3))),
    ("positives", "chunks", _number("positives")),
    ("roots with positives", "", _number("roots_with_positives")),
    ("hard negatives", "chunks", _number("negatives")),
    ("left out: the same document", "chunks", _nested("excluded", lambda found: count(found.get("same_document")))),
    ("left out: near copies", "chunks", _nested("excluded", lambda found: count(found.get("near_copy")))),
    ("positive chunks shared with the round before", "share of this round's",
     _nested("overlap", lambda found: f"{count(found.get('shared'))} ({share(found.get('share'))})")),
    ("off-policy gap", "accepted before, rejected now", _gap()),
    ("off-policy gap of those surer and right", "accepted before, rejected now", _gap("right")),
    ("off-policy gap of those surer and wrong", "accepted before, rejected now", _gap("wrong")),
    ("scored by the screening", "tokens", _nested("tokens", lambda tokens: count(tokens.get("scored")))),
    ("padding of the rows", "share of what the devices computed", _padding),
    ("rows scored", "of those proposed", _nested("rows", lambda rows: of(rows["scored"], rows["proposed"]))),
    ("positives that the budget found", "share of all, 95% interval from the probe", _probed),
    ("training sequences", "", _number("sequences")),
    ("passes over them", "epochs", _number("epochs", decimal)),
)


def _median(name, form):
  def cell(rows):
    values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
    return form(float(np.median(values))) if values else NONE
  return cell


_TRAINING = (
    ("training steps", "", lambda rows: count(len(rows)) if rows else NONE),
    ("training loss, first → last step", "nats per token",
     lambda rows: f"{decimal(rows[0]['loss'])} → {decimal(rows[-1]['loss'])}" if rows else NONE),
    ("training speed, median", "tokens/s", _median("tokens_per_second", count)),
    ("share of the machine's peak, median", "", _median("peak_share", share)),
)
