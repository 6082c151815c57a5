"""Any task of lm-eval, its own or one of the user's YAML files, run by lm-eval itself on our model.

The number in the table is the first metric that the task's definition lists, as lm-eval computes it (accuracies are
shares of 1). All metrics with their errors, and what was answered to each sample, lie in lm_eval/<task>.json.
"""

import difflib
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from policylong import errors
from policylong.devices import hosts
from policylong.errors import UserError
from policylong.evaluation import ruler
from policylong.evaluation.results import Options, Result
from policylong.storage import workdir

# What lm-eval resamples to estimate the error of a metric that is not a mean.
_BOOTSTRAPS = 1000
# How a file of lm-eval says what it defines.
_NAMED = re.compile(r"""^["']?(?:task|group|tag)["']?:[ \t]*["']?([\w.-]+)["']?[ \t]*$""", re.MULTILINE)
# The benchmarks beside lm-eval: a name near to theirs is likely meant for them.
_OTHERS = ("ruler", "longppl", "position_loss", "longbench2", "helmet")


def names() -> tuple[str, ...]:
  """None: lm-eval has 14,000, which it takes ten seconds to list, and the user may have more."""
  return ()


def claims(task: str) -> bool:
  """Whether it may be lm-eval's or the user's own: to be asked last, as that is nearly every name without a slash.

  A name much like another benchmark's is taken for a slip, unless lm-eval has it. `run` tells of the others that
  nobody knows.
  """
  if "/" in task:
    return False
  slip = (difflib.get_close_matches(task, _OTHERS, cutoff=0.8)
          or difflib.get_close_matches(f"ruler/{task}", ruler.names(), cutoff=0.95))
  return not slip or task in _names_in_lm_eval()


def run(policy, tasks: Sequence[str], options: Options, directory: epath.Path) -> dict[str, dict[str, Result]]:
  """Runs each task, group or tag.

  Returns:
    {task: {"": Result}}; a tag, and a group without a number of its own, give each of their tasks.

  Raises:
    UserError: lm-eval is not installed, does not know a task, cannot have its data, will not run it or has no number
      for it; or a chat template is wanted and the tokenizer has none.
  """
  check_installed()
  if options.apply_chat_template:
    check_chat_template(policy)
  manager = _manager(options.include_path, tasks)
  for task in tasks:
    check_known(task, manager.all_tasks, options.include_path)
  results = {}
  for task in tasks:
    loaded = _load(task, manager)
    parts = [loaded["groups"][task]] if task in loaded["groups"] else list(loaded["tasks"].values())
    found, truncated = evaluate(policy, parts, manager, options, directory)
    _write_details(directory / "lm_eval" / f"{re.sub(r'[^\w.-]', '_', task)}.json", found, truncated)
    shown = _shown(found, task)
    if not shown:
      raise UserError(f"lm-eval gives no number for {task}: its answers are in {directory / 'lm_eval'}")
    for name in shown:
      results[name] = {"": _result(found, name, truncated, options)}
  return results


def check_installed() -> None:
  """Raises a UserError where lm-eval is not installed, and prepares it where it is."""
  errors.check_installed(["lm_eval"], "evaluation", "a task of lm-eval")
  # Its workers would be forks of a process in which JAX has threads.
  os.environ.setdefault("DISABLE_MULTIPROC", "1")


def version() -> str:
  """Of lm-eval."""
  return importlib.metadata.version("lm_eval")


def check_chat_template(policy) -> None:
  """Raises a UserError where the tokenizer has no chat template."""
  if not policy.tokenizer.chat_template:
    raise UserError(f"the tokenizer of {policy.name} has no chat template, which --apply_chat_template needs: leave "
                    "the flag out for a base model, or add a chat_template to its tokenizer_config.json")


def check_known(task: str, known: Sequence[str], include_path: str | None) -> None:
  """Raises a UserError with near matches where no task is called so."""
  if task in known:
    return
  near = difflib.get_close_matches(task, [*_OTHERS, *known], n=3, cutoff=0.5)
  raise UserError(f"there is no task {task!r}" + (f", in {include_path} either" if include_path else "")
                  + (f"; did you mean {' or '.join(near)}?" if near else "; `lm-eval ls tasks` lists those of lm-eval"))


def evaluate(policy, tasks: list, manager, options: Options,
             directory: epath.Path) -> tuple[dict[str, Any], dict[str, set[int]]]:
  """lm-eval's results for loaded tasks and groups, and {task: ids of its documents that were truncated}.

  What the policy answers is kept in the folder lm_eval/answers, and not asked again.

  Raises:
    UserError: lm-eval refuses to run a task (it needs images, or runs what the model writes as code).
  """
  from lm_eval import evaluator

  from policylong.evaluation.lm_eval import PolicyLM
  model = PolicyLM(policy, directory / "lm_eval" / "answers", options.seed)
  try:
    found = evaluator.simple_evaluate(model, tasks=tasks, task_manager=manager, limit=options.samples,
                                      apply_chat_template=options.apply_chat_template, bootstrap_iters=_BOOTSTRAPS)
  except ValueError as error:
    if "Attempted to run task" not in str(error):
      raise
    raise UserError(f"lm-eval does not run this task here: {str(error).splitlines()[0]}") from error
  return found, dict(model.truncated)


def manager_of(folder: str | os.PathLike):
  """The tasks that lie in one folder, without the 14,000 others, whose reading takes ten seconds and more."""
  from lm_eval.tasks import TaskManager
  return TaskManager(include_path=str(folder), include_defaults=False)


@functools.cache
def _every_task(include_path: str | None):
  from lm_eval.tasks import TaskManager
  return TaskManager(include_path=include_path)


def _manager(include_path: str | None, tasks: Sequence[str]):
  """The tasks that may be run: the folder's own alone where they are all that is asked for."""
  if include_path is None:
    return _every_task(None)
  if not epath.Path(include_path).is_dir():
    raise UserError(f"--include_path is {include_path}, and no such folder exists")
  manager = manager_of(include_path)
  # A group may be made of tasks that lie elsewhere.
  return manager if set(tasks) <= set(manager.all_subtasks) else _every_task(include_path)


@functools.cache
def _names_in_lm_eval() -> frozenset[str]:
  """What lm-eval's files call their tasks, groups and tags, read as plain text: half a second."""
  found = importlib.util.find_spec("lm_eval")
  names = set()
  for path in pathlib.Path(found.origin).parent.glob("tasks/**/*.yaml") if found else ():
    names.update(_NAMED.findall(path.read_text(encoding="utf-8")))
  return frozenset(names)


def _load(task: str, manager) -> dict:
  """The task with its data, which is fetched or read here."""
  try:
    return manager.load([task])
  except Exception as error:  # whatever a data set's own code, the hub's client or a YAML file's code may raise
    said = str(error).strip().splitlines() or [""]
    raise UserError(f"the task {task} cannot be loaded ({type(error).__name__}: {said[0]}): its data must be in reach "
                    "on the hub, in the cache of `datasets` (with HF_DATASETS_OFFLINE=1), or in the local files that "
                    "a YAML task of --include_path names") from error


def _shown(found: dict[str, Any], task: str) -> list[str]:
  """The entries of lm-eval's results that stand for what was asked."""
  with_numbers = [name for name, metrics in found["results"].items() if _numbers(metrics)]
  return [task] if task in with_numbers else [name for name in with_numbers if name in found["n-samples"]]


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
  """{metric,filter: value} without errors, names and counts."""
  return {key: value for key, value in metrics.items()
          if "," in key and "_stderr," not in key and isinstance(value, int | float)}


def _leaves(found: dict[str, Any], name: str) -> list[str]:
  """The tasks that a group stands for; of a task, itself."""
  if name in found["n-samples"]:
    return [name]
  return [leaf for child in found["group_subtasks"][name] for leaf in _leaves(found, child)]


def _result(found: dict[str, Any], name: str, truncated: dict[str, set[int]], options: Options) -> Result:
  numbers = _numbers(found["results"][name])
  leaves = _leaves(found, name)
  listed = [entry["metric"] for entry in found["configs"][leaves[0]].get("metric_list") or []]
  key = next((key for metric in listed for key in numbers if key.split(",")[0] == metric), next(iter(numbers)))
  metric, _, rule = key.partition(",")
  protocol = f"lm-eval {version()}, {found['n-shot'].get(name, 0)}-shot"
  return Result(metric=metric if rule == "none" else f"{metric} ({rule})", value=float(numbers[key]),
                samples=sum(found["n-samples"][leaf]["effective"] for leaf in leaves),
                truncated=sum(len(truncated.get(leaf, ())) for leaf in leaves),
                protocol=protocol + (", chat template" if options.apply_chat_template else ""))


def _write_details(path: epath.Path, found: dict[str, Any], truncated: dict[str, set[int]]) -> None:
  if not hosts.is_first():
    return
  # Prompts of 128K tokens are not repeated here: the hashes say whether they were the same.
  samples = {task: [{key: value for key, value in sample.items() if key not in ("doc", "arguments")}
                    for sample in each] for task, each in found["samples"].items()}
  kept = {key: found[key] for key in ("results", "groups", "group_subtasks", "configs", "versions", "n-shot",
                                      "n-samples", "config", "date") if key in found}
  workdir.write_json(path, _plain({**kept, "truncated": truncated, "samples": samples}))


def _plain(value: Any) -> Any:
  """What JSON can hold: numbers of numpy as numbers, functions and other things by name."""
  if isinstance(value, dict):
    return {str(key): _plain(each) for key, each in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(each) for each in value]
  if isinstance(value, set):
    return sorted(value)
  if hasattr(value, "tolist"):
    return value.tolist()
  return value if isinstance(value, str | int | float | bool | None) else str(value)
