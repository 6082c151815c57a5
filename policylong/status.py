"""Says where a run stands, in one screen of text: python -m policylong.status --workdir=runs/demo.

Of a run of policylong.main or policylong.sft, whether it is under way, was killed, or is done: its stage, how fast it
is and how long that takes still, and the last numbers. It reads what lies in the working directory, writes nothing and
disturbs nothing; `watch -n 5 python -m policylong.status --workdir=runs/demo` looks again and again.
"""

import argparse
import textwrap
import time

from policylong import paths
from policylong.errors import UserError, run_command
from policylong.report.standing import Standing, standing
from policylong.report.tables import Run, read_run
from policylong.report.words import NONE, count, decimal, of, plural
from policylong.storage.workdir import Workdir, listed, read_json

# Columns of the screen.
_WIDTH = 100
# Of more rounds, the last ones.
_ROUNDS = 10
# Columns of benchmarks, the first ones.
_TASKS = 3


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(prog="python -m policylong.status", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=paths.flag, required=True, help="the working directory of a run")
  workdir = Workdir(parser.parse_args().workdir)
  if not listed(workdir.directory):
    raise UserError(f"--workdir is {workdir.directory}, and nothing lies there: no run has begun in it")
  if not (workdir.directory / "config.json").exists():
    raise UserError(f"--workdir is {workdir.directory}, which has no config.json: it is not the working directory of "
                    "a run")
  # A page leaves out what it cannot read; here nothing would be left.
  read_json(workdir.directory / "config.json", checked=False)
  run = read_run(workdir)
  print(text(run, standing(run, workdir, time.time())))


def text(run: Run, now: Standing) -> str:
  """One screen."""
  lines = [("run", run.directory), ("config", _config(run)), ("state", now.life), *now.facts,
           *(("damage", note) for note in run.notes if "damaged" in note)]
  width = max(len(name) for name, _ in lines) + 2
  parts = ["\n".join(textwrap.fill(sentence, _WIDTH, initial_indent=f"{name:{width}}", subsequent_indent=" " * width,
                                   break_long_words=False, break_on_hyphens=False) for name, sentence in lines)]
  if "data" not in run.config:
    parts += [_rounds(run)]
  return "\n\n".join(part for part in parts if part)


def _config(run: Run) -> str:
  model = run.setting("model.path", NONE)
  if "data" in run.config:
    return f"fine-tuning of {model} on {run.setting('data.path', NONE)}"
  return (f"{run.setting('method', 'policylong')} from {model}, {plural(run.setting('rounds'), 'round')} of "
          f"{count(run.setting('training.steps_per_round'))} steps of {count(run.setting('training.batch_size'))} x "
          f"{count(run.setting('synthesis.sequence_length'))} tokens")


def _rounds(run: Run) -> str:
  """A row a round: what its screening found, its loss, what benchmarks say of the policy after it."""
  columns = [(task, lengths[-1]) for task, lengths in _tasks(run)][:_TASKS]
  rows = [["round", "policy", "roots fed", "accepted", "control", "gap", "loss",
           *(f"{task} {length}".strip() for task, length in columns)]]
  found = {evaluation.after: evaluation for evaluation in run.evaluations}
  if 0 in found:
    rows.append(["base", *[""] * 6, *(decimal(found[0].value(*column), 3) for column in columns)])
  for round_ in run.rounds[-_ROUNDS:]:
    numbers, losses = round_.summary, [row["loss"] for row in run.metrics if row.get("round") == round_.index]
    groups, gap = numbers.get("acceptance") or {}, numbers.get("offpolicy") or {}
    rows.append([
        str(round_.index), f"step {numbers['policy_step']}" if "policy_step" in numbers else NONE,
        of(numbers["roots_with_positives"], numbers["roots"]) if "roots" in numbers else NONE,
        *(of(groups[name]["accepted"], groups[name]["pairs"]) if name in groups and groups[name]["pairs"] else NONE
          for name in ("own", "control")),
        of(gap["rejected"], gap["verified"]) if gap.get("verified") else NONE,
        f"{decimal(losses[0])} → {decimal(losses[-1])}" if losses else NONE,
        *(decimal(found[round_.index].value(*column), 3) if round_.index in found else NONE for column in columns)])
  if len(rows) == 1:
    return ""
  kept = [at for at in range(len(rows[0])) if any(row[at] not in ("", NONE) for row in rows[1:])]
  widths = {at: max(len(row[at]) for row in rows) for at in kept}
  return "\n".join("  ".join(row[at].ljust(widths[at]) for at in kept).rstrip() for row in rows)


def _tasks(run: Run) -> list[tuple[str, list[str]]]:
  """The benchmarks' means with their lengths, in the order in which they were first met."""
  found: dict[str, dict[str, None]] = {}
  for evaluation in run.evaluations:
    for task, lengths in evaluation.results.items():
      if "/" not in task:
        found.setdefault(task, {}).update(dict.fromkeys(lengths))
  return [(task, sorted(lengths, key=lambda length: int(length or 0))) for task, lengths in found.items()]


if __name__ == "__main__":
  run_command(main)
