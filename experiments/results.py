"""The table of a grid: numbers of its runs, their means and 95% intervals over seeds, and a plot of them."""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from scipy import stats

from experiments.cells import Grid
from policylong.report.markup import element
from policylong.storage import lines, tables
from policylong.storage.workdir import read_json, write_atomically

_WIDTH, _LEFT, _ROW, _HEAD = 620, 190, 22, 34


def run_numbers(workdir: pathlib.Path) -> dict[str, float]:
  """A finished run's own numbers.

  Training losses (nats a token, the mean of the first and of the last fifth of the steps) are over each method's own
  sequences, so they say that a run went well, and nothing of one method against another.
  """
  metrics = [values for _, values in lines.read(workdir / "metrics.jsonl")[0]]
  losses = [row["loss"] for row in metrics]
  width = max(1, len(losses) // 5)
  rounds = [read_json(path) for path in sorted(workdir.glob("rounds/*/DONE.json"), key=lambda p: int(p.parent.name))]
  tokens = {role: sum(done["synthesis"]["tokens"][role] for done in rounds)
            for role in ("root", "positive", "negative", "filler")}
  numbers = {"sequences": sum(done["sequences"] for done in rounds),
             "loss_first": float(np.mean(losses[:width])), "loss_last": float(np.mean(losses[-width:])),
             **{f"{role}_share": count / sum(tokens.values()) for role, count in tokens.items()}}
  screened = [done for done in rounds if "acceptance" in done]
  if screened:
    groups = {name: [done["acceptance"][name] for done in screened] for name in ("own", "control")}
    numbers |= {f"accepted_{name}": sum(g["accepted"] for g in group) / pairs
                for name, group in groups.items() if (pairs := sum(g["pairs"] for g in group))}
    numbers |= {"positives": sum(done["positives"] for done in screened),
                "mean_gain": float(np.mean([done["mean_gain"] for done in screened]))}
  gap = read_json(workdir / "final.json")["offpolicy"]
  return numbers | ({"offpolicy_gap": gap["share"]} if gap and gap["verified"] else {})


def interval(values: Sequence[float]) -> tuple[float, float]:
  """(mean, half of its 95% interval by Student's t); the half is NaN for a single value."""
  n = len(values)
  half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
  return float(np.mean(values)), half


def write_results(grid: Grid, directory: pathlib.Path) -> None:
  """Writes table.parquet, table.md and plot.svg from the outcomes that are there."""
  rows = []
  for cell in grid.cells:
    path = directory / "outcomes" / f"{cell.folder}.json"
    outcome = read_json(path, checked=False) if path.exists() else {}
    status = "failed" if "error" in outcome else "done" if outcome else "waiting"
    rows.append({"cell": cell.name, "seed": cell.seed, "status": status, "error": outcome.get("error", ""),
                 "numbers": outcome.get("numbers", {})})
  names = list(dict.fromkeys(name for row in rows for name in row["numbers"]))
  columns = {name: [row[name] for row in rows] for name in ("cell", "seed", "status", "error")}
  columns |= {name: pa.array([row["numbers"].get(name) for row in rows], pa.float64()) for name in names}
  tables.write(directory / "table.parquet", pa.table(columns))
  by_cell: dict[str, list[dict]] = {}
  for row in rows:
    by_cell.setdefault(row["cell"], []).append(row)
  write_atomically(directory / "table.md", markdown(by_cell, names).encode())
  write_atomically(directory / "plot.svg", plot(by_cell, names).encode())


def markdown(by_cell: Mapping[str, list[dict]], names: Sequence[str]) -> str:
  """A row a number, of which there may be hundreds, and a column a cell; under it, what failed and why."""
  runs = (f"{sum(row['status'] == 'done' for row in rows)} of {len(rows)}" for rows in by_cell.values())
  told_rows = [(name, *(told([row["numbers"][name] for row in rows if name in row["numbers"]])
                        for rows in by_cell.values())) for name in names]
  lines = [markdown_table(("", *by_cell), [("runs", *runs), *told_rows]), "",
           "Means over seeds ± half of the 95% interval (Student's t); a single run has none."]
  lines += [f"\n{row['cell']}, seed {row['seed']}, failed: {row['error']}" for rows in by_cell.values() for row in rows
            if row["status"] == "failed"]
  return "\n".join(lines) + "\n"


def plot(by_cell: Mapping[str, list[dict]], names: Sequence[str]) -> str:
  """An SVG: for each number a panel with a line a cell, a dot a seed, a bar for the mean's interval."""
  parts, top = [], 0
  for name in names:
    found = {cell: [row["numbers"][name] for row in rows if name in row["numbers"]] for cell, rows in by_cell.items()}
    found = {cell: values for cell, values in found.items() if values}
    parts += _panel(name, found, top)
    top += _HEAD + _ROW * len(found) + 10
  svg = element("svg", *parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_WIDTH} {max(top, 1)}",
                font_family="sans-serif", font_size="12")
  return str(svg) + "\n"


def _panel(name, found, top):
  ends = []
  for values in found.values():
    mean, half = interval(values)
    ends += [*values, *((mean - half, mean + half) if half == half else ())]
  low, high = min(ends), max(ends)
  spread = (high - low) or abs(high) or 1.0

  def x(value):
    return round(_LEFT + (value - low) / spread * (_WIDTH - _LEFT - 20) if high > low else (_LEFT + _WIDTH) / 2, 1)

  yield element("text", f"{name}: {low:.4g} to {high:.4g}", x=4, y=top + 20, font_weight="bold")
  for row, (cell, values) in enumerate(found.items()):
    y = top + _HEAD + _ROW * row + 8
    mean, half = interval(values)
    yield element("text", cell, x=_LEFT - 10, y=y + 4, text_anchor="end")
    if half == half:
      yield element("line", x1=x(mean - half), x2=x(mean + half), y1=y, y2=y, stroke="#0072b2", stroke_width="2")
    yield element("line", x1=x(mean), x2=x(mean), y1=y - 6, y2=y + 6, stroke="#0072b2", stroke_width="2")
    for value in values:
      yield element("circle", element("title", f"{cell}: {value:.6g}"), cx=x(value), cy=y, r=3, fill="#e69f00",
                    fill_opacity="0.8")


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A Markdown table, without a line's end behind it."""
  return "\n".join(["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads),
                    *("| " + " | ".join(row) + " |" for row in rows)])


def told(values: Sequence[float]) -> str:
  """The mean and half of its 95% interval, to the interval's second digit; a dash for nothing."""
  if not len(values):
    return "–"
  mean, half = interval(values)
  if half != half:
    return f"{mean:.4g}"
  if half <= 1e-9 * abs(mean):  # the same number each time, but for rounding
    return f"{mean:.4g} ± 0"
  digits = max(0, 1 - math.floor(math.log10(half)))
  return f"{mean:.{digits}f} ± {half:.{digits}f}"
