"""Benchmarks on the page: what changed from policy to policy, and the published numbers beside ours."""

from policylong.report.axes import Axes, legend, nice_ticks
from policylong.report.markup import Markup, element, join, table
from policylong.report.plots import OWN, figure, round_color
from policylong.report.tables import Run
from policylong.report.words import NONE, count, decimal

# RULER of Llama-3-8B as EntropyLong (arXiv 2510.02330) reports it, by thousands of tokens; "avg" over the five.
PUBLISHED_LENGTHS = (8192, 16384, 32768, 65536, 131072)
PUBLISHED = (
    ("EntropyLong, Llama-3-8B", (91.50, 90.11, 88.95, 85.04, 81.26), 87.37),
    ("EntropyLong without verification, Llama-3-8B", (None, None, None, None, 79.47), 85.82),
    ("NExtLong, Llama-3-8B", (None, None, None, None, 77.99), 85.22),
    ("Quest, Llama-3-8B", (None, None, None, None, 60.11), None),
)
_BUCKET = "position_loss/"


def section(run: Run) -> Markup:
  """The whole section."""
  figures = [drawn for drawn in (position_change(run), *_curves(run)) if drawn is not None]
  parts = [element("p", "The base model, and the policy after each round, on the same prompts and documents; each "
                        "table names its protocol.", class_="lead")]
  if figures:
    parts.append(element("div", *figures, class_="plots"))
  parts += [*result_tables(run), element("h3", "RULER, published and here"), published(run)]
  return join(parts)


def position_change(run: Run) -> Markup | None:
  """How each round's loss by position differs from the base model's, at the longest length."""
  base, *later = run.evaluations
  tasks = [task for task in base.results if task.startswith(_BUCKET)]
  if not tasks or not later:
    return None
  length = max((length for task in tasks for length in base.results[task]), key=int)
  tasks = sorted((task for task in tasks if length in base.results[task]), key=_first_position)
  changes = [[_difference(entry.value(task, length), base.value(task, length)) for task in tasks] for entry in later]
  values = [value for row in changes for value in row if value is not None]
  if not values:
    return None
  low, high = min(0.0, *values), max(0.0, *values)
  margin = 0.12 * max(high - low, 1e-4)
  axes = Axes((-0.5, len(tasks) - 0.5), (low - margin, high + margin), "position of the token",
              f"loss minus {base.name}'s (nats)")
  axes.x_ticks(range(len(tasks)), [task.removeprefix(_BUCKET).replace("-", "–") for task in tasks])
  axes.y_ticks(ticks := nice_ticks(low - margin, high + margin), [f"{tick:g}".replace("-", "\u2212") for tick in ticks])
  axes.rule(y=0.0, css="rule paper")
  entries = []
  for at, (entry, row) in enumerate(zip(later, changes)):
    color = round_color(at, len(later))
    axes.line(range(len(tasks)), [float("nan") if value is None else value for value in row], color, entry.name)
    for x, value in enumerate(row):
      if value is not None:
        axes.dot(x, value, color, f"{entry.name}: {decimal(value, 4)} nats", radius=4)
    entries.append((color, entry.name))
  return figure("Loss by position, against the base model",
                f"Held-out documents of {count(int(length))} tokens. Below zero is better; what falls to the right is "
                "use of a longer context.", axes, legend(entries))


def _curves(run: Run):
  """A curve over the policies for each measure that is worth one."""
  for task, title, unit, reading in (
      ("longppl", "LongPPL", "perplexity", "Of the tokens that need the long context, as the base model sees it; "
                                           "lower is better."),
      ("position_loss", "Held-out loss", "nats per token", "All positions; lower is better."),
      ("ruler", "RULER", "mean of 13 tasks", "Higher is better.")):
    lengths = sorted({length for entry in run.evaluations for length in entry.results.get(task, {})}, key=int)
    rows = [[entry.value(task, length) for entry in run.evaluations] for length in lengths]
    values = [value for row in rows for value in row if value is not None]
    if values:
      yield _curve(run, title, unit, reading, lengths, rows, values)


def _curve(run, title, unit, reading, lengths, rows, values):
  spread = max(max(values) - min(values), 0.01 * abs(max(values)), 1e-3)
  low, high = min(values) - 0.2 * spread, max(values) + 0.2 * spread
  axes = Axes((-0.5, len(run.evaluations) - 0.5), (low, high), "policy", unit)
  axes.x_ticks(range(len(run.evaluations)), [entry.name for entry in run.evaluations])
  axes.y_ticks(ticks := nice_ticks(low, high), [f"{tick:g}" for tick in ticks])
  entries = []
  for at, (length, row) in enumerate(zip(lengths, rows)):
    color = round_color(at, len(lengths)) if len(lengths) > 1 else OWN
    axes.line(range(len(row)), [float("nan") if value is None else value for value in row], color, f"{length} tokens")
    for x, value in enumerate(row):
      if value is not None:
        axes.dot(x, value, color, f"{run.evaluations[x].name}, {length} tokens: {decimal(value, 3)}", radius=4.5)
        axes.note(x, value, decimal(value), dy=-9)
    entries.append((color, f"{count(int(length))} tokens"))
  return figure(title, reading, axes, legend(entries))


def result_tables(run: Run) -> list[Markup]:
  """A table for each protocol: a row a task and length, a column a policy."""
  blocks: dict[str, dict[tuple[str, str], dict]] = {}
  for entry in run.evaluations:
    for task, lengths in entry.results.items():
      for length, row in lengths.items():
        blocks.setdefault(str(row.get("protocol")), {}).setdefault((task, length), row)
  return [join((element("h3", protocol), table(
      ("task", "tokens", "samples", "truncated", "metric", *(entry.name for entry in run.evaluations)),
      [(task, count(int(length)) if length else NONE, count(row.get("samples")), count(row.get("truncated")),
        str(row.get("metric")), *(decimal(entry.value(task, length), 3) for entry in run.evaluations))
       for (task, length), row in rows.items()]))) for protocol, rows in blocks.items()]


def published(run: Run) -> Markup:
  """RULER's means as published, and ours where this run measured them."""
  ours = {int(length) for entry in run.evaluations for length in entry.results.get("ruler", {})}
  model = str(run.setting("model.path", "this run")).rstrip("/").rsplit("/", 1)[-1]
  lengths = sorted({*PUBLISHED_LENGTHS, *ours})
  cells = {length: at for at, length in enumerate(PUBLISHED_LENGTHS)}
  rows = [(name, *(decimal(scores[cells[length]]) if length in cells else NONE for length in lengths), decimal(mean))
          for name, scores, mean in PUBLISHED]
  for entry in run.evaluations:
    values = [entry.value("ruler", str(length)) for length in lengths]
    if any(value is not None for value in values):
      five = [entry.value("ruler", str(length)) for length in PUBLISHED_LENGTHS]
      protocol = next(iter(entry.results["ruler"].values())).get("protocol")
      rows.append((f"{model}, {entry.name} ({protocol})", *map(decimal, values),
                   decimal(sum(five) / 5) if None not in five else NONE))
  note = ("Published by EntropyLong (arXiv 2510.02330), 100 samples a task, as HELMET configures RULER. Of PolicyLong "
          "(Qwen2.5-3B) only its margin at 128K is known here, +2.54.")
  if not ours:
    note += " This run measured no RULER mean: name ruler in eval.tasks."
  return join((table(("mean of 13 tasks", *(count(length) for length in lengths), "avg 8K to 128K"), rows),
               element("p", note, class_="lead")))


def _first_position(task: str) -> int:
  return int(task.removeprefix(_BUCKET).partition("-")[0])


def _difference(value: float | None, base: float | None) -> float | None:
  return None if value is None or base is None else value - base
