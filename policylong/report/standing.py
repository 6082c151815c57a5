"""Where a run stands: whether something works on it, on what, how fast, how long still, and its last numbers.

All of it comes from the working directory, at any instant of a run: files that are not there yet, or just went, are
left out. Nothing here writes.
"""

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator

from policylong.errors import Damaged
from policylong.report.stages import Start, checkpoints, stage, total_steps
from policylong.report.tables import Run
from policylong.report.words import count, decimal, duration, of, plural, share
from policylong.storage import progress
from policylong.storage.progress import Told
from policylong.storage.workdir import Workdir, listed, read_json

# So many writings of a process may be missing before it counts as silent.
_MISSED = 12
# A speed is the median of so many steps.
_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Standing:
  """state: "under way", "silent" (its processes were killed, or cannot write), "stopped" (one said why) or "done".
  life: that in a sentence, with what is known of the processes. facts: (name, sentence) of the work, in order.
  """
  state: str
  life: str
  facts: list[tuple[str, str]]


def standing(run: Run, workdir: Workdir, now: float) -> Standing:
  """Where the run stands.

  Args:
    run: as `read_run` gives it.
    workdir: where it lies.
    now: the time in seconds since 1970, by the clock of those who work on it.
  """
  told = progress.read(workdir.progress)
  state, life = _life(workdir, told, now)
  return Standing(state, life, list(_facts(run, workdir, told if state == "under way" else [], now)))


def _life(workdir: Workdir, told: list[Told], now: float) -> tuple[str, str]:
  if workdir.final_json.exists():
    return "done", f"done, {_ago(now - _written([workdir.final_json]))}"
  if not told:
    files = [workdir.directory / "config.json", workdir.metrics, *_round_files(workdir)]
    if not (newest := _written(files)):
      return "silent", "no run has begun here"
    return "silent", f"nothing says that it works here; the newest file was written {_ago(now - newest)}"
  if failed := [each for each in told if each.stopped]:
    first = min(failed, key=lambda each: each.told)
    return "stopped", f"stopped {_ago(now - first.told)}{_which(first)}: {first.stopped}"
  processes = told[0].processes
  silent = [each for each in told if now - each.told > _MISSED * each.every]
  if silent:
    oldest = min(silent, key=lambda each: each.told)
    others = f"; {of(len(silent), processes)} processes are silent" if processes > 1 else ""
    return "silent", (f"no sign of life for {duration(now - oldest.told)}{_which(oldest)}, where one is due every "
                      f"{oldest.every:g} seconds{others}: killed, or unable to write; the same command goes on")
  last, still = min(each.told for each in told), now - max(each.moved for each in told)
  sentence = (f"under way{f' with {plural(processes, 'process', 'processes')}' if processes > 1 else ''}, last sign of "
              f"life {_ago(now - last)}; started {_ago(now - told[0].started)}")
  if len(told) < processes:
    sentence += f"; of {plural(processes, 'process', 'processes')} only {len(told)} have begun"
  if still > _MISSED * told[0].every:
    sentence += f"; nothing has moved for {duration(still)}"
  return "under way", sentence


def _which(told: Told) -> str:
  return f" (process {told.process} of {told.processes})" if told.processes > 1 else ""


def _facts(run: Run, workdir: Workdir, told: list[Told], now: float) -> Iterator[tuple[str, str]]:
  start = Start(len(told), min(each.started for each in told)) if told else None
  if found := stage(run, workdir, start):
    yield "stage", found.name + (f": {found.detail}" if found.detail else "")
  working = [each for each in told if each.work]
  if working:
    yield "now", _work(working[0], now)
  elif told:
    yield "now", "nothing that is counted: loading, compiling or writing"
  if run.metrics:
    yield "training", _training(run, total_steps(run, workdir))
  if steps := checkpoints(workdir):
    yield "checkpoint", (f"step {count(steps[-1])}, written "
                         f"{_ago(now - _written([workdir.checkpoints / str(steps[-1])]))}")
  if sentence := _held_out(workdir):
    yield "held out", sentence
  for evaluation in run.evaluations[-1:]:
    values = [f"{task} {decimal(value, 3)}" + (f" ({length})" if length else "")
              for task, lengths in evaluation.results.items() if "/" not in task for length in lengths
              if (value := evaluation.value(task, length)) is not None]
    yield "evaluation", f"{evaluation.name}: {', '.join(values[:6])}" + ", ..." * (len(values) > 6)


def _work(told: Told, now: float) -> str:
  work = told.work
  done = count(work.done) if work.total is None else of(work.done, work.total)
  sentence = f"{work.what}: {done} {work.unit}"
  if work.total:
    sentence += f" ({share(work.done / work.total)})"
  if work.rate:
    # A step of minutes is no rate of 0.0 a second.
    sentence += (f", {decimal(work.rate, 1 if work.rate < 100 else 0)} a second" if work.rate >= 1
                 else f", one in {duration(1 / work.rate)}")
    if work.total:
      sentence += f", {duration((work.total - work.done) / work.rate - (now - told.told))} left"
  return sentence


def _training(run: Run, total: int | None) -> str:
  last, speeds = run.metrics[-1], [row["tokens_per_second"] for row in run.metrics[-_STEPS:]
                                   if row.get("tokens_per_second")]
  sentence = f"step {of(last['step'], total)}, " if total else f"step {count(last['step'])}, "
  sentence += f"loss {decimal(last['loss'], 3)}"
  if not speeds:
    return sentence
  speed, tokens = statistics.median(speeds), last.get("tokens", 0) / last["step"]
  sentence += f", {count(speed)} tokens a second"
  if last.get("peak_share"):
    sentence += f" ({share(last['peak_share'])} of the machine's peak)"
  if total and total > last["step"]:
    sentence += f"; {duration((total - last['step']) * tokens / speed)} of training left"
  return sentence


def _held_out(workdir: Workdir) -> str:
  """What a fine-tuning says of the answers that it does not train on; "" where there is nothing yet."""
  if not workdir.held_out_json.exists():
    return ""
  try:
    before, after = read_json(workdir.held_out_json, checked=False)["before"], None
    if workdir.final_json.exists():
      after = read_json(workdir.final_json, checked=False)["held_out"]["after"]
  except (Damaged, KeyError, TypeError) as error:
    return f"cannot be read ({error})"
  return f"{decimal(before, 4)} nats a token before" + (f", {decimal(after, 4)} after" if after is not None else "")


def _round_files(workdir: Workdir) -> list:
  folders = listed(workdir.directory / "rounds")
  return [path for folder in folders for path in (*listed(folder), *listed(folder / "shards"))]


def _written(paths) -> float:
  """When the newest of these files was written, in seconds since 1970; 0 where none is there."""
  newest = 0.0
  for path in paths:
    with contextlib.suppress(OSError):  # gone, or not there yet
      newest = max(newest, path.stat().mtime)
  return newest


def _ago(seconds: float) -> str:
  return f"{duration(seconds)} ago"
