"""HELMET from the user's own checkout (--helmet_dir): its categories, and the Avg of the long-context papers.

  helmet            Recall, RAG, ICL, Re-rank, LongQA and RULER, and their mean (the papers' Avg)
  helmet/<name>     one category: recall, rag, icl, rerank, longqa, ruler, summ, cite

Prompts, data, metrics and settings are HELMET's. A base model gets no chat template, as HELMET runs those; with
--apply_chat_template its configs decide. HELMET's judge models are not asked: NarrativeQA, InfBench Sum and
Multi-LexSum count by ROUGE-L F1 instead, and the protocol says so.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from policylong.devices import hosts
from policylong.errors import UserError
from policylong.evaluation.helmet_checkout import Checkout
from policylong.evaluation.results import Options, Result
from policylong.storage.checksums import sha256_of_texts
from policylong.storage.workdir import new_directory

_ROUGE = "rougeL_f1"
# {category: ((part of the data set's name, metric), ...)}; a category's config is of its name, short lengths apart.
_CATEGORIES = {
    "recall": (("json_kv", "substring_exact_match"), ("ruler_niah_mk_2", "ruler_recall"),
               ("ruler_niah_mk_3", "ruler_recall"), ("ruler_niah_mv", "ruler_recall")),
    "rag": tuple((name, "substring_exact_match") for name in ("nq", "triviaqa", "hotpotqa", "popqa")),
    "icl": tuple((name, "exact_match") for name in ("trec_coarse", "trec_fine", "banking77", "clinic150", "nlu")),
    "rerank": (("msmarco_rerank_psg", "NDCG@10"),),
    "longqa": (("narrativeqa", _ROUGE), ("infbench_qa", _ROUGE), ("infbench_choice", "exact_match")),
    "ruler": (*((f"ruler_{name}", "ruler_recall") for name in (
        "niah_s_1", "niah_s_2", "niah_s_3", "niah_mk_1", "niah_mk_2", "niah_mk_3", "niah_mq", "niah_mv", "cwe", "fwe",
        "vt")), ("ruler_qa_1", "substring_exact_match"), ("ruler_qa_2", "substring_exact_match")),
    "summ": (("infbench_sum", _ROUGE), ("multi_lexsum", _ROUGE)),
    "cite": (*(("alce_asqa", metric) for metric in ("str_em", "citation_rec", "citation_prec")),
             *(("alce_qampari", metric) for metric in ("qampari_rec_top5", "citation_rec", "citation_prec"))),
}
_AVERAGED = ("recall", "rag", "icl", "rerank", "longqa", "ruler")
_NOT_JUDGED = {"longqa": "NarrativeQA", "summ": "all"}


def names() -> tuple[str, ...]:
  """The Avg and the categories."""
  return ("helmet", *(f"helmet/{category}" for category in _CATEGORIES))


def claims(task: str) -> bool:
  """helmet and helmet/<category>."""
  return task.partition("/")[0] == "helmet"


def run(policy, tasks: Sequence[str], options: Options, directory: epath.Path) -> dict[str, dict[str, Result]]:
  """Runs the categories at each length; what is finished lies in helmet/<model>/ and is not run again.

  Returns:
    {task: {length: Result}}, with "helmet" as the mean over categories.

  Raises:
    UserError: no --helmet_dir or no checkout there, data or packages are missing, a category or length does not
      exist, or HELMET fails on a data set.
  """
  categories = list(dict.fromkeys(name for task in tasks for name in _categories_of(task)))
  if options.helmet_dir is None:
    raise UserError("HELMET's tasks need --helmet_dir=DIR, a checkout of github.com/princeton-nlp/HELMET with its data")
  checkout = Checkout(options.helmet_dir)
  rows = {(category, length): _rows(checkout, category, length)
          for category in categories for length in _lengths(checkout, category, options, policy)}
  checkout.check_data([row for each in rows.values() for row in each])
  flat = [row for each in rows.values() for row in each]
  # The folder is the model's own; other settings, other code of HELMET's: another one below it.
  settings = [options.samples, options.apply_chat_template]
  folder = pathlib.Path(directory) / "helmet" / sha256_of_texts(json.dumps(settings), checkout.code_sha256())[:12]
  for i in hosts.share(len(flat)):
    _run(checkout, policy, flat[i], folder, options)
  hosts.barrier("helmet")
  results: dict[str, dict[str, Result]] = {}
  for (category, length), each in rows.items():
    results.setdefault(f"helmet/{category}", {})[str(length)] = _category(checkout, category, each, folder)
  if "helmet" in tasks:
    results["helmet"] = _averages(results)
  return results


def data_sets(task: str) -> list[tuple[str, str]]:
  """(category, part of the data set's name) of all that a task runs at one length.

  Raises:
    UserError: a category does not exist.
  """
  return [(category, name) for category in _categories_of(task) for name in dict(_CATEGORIES[category])]


def protocol(task: str) -> str:
  """What a task's number is, and what of it is not judged as HELMET has it."""
  plain = [_NOT_JUDGED[category] for category in _categories_of(task) if category in _NOT_JUDGED]
  return ", ".join(["HELMET", *(f"{name} by ROUGE-L, not judged" for name in plain)])


def _categories_of(task: str) -> Sequence[str]:
  _, _, category = task.partition("/")
  if not category:
    return _AVERAGED
  if category not in _CATEGORIES:
    raise UserError(f"there is no task {task!r}; HELMET has the categories {', '.join(_CATEGORIES)}")
  return [category]


def _all_rows(checkout: Checkout, category: str) -> list[dict[str, str]]:
  """The rows of the category's configs that its score needs."""
  rows = checkout.rows(category) + checkout.rows(f"{category}_short")
  if not rows:
    raise UserError(f"{checkout.directory} has neither configs/{category}.yaml nor configs/{category}_short.yaml: "
                    "restore them from HELMET")
  return [row for row in rows if any(name in row["datasets"] for name, _ in _CATEGORIES[category])]


def _rows(checkout: Checkout, category: str, length: int) -> list[dict[str, str]]:
  """One row for each data set of the category at a length."""
  rows = [row for row in _all_rows(checkout, category) if int(row["input_max_length"]) == length]
  for name, _ in _CATEGORIES[category]:
    if sum(name in row["datasets"] for row in rows) != 1:
      raise UserError(f"HELMET's configs for {category} in {checkout.directory} list {name} "
                      f"{sum(name in row['datasets'] for row in rows)} times at {length} tokens, wanted is once: "
                      "restore them from HELMET")
  return rows


def _lengths(checkout: Checkout, category: str, options: Options, policy) -> list[int]:
  """The lengths to run, in tokens."""
  there = sorted({int(row["input_max_length"]) for row in _all_rows(checkout, category)})
  wanted = options.lengths or tuple(length for length in there if length <= policy.window)
  for length in wanted:
    if length not in there:
      raise UserError(f"HELMET's {category} has no length {length}; it has {', '.join(map(str, there))}")
    if length > policy.window:
      raise UserError(f"--lengths has {length}, and the window of {policy.name} is {policy.window} tokens")
  if not wanted:
    raise UserError(f"the window of {policy.name} is {policy.window} tokens, and HELMET's {category} starts at "
                    f"{there[0]}")
  return list(wanted)


def _place(checkout: Checkout, row: dict[str, str], folder: pathlib.Path) -> pathlib.Path:
  """A folder for what a row asks, its config and its data being part of that."""
  return folder / f"{row['config']}-{row['datasets']}-{row['input_max_length']}-{checkout.row_sha256(row)[:12]}"


def _run(checkout: Checkout, policy, row: dict[str, str], folder: pathlib.Path, options: Options) -> None:
  """Runs one row unless its folder is there, which is renamed to its name when it is whole."""
  place = _place(checkout, row, folder)
  if place.exists():
    return
  with new_directory(place) as output:
    checkout.run(policy, row, output, samples=options.samples, chat=options.apply_chat_template)


def _outcome(checkout: Checkout, row: dict[str, str], folder: pathlib.Path
             ) -> tuple[dict[str, float], list[dict[str, Any]]]:
  """HELMET's averaged metrics in percent, and its samples."""
  (scores,) = _place(checkout, row, folder).glob("*.score")
  return json.loads(scores.read_text()), json.loads(scores.with_suffix("").read_text())["data"]


def _category(checkout: Checkout, category: str, rows: Sequence[dict[str, str]], folder: pathlib.Path) -> Result:
  values, samples, truncated = [], 0, 0
  outcomes = {row["datasets"]: _outcome(checkout, row, folder) for row in rows}
  for name, metric in _CATEGORIES[category]:
    ((scores, _),) = [outcome for dataset, outcome in outcomes.items() if name in dataset]
    if metric not in scores:
      raise UserError(f"HELMET gave no {metric} for {name}: it has {', '.join(sorted(scores))}")
    values.append(scores[metric])
  for _, data in outcomes.values():
    samples += len(data)
    truncated += sum(bool(sample.get("truncated")) for sample in data)
  return Result(metric="mean over data sets, %" if len(values) > 1 else f"{_CATEGORIES[category][0][1]}, %",
                value=float(np.mean(values)), samples=samples, truncated=truncated,
                protocol=protocol(f"helmet/{category}"))


def _averages(results: dict[str, dict[str, Result]]) -> dict[str, Result]:
  """The papers' Avg at every length that all six categories have."""
  parts = [results[f"helmet/{category}"] for category in _AVERAGED]
  shared = [length for length in parts[0] if all(length in part for part in parts)]
  return {length: Result(metric="Avg of Recall, RAG, ICL, Re-rank, LongQA, RULER",
                         value=float(np.mean([part[length].value for part in parts])),
                         samples=sum(part[length].samples for part in parts),
                         truncated=sum(part[length].truncated for part in parts),
                         protocol=protocol("helmet")) for length in shared}
