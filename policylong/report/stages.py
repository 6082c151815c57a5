"""Which stage a run is in, by the files that it has finished: what the next start of the same command would go on with.

The order is that of `loop.run` and of `sft.tuning.run`; a stage is over when the file that it writes last is there.
"""

import dataclasses
import math

from policylong import config as config_lib
from policylong.errors import UserError
from policylong.report.tables import Run
from policylong.report.words import duration, of, plural
from policylong.storage.workdir import Round, Workdir, listed, read_json


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of one run: `name` says it in words, `detail` what of it is done, "" where nothing counts it."""
  name: str
  detail: str = ""


@dataclasses.dataclass(frozen=True)
class Start:
  """Those who work on a run now: how many processes, and when the first began, in seconds since 1970."""
  processes: int
  since: float


def stage(run: Run, workdir: Workdir, start: Start | None) -> Stage | None:
  """The stage that is not over yet; None when the run is done.

  Args:
    run: of the loop, or a fine-tuning.
    workdir: where it lies.
    start: who works on it; None where nobody does.
  """
  if workdir.final_json.exists():
    return None
  return _tuning(run, workdir) if "data" in run.config else _loop(run, workdir, start)


def checkpoints(workdir: Workdir) -> list[int]:
  """The steps of the whole checkpoints, in order."""
  return sorted(int(path.name) for path in listed(workdir.checkpoints) if path.name.isdigit())


def total_steps(run: Run, workdir: Workdir) -> int | None:
  """The optimizer steps of the whole run; None where they are not known yet."""
  if "data" not in run.config:
    steps, rounds = run.setting("training.steps_per_round"), run.setting("rounds")
    return steps * rounds if steps and rounds else None
  try:
    sequences = read_json(workdir.sequences_json, checked=False)["sequences"]
    return config_lib.parse(run.config, config_lib.FineTuning).training.as_training(sequences).steps_per_round
  except (UserError, KeyError):  # not packed yet, or written by another version
    return None


def _loop(run: Run, workdir: Workdir, start: Start | None) -> Stage:
  if not workdir.corpus_json.exists():
    return Stage("reading the corpus")
  rounds, steps = run.setting("rounds", 0), run.setting("training.steps_per_round", 0)
  newest = max(checkpoints(workdir), default=0)
  if unfinished := _evaluation(run, workdir.round(0), "the base model"):
    return unfinished
  for index in range(1, rounds + 1):
    name = f"round {of(index, rounds)}"
    if not (workdir.round(index).done and newest >= index * steps):
      for ahead in range(index, min(index + run.setting("max_staleness", 0), rounds) + 1):
        round_ = workdir.round(ahead)
        if not round_.screened_path.exists():
          return _before_training(run, workdir, round_, f"round {of(ahead, rounds)}", start)
      step = sum(row["step"] > (index - 1) * steps for row in run.metrics)
      return Stage(f"{name}, training", f"step {of(min(step, steps), steps)}")
    if unfinished := _evaluation(run, workdir.round(index), f"the policy after {name}"):
      return unfinished
  return Stage("the last policy looks again at the last round's dependencies" if run.screened else "writing the page")


def _evaluation(run: Run, round_: Round, policy: str) -> Stage | None:
  if not run.setting("eval.tasks") or (round_.evaluation / "DONE.json").exists():
    return None
  found = [lengths for entry in run.evaluations if entry.after == round_.index for lengths in entry.results.values()]
  return Stage(f"evaluation of {policy}", f"{plural(sum(map(len, found)), 'result')} so far")


def _before_training(run: Run, workdir: Workdir, round_: Round, name: str, start: Start | None) -> Stage:
  """What comes between two trainings: re-verification, the shards of screening, negatives, synthesis, the gap."""
  if run.screened and not round_.table("negatives").exists():
    if not round_.judged_path.exists():
      scanned, retrieved, verified = (round_.shards(kind) for kind in ("scan", "candidates", "verify"))
      if not scanned and not round_.table("offpolicy").exists() and _has_learnt(run, workdir, round_.index):
        return Stage(f"{name}, re-verification of what round {round_.index - 1} accepted")
      shards = math.ceil(run.setting("screening.roots_per_round", 0) / run.setting("screening.roots_per_shard", 1))
      left = _time_left(scanned + retrieved, verified, shards, start) if start else ""
      return Stage(f"{name}, screening", f"of at most {plural(shards, 'shard')} of roots {len(scanned)} scanned, "
                   f"{len(retrieved)} retrieved for, {len(verified)} verified" + (f"; {left} left" if left else ""))
    return Stage(f"{name}, hard negatives")
  if not round_.table("sequences").exists():
    return Stage(f"{name}, synthesis")
  if (run.setting("training.longce") or run.setting("training.longfilter_share")) and not round_.table("gaps").exists():
    return Stage(f"{name}, long-short gap of the sequences", f"{plural(len(round_.shards('gaps')), 'shard')} read")
  return Stage(f"{name}, synthesis")


def _has_learnt(run: Run, workdir: Workdir, index: int) -> bool:
  """Whether the policy that screens round `index` is another one than screened the round before."""
  before = [round_.summary.get("policy_step") for round_ in run.rounds if round_.index == index - 1]
  return bool(before) and before[0] != max(checkpoints(workdir), default=0)


def _time_left(before: list, verified: list, total: int, start: Start) -> str:
  """By the time from the first shard of the round to the newest that this start has finished; "" without one between.

  Before the first, a start loads, and reads the corpus and all rounds before. Several processes verify a shard each at
  the same time: where a start begins with these, they only say when the next ones began.
  """
  try:
    others, times = (sorted(time for path in paths if (time := path.stat().mtime) > start.since)
                     for paths in (before, verified))
  except OSError:  # the round has just ended, and its shards are gone
    return ""
  if not others or (times and times[0] <= others[0]):
    others, times = times[:start.processes][-1:], times[start.processes:]
  return duration((total - len(verified)) * (times[-1] - others[0]) / len(times)) if times else ""


def _tuning(run: Run, workdir: Workdir) -> Stage:
  if not workdir.sequences_json.exists():
    return Stage("packing the conversations")
  steps, step = total_steps(run, workdir), max((row["step"] for row in run.metrics), default=0)
  if workdir.held_out_sequences.exists() and not workdir.held_out_json.exists():
    return Stage("loss on held-out answers, before training")
  if steps is not None and max(checkpoints(workdir), default=0) >= steps:
    return Stage("loss on held-out answers, after training")
  return Stage("training", f"step {of(step, steps)}")
