"""What changed from round to round, as plots. Each function gives a <figure>, or None without data."""

import math

import numpy as np

from policylong.report import facts
from policylong.report.axes import LEFT, RIGHT, WIDTH, Axes, legend, nice_ticks
from policylong.report.health import PAPER_EPSILON, PAPER_MEAN_GAIN
from policylong.report.markup import Markup, element
from policylong.report.tables import ENTROPY_BIN, RoundData, Run
from policylong.report.words import count, decimal, of, plural, share, threshold

# Okabe and Ito's palette, told apart under every common colour blindness.
OWN, OTHER, CONTROL, LIMIT = "#0072b2", "#56b4e9", "#7a808a", "#d55e00"
GROUPS = (("own", OWN, "the anchor's own candidates"), ("other", OTHER, "other anchors' candidates"),
          ("control", CONTROL, "control: random chunks"))
# Rounds are ordered: from viridis, light to dark.
_RAMP = ((0x35, 0xB7, 0x79), (0x21, 0x91, 0x8C), (0x31, 0x68, 0x8E), (0x44, 0x01, 0x54))
_MOST_POINTS = 600  # an SVG of more circles is slow to draw and no clearer


def round_color(position: int, rounds: int) -> str:
  """The colour of the position-th of so many rounds."""
  at = (position / (rounds - 1) if rounds > 1 else 1.0) * (len(_RAMP) - 1)
  low = min(int(at), len(_RAMP) - 2)
  mixed = (a + (b - a) * (at - low) for a, b in zip(_RAMP[low], _RAMP[low + 1]))
  return "#" + "".join(f"{round(channel):02x}" for channel in mixed)


def figures(run: Run) -> list[Markup]:
  """Every plot that has data, in the order of the algorithm."""
  shown = [entropy(run), anchors(run), acceptance(run), mean_gain(run),
           *(gains(run, round_) for round_ in run.rounds), overlap(run), offpolicy(run), *then_and_now(run),
           loss(run)]
  return [drawn for drawn in shown if drawn is not None]


def entropy(run: Run) -> Markup | None:
  """The roots' entropy distribution, one outline a round."""
  drawn = [(position, round_, round_.entropy_histogram) for position, round_ in enumerate(run.rounds)
           if round_.entropy_histogram.sum()]
  if not drawn:
    return None
  last = max(int(np.flatnonzero(histogram)[-1]) for _, _, histogram in drawn) + 1
  shares = [histogram[:last] / histogram.sum() for _, _, histogram in drawn]
  axes = Axes((0, last * ENTROPY_BIN), (0, 1.08 * max(map(np.max, shares))), "entropy (nats)",
              f"share of tokens per {ENTROPY_BIN:g} nats")
  axes.x_ticks(ticks := nice_ticks(0, last * ENTROPY_BIN, 8), [f"{tick:g}" for tick in ticks])
  _percent_ticks(axes, max(map(np.max, shares)))
  entries = []
  for (position, round_, histogram), heights in zip(drawn, shares):
    color = round_color(position, len(run.rounds))
    axes.steps(np.arange(last + 1) * ENTROPY_BIN, heights, color, f"round {round_.index}")
    mean = (facts.summary(round_).get("entropy") or {}).get("mean")
    if mean is not None:
      axes.dot(mean, 0, color, f"round {round_.index}: mean {decimal(mean)} nats", radius=4.5)
    entries.append((color, f"round {round_.index}, mean {decimal(mean)} ({count(histogram.sum())} tokens)"))
  return figure("Entropy of the roots' tokens", "Dots on the axis: the mean. Each round has roots of its own.",
                 axes, legend(entries))


def anchors(run: Run) -> Markup | None:
  """How many anchors the roots of each round have."""
  drawn = []
  for position, round_ in enumerate(run.rounds):
    found, roots = round_.columns("anchors", ("doc_id",)), round_.columns("roots", ("doc_id",))
    if found is not None and roots is not None and len(roots["doc_id"]):
      names, counts = np.unique(found["doc_id"].astype(str), return_counts=True)
      per_root = dict(zip(names.tolist(), counts.tolist()))
      drawn.append((position, round_, np.array([per_root.get(doc_id, 0) for doc_id in roots["doc_id"]])))
  if not drawn:
    return None
  most = max(int(numbers.max()) for _, _, numbers in drawn)
  width = max(1, math.ceil((most + 1) / 24))
  edges = np.arange(0, most + width + 1, width)
  shares = [np.histogram(numbers, edges)[0] / len(numbers) for _, _, numbers in drawn]
  axes = Axes((-0.5, edges[-1] - 0.5), (0, 1.08 * max(map(np.max, shares))), "anchors in a root",
              "share of roots" + (f" per {width} anchors" if width > 1 else ""))
  ticks = [tick for tick in nice_ticks(0, most, 8) if tick == int(tick)]
  axes.x_ticks(ticks, [f"{tick:g}" for tick in ticks])
  _percent_ticks(axes, max(map(np.max, shares)))
  entries = []
  for (position, round_, numbers), heights in zip(drawn, shares):
    color = round_color(position, len(run.rounds))
    axes.steps(edges - 0.5, heights, color, f"round {round_.index}")
    entries.append((color, f"round {round_.index}, mean {decimal(numbers.mean(), 1)} ({plural(len(numbers), 'root')})"))
  limit = run.setting("screening.max_anchors_per_root")
  return figure("Anchors per root", f"At most {limit} are kept." if limit else "", axes, legend(entries))


def acceptance(run: Run) -> Markup | None:
  """Acceptance rates with their counts, own and other candidates beside the control."""
  drawn = {round_.index: facts.summary(round_).get("acceptance") for round_ in run.rounds}
  rates = {(index, name): (row["accepted"], row["pairs"]) for index, groups in drawn.items()
           for name, row in (groups or {}).items() if name != "retrieved" and row.get("pairs")}
  if not rates:
    return None
  top = max(facts.wilson(*pair)[1] for pair in rates.values())
  axes, slot = _by_round(run, (0, 1.12 * top), "share of pairs accepted")
  _percent_ticks(axes, top)
  width = min(slot / 3.6, 40)
  for (index, name), (accepted, pairs) in rates.items():
    order = [group for group, _, _ in GROUPS].index(name)
    x = index + (order - 1) * (width + 3) / slot
    low, high = facts.wilson(accepted, pairs)
    title = f"round {index}, {GROUPS[order][2]}: {of(accepted, pairs)} ({share(accepted / pairs)})"
    axes.bar(x, width, accepted / pairs, GROUPS[order][1], title)
    axes.interval(x, low, high)
    axes.note(x, high, share(accepted / pairs), dy=-5, css="note" if width > 30 else "note small")
  told = [element("p", f"Round {index}: " + ", ".join(
      f"{name} {of(*rates[index, name])}" for name, _, _ in GROUPS if (index, name) in rates), class_="counts")
          for index in drawn]
  return figure("Acceptance against the control", "Thin line: 95% interval, as if pairs were independent.", axes,
                 legend([(color, words) for _, color, words in GROUPS]), *told)


def gains(run: Run, round_: RoundData) -> Markup | None:
  """The share of pairs whose gain exceeds x, retrieved against control, in one round."""
  counts = facts.acceptance(round_)
  # A large round keeps not all of other anchors'.
  finite = {name: pairs["gain"][np.isfinite(pairs["gain"])] for name, pairs in round_.pairs.items()
            if name in counts and len(pairs["gain"]) == counts[name]["pairs"]}
  drawn = [(name, color, words, np.sort(finite[name])) for name, color, words in GROUPS if len(finite.get(name, ()))]
  if not drawn:
    return None
  floor = max(1e-4, 10.0 ** math.floor(math.log10(1 / max(len(values) for *_, values in drawn))))
  axes = Axes((-0.5, 1.0), (floor, 1.0), "gain x (relative drop of entropy)", "share of pairs with gain > x",
              log_y=True)
  axes.x_ticks(ticks := [-0.5, -0.25, 0, 0.25, 0.5, 0.75, 1], [decimal(tick, 2) for tick in ticks])
  powers = [10.0 ** power for power in range(round(math.log10(floor)), 1)]
  axes.y_ticks(powers, [f"{100 * power:g}%" for power in powers])
  xs = np.linspace(-0.5, 1.0, 151)
  entries = []
  for _, color, words, values in drawn:
    above = 1 - np.searchsorted(values, xs, side="right") / len(values)
    axes.line(xs, np.where(above > 0, above, np.nan), color, words)
    entries.append((color, f"{words} ({plural(len(values), 'pair')}, median {decimal(np.median(values), 3)})"))
  epsilon = run.epsilon(round_)
  if epsilon is not None:
    axes.rule(x=epsilon)
    axes.note(epsilon, 1.0, f"ε = {threshold(epsilon)}", dx=6, dy=12, anchor="start", css="note limit")
  return figure(f"Gain in round {round_.index}", "Logarithmic. Right of ε a chunk is accepted; "
                 "the distance to the control is what retrieval found.", axes, legend(entries))


def mean_gain(run: Run) -> Markup | None:
  """Mean and spread of the accepted gains."""
  drawn = [(round_, facts.accepted_gains(round_)) for round_ in run.rounds]
  if not any(len(values) for _, values in drawn):
    return None
  axes, _ = _by_round(run, (0, 1.0), "gain of accepted pairs")
  told = element("p", "Accepted pairs: " + ", ".join(f"{count(len(values))} in round {round_.index}"
                                                     for round_, values in drawn), class_="counts")
  axes.y_ticks(ticks := nice_ticks(0, 1), [f"{tick:g}" for tick in ticks])
  axes.rule(y=PAPER_MEAN_GAIN, css="rule paper")
  for position, (round_, values) in enumerate(drawn):
    if not len(values):
      continue
    color, index = round_color(position, len(run.rounds)), round_.index
    p5, p25, p50, p75, p95 = np.percentile(values, (5, 25, 50, 75, 95))
    axes.interval(index, p5, p95, "spread", color=color)
    axes.interval(index, p25, p75, "spread inner", color=color)
    axes.dot(index, values.mean(), color, f"round {index}: mean {decimal(values.mean(), 3)}, median {decimal(p50, 3)}",
             radius=6)
    axes.note(index, values.mean(), decimal(values.mean()), dx=13, dy=4, anchor="start")
  return figure("Gain of the accepted", f"Dot: mean. Thick: middle half. Thin: 5th to 95th percentile. Dashed: "
                 f"{PAPER_MEAN_GAIN}, EntropyLong's mean at epsilon {PAPER_EPSILON}.", axes, None, told)


def overlap(run: Run) -> Markup | None:
  """Positives shared with the round before."""
  drawn = [(round_.index, gap) for round_ in run.rounds if (gap := facts.summary(round_).get("overlap"))]
  return _shares(run, [(index, gap.get("share"), f"{count(gap.get('shared'))} chunks") for index, gap in drawn],
                 "Overlap with the round before", "share of this round's positive chunks",
                 "Chunks that are positives in both rounds; the roots are others.")


def offpolicy(run: Run) -> Markup | None:
  """What each policy would reject of the dependencies accepted in the round before."""
  drawn = [(round_.index, gap) for round_ in run.rounds
           if (gap := facts.summary(round_).get("offpolicy")) and gap.get("verified")]
  final = (run.final.get("offpolicy") or {}) if run.rounds else {}
  if final.get("verified"):
    drawn.append((run.rounds[-1].index + 1, final))
  names = {index: f"{index - 1} → {index}" for index, _ in drawn}
  if final.get("verified"):
    names[run.rounds[-1].index + 1] = f"{run.rounds[-1].index} → final"
  return _shares(run, [(index, gap.get("share"), of(gap.get("rejected"), gap.get("verified"))) for index, gap in drawn],
                 "Off-policy gap", "share rejected",
                 "Of the pairs accepted in one round, those that the next policy, or the final one, would reject.",
                 names)


def then_and_now(run: Run) -> list[Markup]:
  """Each round's accepted dependencies under the policy of then and of the next round."""
  found = []
  for before, after in zip(run.rounds, run.rounds[1:]):
    if after.summary.get("offpolicy"):
      columns = after.columns("offpolicy", ("gain_then", "gain_now", "rejected"))
      found.append((before, f"the policy of round {after.index}", columns))
  if run.rounds:
    found.append((run.rounds[-1], "the final policy", run.final_offpolicy))
  return [_then_and_now(before.index, later, columns, run.epsilon(before)) for before, later, columns in found
          if columns is not None and len(columns["gain_then"])]


def _then_and_now(index, later, columns, epsilon):
  then, now, rejected = (columns[name] for name in ("gain_then", "gain_now", "rejected"))
  rejected = rejected.astype(bool)
  stride = math.ceil(len(then) / _MOST_POINTS)
  left = max(0.0, float(np.nanmin(then)) - 0.05)
  low = min(0.0, max(-0.5, float(np.nanmin(now)))) - 0.03
  axes = Axes((left, 1.02), (low, 1.02), f"gain when accepted in round {index}", f"gain under {later}")
  axes.x_ticks(ticks := nice_ticks(left, 1.0), [f"{tick:g}" for tick in ticks])
  axes.y_ticks(ticks := nice_ticks(low, 1.0), [decimal(tick, 2) for tick in ticks])
  axes.line((left, 1), (left, 1), "#9aa1ad", "no change", css="line thin")
  for x, y, lost in zip(then[::stride], now[::stride], rejected[::stride]):
    axes.dot(x, y, LIMIT if lost else OWN, f"{decimal(x, 3)} → {decimal(y, 3)}", radius=3.4, css="dot faint")
  if epsilon is not None:
    axes.rule(y=epsilon)
    axes.note(1.02, epsilon, f"ε = {threshold(epsilon)}", dx=-2, dy=13, anchor="end", css="note limit")
  entries = [(OWN, f"still accepted ({count((~rejected).sum())})"), (LIMIT, f"rejected now ({count(rejected.sum())})")]
  some = f" One in {stride} is drawn." if stride > 1 else ""
  return figure(f"Round {index}'s dependencies, as {later} sees them",
                 f"A dot is an accepted pair of chunk and anchor; grey: no change.{some}", axes, legend(entries))


def loss(run: Run) -> Markup | None:
  """The training loss, rounds shaded in turn."""
  if not run.metrics:
    return None
  steps, losses = ([row[name] for row in run.metrics] for name in ("step", "loss"))
  finite = [value for value in losses if math.isfinite(value)]
  if not finite:
    return None
  spread = max(max(finite) - min(finite), 0.02)
  axes = Axes((min(steps), max(steps)), (min(finite) - 0.08 * spread, max(finite) + 0.12 * spread),
              "training step", "loss (nats per token)")
  ticks = [tick for tick in nice_ticks(min(steps), max(steps), 6) if tick == int(tick)]
  axes.x_ticks(ticks, [count(tick) for tick in ticks])
  axes.y_ticks(ticks := nice_ticks(min(finite), max(finite)), [f"{tick:g}" for tick in ticks])
  for position, index in enumerate(sorted({row["round"] for row in run.metrics if "round" in row})):
    inside = [row["step"] for row in run.metrics if row.get("round") == index]
    if position % 2:
      axes.band(min(inside) - 0.5, max(inside) + 0.5 if max(inside) < max(steps) else max(inside), "#f1f3f6")
    axes.note((min(inside) + max(inside)) / 2, max(finite) + 0.12 * spread, f"round {index}", dy=13)
  stride = math.ceil(len(steps) / 1000)
  axes.line(steps[::stride], losses[::stride], OWN, "loss")
  if len(steps) <= 80:
    for step, value in zip(steps, losses):
      if math.isfinite(value):
        axes.dot(step, value, OWN, f"step {step}: {decimal(value, 3)}", radius=2.6)
  rates = [row["tokens_per_second"] for row in run.metrics if isinstance(row.get("tokens_per_second"), int | float)]
  speed = f"Median {count(float(np.median(rates)))} tokens/s." if rates else ""
  return figure("Training loss", speed, axes, None)


def _shares(run, rows, title, label, reading, names=None):
  rows = [row for row in rows if isinstance(row[1], int | float) and math.isfinite(row[1])]
  if not rows:
    return None
  top = max(max(value for _, value, _ in rows) * 1.25, 0.05)
  axes, slot = _by_round(run, (0, top), label, [row[0] for row in rows], names)
  _percent_ticks(axes, top)
  for index, value, counts in rows:
    axes.bar(index, min(slot / 2.2, 64), value, OWN, f"{share(value)}: {counts}")
    axes.note(index, value, share(value), dy=-6)
  told = ", ".join(f"{counts} ({(names or {}).get(index, f'round {index}')})" for index, _, counts in rows)
  return figure(title, reading, axes, None, element("p", told, class_="counts"))


def _by_round(run, y, y_label, indices=None, names=None):
  """Axes with a place for each round, and how wide that place is in drawing units."""
  indices = indices or [round_.index for round_ in run.rounds]
  low, high = min(indices) - 0.55, max(indices) + 0.55
  axes = Axes((low, high), y, "accepted in round → seen by the policy of round" if names else "round", y_label)
  axes.x_ticks(indices, [(names or {}).get(index, str(index)) for index in indices])
  return axes, (WIDTH - LEFT - RIGHT) / (high - low)


def _percent_ticks(axes, top):
  ticks = nice_ticks(0, top)
  digits = 0 if len(ticks) < 2 else max(0, -math.floor(math.log10(100 * ticks[1]) + 1e-9))
  axes.y_ticks(ticks, [f"{100 * tick:.{digits}f}%" for tick in ticks])


def figure(title: str, reading: str, axes: Axes, key: Markup | None, *below: Markup) -> Markup:
  """A drawing with its title, a sentence that says how to read it, and its key."""
  head = element("figcaption", element("b", title), element("span", reading) if reading else "")
  return element("figure", head, key or "", axes.svg(title), *below)
