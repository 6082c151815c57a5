"""Was the round sane? Sentences with numbers, each marked "good", "look" (closer) or "bad"."""

import dataclasses
import math

from policylong.report import facts
from policylong.report.tables import RoundData, Run
from policylong.report.words import decimal, of, plural, share, threshold

PAPER_ALPHA, PAPER_EPSILON = 2.0, 0.4
PAPER_MEAN_GAIN = 0.68  # accepted pairs of EntropyLong (arXiv 2510.02330), at epsilon 0.4
STARVED_SHARE = 0.25  # a round is starved when fewer of its roots have a positive
PAPER_PER_ANCHOR = 46 / 292  # accepted dependencies by anchors on EntropyLong's ablation roots, alpha 2.0, epsilon 0.4
MUCH = 10.0
CONTROL_RATIO = 3.0  # own candidates should pass at least this many times as often as random chunks


@dataclasses.dataclass(frozen=True)
class Check:
  """One sentence about a round; level is "good", "look" or "bad"."""
  level: str
  sentence: str


def starved(numbers: dict) -> bool | None:
  """Whether too few roots have a positive to train on; None where the counts are not there."""
  roots, fed = numbers.get("roots"), numbers.get("roots_with_positives")
  return None if not roots or fed is None else fed < STARVED_SHARE * roots


def to_find(numbers: dict) -> tuple[str, str] | None:
  """How much there was to find in a round, in a word, and what says so; None where nothing was verified.

  "little": own candidates pass less than CONTROL_RATIO times as often as random chunks, or the 95% intervals of both
  overlap; "much": MUCH times as often or more.
  """
  groups = numbers.get("acceptance") or {}
  own, control = groups.get("own"), groups.get("control")
  if not own or not control or not own["pairs"] or not control["pairs"]:
    return None
  told = (f"own candidates pass {share(own['rate'])}, random chunks {share(control['rate'])} of "
          f"{plural(control['pairs'], 'pair')}")
  rate = max(control["rate"], 1 / control["pairs"])  # of none that passed it is not known how rare they are
  apart = facts.wilson(own["accepted"], own["pairs"])[0] > facts.wilson(control["accepted"], control["pairs"])[1]
  ratio = own["rate"] / rate
  return ("little" if not apart or ratio < CONTROL_RATIO else "much" if ratio >= MUCH else "some"), told


def verdict(round_: RoundData, checks: list[Check]) -> str:
  """The round in a word or two."""
  if not round_.finished:
    return "unfinished"
  if starved(facts.summary(round_)):
    return "starved"
  levels = {check.level for check in checks}
  return "wrong" if "bad" in levels else "look closer" if "look" in levels else "sane"


def checks(run: Run, round_: RoundData) -> list[Check]:
  """Everything that can be said of one round, the worst first."""
  numbers = facts.summary(round_)
  found = [*_files(round_), *_fed(numbers), *_against_control(numbers), *_anchors(round_, numbers), *_fruit(numbers),
           *_right(numbers), *_budget(numbers), *_verdicts(run, round_),
           *_gain(numbers, run.epsilon(round_)), *_offpolicy(numbers), *_loss(run, round_)]
  return sorted(found, key=lambda check: ("bad", "look", "good").index(check.level))


def _files(round_):
  if not round_.finished:
    yield Check("look", "The round is unfinished: it has no DONE.json yet, so these numbers are counted from "
                        "the tables that are there.")
  for sentence in facts.disagreements(round_):
    yield Check("bad", f"The files disagree: {sentence}.")


def _fed(numbers):
  hungry = starved(numbers)
  if hungry is None:
    return
  fed = f"{of(numbers['roots_with_positives'], numbers['roots'])} roots have a positive"
  total = plural(numbers.get("positives", 0), "positive")
  if hungry:
    yield Check("bad", f"Starved: only {fed} ({total} in all), so most of what was trained on is filler. "
                       "Lower epsilon or alpha, or give it a larger corpus.")
  else:
    yield Check("good", f"Fed: {fed} ({total} in all).")


def _against_control(numbers):
  groups = numbers.get("acceptance") or {}
  own, control = groups.get("own"), groups.get("control")
  if not own:
    return
  told = f"{of(own['accepted'], own['pairs'])} own candidates pass ({share(own['rate'])})"
  if not control or not control["pairs"]:
    yield Check("look", f"{told}, but no random chunk was verified, so it is unknown how many would pass by chance.")
    return
  told += f", {of(control['accepted'], control['pairs'])} random chunks ({share(control['rate'])})"
  if not own["accepted"]:
    yield Check("bad", f"Retrieval finds nothing: {told}.")
  elif not control["accepted"]:
    yield Check("good", f"Retrieval finds dependencies: {told}.")
  else:
    ratio = own["rate"] / control["rate"]
    level = "good" if ratio >= CONTROL_RATIO else "look" if ratio > 1 else "bad"
    opening = {"good": "Retrieval finds dependencies", "look": "Retrieval is not far from chance",
               "bad": "Retrieval is no better than chance"}[level]
    yield Check(level, f"{opening}: {told}, {decimal(ratio, 1)} times as often.")


def _anchors(round_, numbers):
  if below := facts.anchors_below_threshold(round_):
    yield Check("bad", f"{plural(below, 'anchor')} not above the threshold of the root.")
  roots, without = numbers.get("roots"), numbers.get("roots_without_anchors")
  if not roots or without is None:
    return
  level = "look" if without > roots / 2 else "good"
  yield Check(level, f"{decimal(numbers.get('anchors_per_root'), 1)} anchors a root; "
                     f"{of(without, roots)} roots have none.")


def _fruit(numbers):
  own, anchors = (numbers.get("acceptance") or {}).get("own"), numbers.get("anchors")
  if own and anchors:
    ratio = own["accepted"] / anchors
    yield Check("good" if ratio >= PAPER_PER_ANCHOR / 4 else "look",
                f"{decimal(ratio)} accepted own candidates an anchor; EntropyLong reports 46 at 292 anchors, "
                f"{decimal(PAPER_PER_ANCHOR)}.")


def _right(numbers):
  row = (numbers.get("acceptance") or {}).get("retrieved") or {}
  if "right" not in row or not row["accepted"]:
    return
  wrong = row["accepted"] - row["right"]
  yield Check("look" if wrong > row["accepted"] / 4 else "good",
              f"{of(wrong, row['accepted'])} accepted pairs made the policy surer, and the token that stands there no "
              f"likelier ({share(wrong / row['accepted'])}).")


def _budget(numbers):
  # It may also have ended on the shard that fed the round.
  if numbers.get("budget_spent") and (numbers.get("epochs") or 0) > 1:
    yield Check("look", "The budget was spent before the round was fed, so training reads its sequences more than "
                        "once: raise screening.budget.")
  probe, rows = numbers.get("probe"), numbers.get("rows")
  if probe and probe.get("share") is not None:
    yield Check("good" if probe["share"] >= 0.5 else "look",
                f"Within the budget {of(rows['scored'], rows['proposed'])} rows were scored; they hold "
                f"{share(probe['share'])} of all positives (95% interval {share(probe['low'])} to "
                f"{share(probe['high'])}, from {plural(probe['roots'], 'root')} of which every row was).")


def _verdicts(run, round_):
  margin = run.setting("screening.control_margin") is not None
  total, gains, decisions = facts.wrong_verdicts(round_, run.epsilon(round_), margin)
  if gains:
    yield Check("bad", f"{of(gains, total)} gains are not (before − after) / before.")
  if decisions:
    loss = round_.summary.get("loss_margin")
    yield Check("bad", f"{of(decisions, total)} verdicts go against epsilon = {threshold(run.epsilon(round_))}"
                       f"{'' if loss is None else f' and a loss margin of {decimal(loss)} nats'}.")
  if total and not gains and not decisions:
    yield Check("good", f"All {plural(total, 'verdict')} recomputed from the entropies: gain and decision agree.")


def _gain(numbers, epsilon):
  gain = numbers.get("mean_gain")
  if gain is None or not math.isfinite(gain):
    return
  level = "good" if abs(gain - PAPER_MEAN_GAIN) <= 0.2 else "look"
  yield Check(level, f"Mean gain of the accepted {decimal(gain)} at epsilon {threshold(epsilon)}; "
                     f"EntropyLong reports {PAPER_MEAN_GAIN} at {PAPER_EPSILON}.")


def _offpolicy(numbers):
  gap = numbers.get("offpolicy")
  if gap and gap.get("verified"):
    yield Check("good", f"This policy would reject {of(gap['rejected'], gap['verified'])} of the dependencies "
                        f"accepted one round earlier ({share(gap['share'])}): the off-policy gap.")


def _loss(run, round_):
  losses = [row["loss"] for row in run.metrics if row.get("round") == round_.index]
  if not losses:
    return
  if not all(math.isfinite(loss) for loss in losses):
    yield Check("bad", f"The training loss is not a number at {of(sum(map(_odd, losses)), len(losses))} steps.")
    return
  if len(losses) == 1:
    yield Check("good", f"Training loss {decimal(losses[0])} nats a token, at its only step.")
    return
  width = max(1, len(losses) // 5)
  first, last = (sum(part) / width for part in (losses[:width], losses[-width:]))
  level = "look" if last > 1.1 * first else "good"
  yield Check(level, f"Training loss {decimal(first)} → {decimal(last)} nats a token "
                     f"over {plural(len(losses), 'step')} (mean of the first and the last {width}).")


def _odd(loss):
  return not math.isfinite(loss)
