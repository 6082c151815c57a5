"""RESULTS.md: what was found, in words written by hand (findings.md), and all numbers, from the cells' outcomes."""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from experiments.cells import Grid
from experiments.grid import outcome_path
from experiments.results import markdown_table, plot, told
from experiments.small_study.tasks import TASKS
from experiments.small_study.truth import ALPHAS, EPSILONS
from policylong.storage.workdir import read_json, write_atomically

_REFERENCE = "policylong"
# Differences that are shown beside those of the reference and each other cell.
_MORE_PAIRS = (("negatives=none", "entropylong"),)
# Per round: name in the outcomes -> what the table calls it.
_ROUND = {
    "anchors_per_root": "anchors a root",
    "anchored": "told values that are anchors", "recall": "of these, source among the own candidates",
    "gain_source": "mean gain of the source", "gain_other": "mean gain of other chunks",
    "without_value": "accepted for a told value, but without it in the chunk",
    "positives": "positives", "positives_true": "of these, a source", "negatives_unhelpful": "negatives, no source",
    "accepted_own": "accepted, own candidates", "accepted_control": "accepted, random chunks", "epsilon": "epsilon",
    "mean_gain": "mean gain of the accepted", "offpolicy_gap": "rejected by the next policy"}

Numbers = Mapping[str, Sequence[float]]


def write(grid: Grid, directory: pathlib.Path, findings: pathlib.Path) -> None:
  """Writes RESULTS.md and its plot from the outcomes of the cells that are done."""
  seeds: dict[str, dict[int, dict[str, float]]] = {}
  for cell in grid.cells:
    if (path := outcome_path(cell, directory)).exists() and "numbers" in (outcome := read_json(path, checked=False)):
      seeds.setdefault(cell.name, {})[cell.seed] = outcome["numbers"]
  base = dict(sorted(read_json(directory / "base.json", checked=False).items(), key=lambda item: _order(item[0])))
  cells: dict[str, Numbers] = {"base": {name: [value] for name, value in base.items()}}
  for name, runs in seeds.items():
    names = list(dict.fromkeys(key for numbers in runs.values() for key in numbers))
    cells[name] = {key: [numbers[key] for numbers in runs.values() if key in numbers] for key in names}
  lengths = [name.split("/")[1] for name in base if name.startswith("needle/")]
  losses = [name for name in base if name.startswith(("loss/", "gap/"))]
  parts = [findings.read_text() if findings.exists() else "# Results of the small study\n", _conditions(grid, seeds)]
  for task in TASKS:
    parts.append(f"## {task}: share of answers that are right, and nats of an answer, by length in tokens\n\n"
                 + _table(cells, [f"{task}/{n}" for n in lengths] + [f"{task}_nll/{n}" for n in lengths]))
  parts.append("## Held-out speeches: loss by position and long-range gap, nats a token\n\n" + _table(cells, losses))
  if _REFERENCE in seeds:
    watched = [f"{task}_nll/{lengths[-1]}" for task in TASKS] + losses[-1:]
    parts.append(_differences(seeds, watched))
  parts += [_rounds(name, numbers) for name, numbers in cells.items() if "round1/recall" in numbers]
  chosen = [f"{task}_nll/{lengths[-1]}" for task in TASKS] + [f"{TASKS[0]}/{n}" for n in lengths] + losses[-1:]
  rows = {name: [{"numbers": run} for run in runs.values()] for name, runs in seeds.items()}
  write_atomically(directory / "results.svg", plot({"base": [{"numbers": base}], **rows}, chosen).encode())
  parts.append("![chosen numbers, a dot a seed](results.svg)\n")
  write_atomically(directory / "RESULTS.md", "\n".join(parts).encode())


def _order(name: str) -> tuple[str, int]:
  """Sorts "needle/512" before "needle/1024", and "loss/1-255" before "loss/256-511"."""
  kind, _, where = name.partition("/")
  return kind, int(where.partition("-")[0])


def _conditions(grid: Grid, seeds: Mapping[str, Mapping]) -> str:
  config = grid.cells[0].config
  tokens = config.rounds * config.training.steps_per_round * config.training.batch_size
  tokens *= config.synthesis.sequence_length
  done = sum(map(len, seeds.values()))
  return (f"Below: means over seeds ± half of the 95% interval (Student's t). {done} of {len(grid.cells)} runs are "
          f"done; each read {tokens:,} tokens in sequences of {config.synthesis.sequence_length}. All seeds one by one "
          "are in table.parquet, and dots in the plot at the end.\n")


def _table(cells: Mapping[str, Numbers], names: Sequence[str]) -> str:
  return markdown_table(("cell", *names), [(cell, *(told(numbers.get(name, ())) for name in names))
                                           for cell, numbers in cells.items()]) + "\n"


def _differences(seeds: Mapping[str, Mapping[int, Mapping[str, float]]], names: Sequence[str]) -> str:
  """The reference minus each other cell, and other pairs, seed by seed, with what could have been seen."""
  pairs = [*((_REFERENCE, other) for other in seeds if other != _REFERENCE), *_MORE_PAIRS]
  rows = []
  for one, other in pairs:
    if both := sorted(seeds.get(one, {}).keys() & seeds.get(other, {}).keys()):
      columns = []
      for name in names:
        values = [seeds[one][seed][name] - seeds[other][seed][name] for seed in both]
        columns.append(told(values) + (f" ({detectable(values):.2g})" if len(values) > 1 else ""))
      rows.append((f"{one} − {other}", *columns))
  return ("## Differences, seed by seed\n\nIn brackets the smallest true difference that so many seeds would show four "
          "times out of five, at the spread that was seen.\n\n" + markdown_table(("", *names), rows) + "\n")


def detectable(differences: Sequence[float]) -> float:
  """The smallest true mean that a t test at 5% finds with a power of 80%, at the spread of `differences`."""
  n = len(differences)
  quantiles = stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)
  return float(quantiles * np.std(differences, ddof=1) / math.sqrt(n))


def _rounds(cell: str, numbers: Numbers) -> str:
  """What screening did in each round, and the curves over epsilon and alpha."""
  rounds = sorted({int(name[5:].split("/")[0]) for name in numbers if name.startswith("round")})
  heads = [f"round {r}" for r in rounds]

  def of_rounds(name: str) -> list[str]:
    return [told(numbers.get(f"round{r}/{name}", ())) for r in rounds]
  counts = markdown_table(("", *heads), [(words, *of_rounds(name)) for name, words in _ROUND.items()])
  def curve(field: str, values: Sequence[float], *names: str) -> str:
    return markdown_table((field, *heads), [
        (str(value), *map(" / ".join, zip(*(of_rounds(f"{name}@{value}") for name in names)))) for value in values])
  return (f"## Screening against the truth: {cell}\n\n{counts}\n\n"
          f"Pairs with a gain above epsilon: precision / share of the sources found.\n\n"
          f"{curve('epsilon', EPSILONS, 'precision', 'found')}\n\n"
          "Tokens above the threshold of an alpha: how many a root / share of them that are told values / share of the "
          f"told values among them.\n\n{curve('alpha', ALPHAS, 'above', 'told', 'anchored')}\n")
