"""Who runs a task, and running tasks."""

import difflib
from collections.abc import Sequence

from etils import epath

from policylong.devices import hosts
from policylong.errors import UserError
from policylong.evaluation import helmet, lm_eval_tasks, longbench2, longppl, position_loss, results, ruler
from policylong.evaluation.results import Options

# The first one that claims a task runs it.
BENCHMARKS = (ruler, longppl, position_loss, longbench2, helmet, lm_eval_tasks)


def evaluate(policy, tasks: Sequence[str], options: Options, directory: epath.Path) -> dict:
  """Runs each benchmark with the tasks that it claims; returns {task: {length: Result}} of this call.

  Collective. results.json in `directory` gets each benchmark's results as soon as they are there.

  Raises:
    UserError: an unknown task, or what a benchmark refuses.
  """
  found: dict = {}
  for benchmark, claimed in claimants(tasks):
    new = benchmark.run(policy, claimed, options, directory)
    found.update(new)
    if hosts.is_first():
      results.merge(directory / "results.json", new)
  hosts.barrier("evaluated")
  return found


def claimants(tasks: Sequence[str]) -> list[tuple]:
  """[(benchmark, its tasks)] in the order of BENCHMARKS.

  Raises:
    UserError: nobody claims a task.
  """
  chosen: dict = {benchmark: [] for benchmark in BENCHMARKS}
  for task in dict.fromkeys(tasks):
    claimant = next((benchmark for benchmark in chosen if benchmark.claims(task)), None)
    if claimant is None:
      known = [name for benchmark in chosen for name in benchmark.names()]
      close = difflib.get_close_matches(task, known, n=1, cutoff=0.4)
      close = close or difflib.get_close_matches(f"ruler/{task}", known, n=1)
      raise UserError(f"there is no task {task!r}" + (f"; did you mean {close[0]}?" if close else
                      f"; the tasks are {', '.join(known)}"))
    chosen[claimant].append(task)
  if not any(chosen.values()):
    raise UserError("--tasks is empty: name benchmarks, e.g. --tasks=ruler,longppl")
  return [(benchmark, claimed) for benchmark, claimed in chosen.items() if claimed]
