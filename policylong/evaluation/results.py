"""What a benchmark is asked and what it answers; results.json; the printed table.

A benchmark is a module of this folder with

  names() -> tuple[str, ...]                                         # its tasks, for the nearest name of a misspelt one
  claims(task) -> bool
  run(policy, tasks, options, directory) -> dict[str, dict[str, Result]]      # {task: {length or "": Result}}

`run` is called by all processes of a run together, may be killed at any instant and goes on where it was: `directory`
belongs to this policy and these options.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from etils import epath

from policylong.config import Source
from policylong.errors import Damaged, UserError
from policylong.storage.mending import whole_or_gone
from policylong.storage.workdir import read_json, write_bare_json

# The longest length with at least this mean is what RULER's paper (2404.06654) calls a model's effective length:
# Llama-2-7B's own score at 4K.
EFFECTIVE_SCORE = 85.6


@dataclasses.dataclass(frozen=True)
class Options:
  """What all benchmarks may be told.

  lengths: of prompts or documents, in tokens. samples: a task and length; None: as many as the benchmark says.
  protocol: nvidia or helmet, of RULER. seed: of prompts. apply_chat_template: prompts as a user's message.
  helmet_dir, data_dir, include_path: of HELMET and lm-eval. ruler_dir: RULER's package and prompt sets.
  documents: held-out text for longppl and position_loss. short_window: LongPPL's short context, tokens.
  evaluator: the model that names LongPPL's key tokens; None: the policy itself. keys_dir: where its key tokens are
  kept; None: beside the results.
  """
  lengths: tuple[int, ...]
  samples: int | None
  protocol: str
  seed: int
  apply_chat_template: bool
  helmet_dir: str | None
  data_dir: str | None
  include_path: str | None
  ruler_dir: str = "material/ruler"
  documents: Source | None = None
  short_window: int = 4096
  evaluator: str | None = None
  keys_dir: str | None = None


@dataclasses.dataclass(frozen=True)
class Result:
  """One cell of the table. value is None where there was nothing to measure; truncated: prompts that were cut."""
  metric: str
  value: float | None
  samples: int
  truncated: int
  protocol: str


Results = Mapping[str, Mapping[str, Result]]


def check_lengths(lengths: Sequence[int], window: int, name: str) -> None:
  """Refuses a length that does not fit the model.

  Raises:
    UserError: there is none, one is below 1, or one is above the model's window.
  """
  if not lengths:
    raise UserError("no length is given: name prompt lengths in tokens, e.g. --lengths=4096,8192")
  for length in lengths:
    if length < 1:
      raise UserError(f"length {length} is asked for; it must be at least 1 token")
    if length > window:
      raise UserError(f"length {length} is asked for, and the window of {name} is {window} tokens: give lengths up to "
                      f"{window}, or a model whose window was extended")


def merge(path: epath.Path, results: Results) -> dict:
  """Adds results to results.json, whole or not at all; returns all that it holds then."""
  path = epath.Path(path)
  mend(path)
  held = read_json(path, checked=False) if path.exists() else {}
  for task, lengths in results.items():
    held.setdefault(task, {}).update({length: dataclasses.asdict(result) for length, result in lengths.items()})
  write_bare_json(path, held)
  return held


def mend(path: epath.PathLike) -> None:
  """Removes a results.json that is damaged, or that nothing vouches for as its checksum is; each with a line.

  Its benchmarks' answers are kept by themselves.
  """
  path = epath.Path(path)
  if not whole_or_gone(path.with_name(f"{path.name}.sha256"), read_json):
    path.unlink(missing_ok=True)
  whole_or_gone(path, functools.partial(read_json, checked=False))


def read(path: epath.Path) -> dict[str, dict[str, Result]]:
  """What `merge` wrote.

  Raises:
    UserError: the file cannot be read, or holds something else.
  """
  try:
    return {task: {length: Result(**row) for length, row in lengths.items()}
            for task, lengths in read_json(path, checked=False).items()}
  except (AttributeError, TypeError, Damaged) as error:
    raise UserError(f"{path} does not hold results of policylong.evaluate ({error}): remove it") from error


def effective_length(results: Results) -> int | None:
  """The longest length whose mean over RULER's 13 tasks is at least EFFECTIVE_SCORE; None where there is none."""
  good = [int(length) for length, result in results.get("ruler", {}).items()
          if result.value is not None and result.value >= EFFECTIVE_SCORE]
  return max(good, default=None)


def table(results: Results) -> str:
  """All results as text: a block for each protocol, a row a task, a column a length."""
  blocks: dict[str, dict] = {}
  for task, lengths in results.items():
    for length, result in lengths.items():
      blocks.setdefault(result.protocol, {}).setdefault(task, {})[length] = result
  parts = [_block(protocol, rows) for protocol, rows in blocks.items()]
  if "ruler" in results:
    found = effective_length(results)
    parts.append(f"effective length (longest with a mean of {EFFECTIVE_SCORE} or more): "
                 f"{found if found else 'none of these'}")
  return "\n\n".join(parts)


def _block(protocol: str, rows: dict[str, dict[str, Result]]) -> str:
  lengths = sorted({length for row in rows.values() for length in row}, key=lambda length: int(length or 0))
  lines = [["task", "metric", "samples", *(length or "score" for length in lengths)]]
  for task, row in rows.items():
    counts = sorted({result.samples for result in row.values()})
    lines.append([task, next(iter(row.values())).metric, "-".join(map(str, dict.fromkeys((counts[0], counts[-1])))),
                  *(_cell(row.get(length)) for length in lengths)])
  widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
  text = ["  ".join(cell.ljust(width) if column < 2 else cell.rjust(width)
                    for column, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines]
  text.insert(1, "  ".join("-" * width for width in widths))
  return "\n".join([f"protocol: {protocol}", *text])


def _cell(result: Result | None) -> str:
  if result is None or result.value is None:
    return "-"
  return f"{result.value:.2f}" + (f" ({result.truncated} truncated)" if result.truncated else "")
