"""LongBench-v2: 503 four-way questions on long contexts, with its six scores in percent.

A base model is scored by the log-likelihoods of the letters, by lm-eval's own task and prompt. A chat model
(--apply_chat_template) writes its answer, as LongBench-v2 itself has it: the same prompt with its own last line,
temperature 0.1, 128 tokens, the middle of the prompt cut.

The questions come from the hub (THUDM/LongBench-v2), or from --data_dir: that data set's data.json, or the folder it
lies in. Differences under 4 points overall, and 8 on the long ones, are noise.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from policylong.devices import hosts
from policylong.errors import UserError
from policylong.evaluation import lm_eval_tasks
from policylong.evaluation.policy import cut_middle
from policylong.evaluation.results import Options, Result
from policylong.evaluation.shared_work import answered, number_of
from policylong.storage import workdir

_HUB = "THUDM/LongBench-v2"
_LETTERS = "ABCD"
_TEXTS = ("_id", "domain", "sub_domain", "question", "context", *(f"choice_{letter}" for letter in _LETTERS))
# The scores: one overall, and those of the records with a field's value.
_SPLITS = {"easy": "difficulty", "hard": "difficulty", "short": "length", "medium": "length", "long": "length"}
_CHOICES = {"answer": tuple(_LETTERS), "difficulty": ("easy", "hard"), "length": ("short", "medium", "long")}
# The generation protocol: prompt tokens that are kept, tokens to write, temperature, and how the prompt ends.
_MOST_PROMPT_TOKENS = 120_000
_NEW_TOKENS = 128
_TEMPERATURE = 0.1
_LAST_LINE = 'Format your response as follows: "The correct answer is (insert answer here)".'


def names() -> tuple[str, ...]:
  """The six scores."""
  return ("longbench2", *(f"longbench2/{split}" for split in _SPLITS))


def claims(task: str) -> bool:
  """longbench2 and its splits; lm-eval's own longbench2_<domain> tasks are lm-eval's."""
  return task.partition("/")[0] == "longbench2"


def run(policy, tasks: Sequence[str], options: Options, directory: epath.Path) -> dict[str, dict[str, Result]]:
  """Scores all questions once; "longbench2" gives all six scores, "longbench2/hard" and so on give one.

  Raises:
    UserError: a split does not exist, lm-eval is missing, the questions cannot be had or are damaged, or a chat
      template is wanted and the tokenizer has none.
  """
  wanted = list(dict.fromkeys(name for task in tasks for name in _scores_of(task)))
  lm_eval_tasks.check_installed()
  if options.apply_chat_template:
    lm_eval_tasks.check_chat_template(policy)
  records = _records(options.data_dir)[:options.samples]
  if options.apply_chat_template:
    kept = min(_MOST_PROMPT_TOKENS, policy.window - _NEW_TOKENS)
    protocol = (f"LongBench-v2 generation, temperature {_TEMPERATURE}, {_NEW_TOKENS} tokens, middle cut to {kept:,} "
                "tokens")
  else:
    protocol = f"LongBench-v2 log-likelihood, lm-eval {lm_eval_tasks.version()}"
  judge = _written if options.apply_chat_template else _letters
  judged = judge(policy, records, options, directory)
  if hosts.is_first():
    name = "generation" if options.apply_chat_template else "loglikelihood"
    workdir.write_json(directory / "longbench2" / f"{name}.json", {"protocol": protocol, "questions": judged})
  return {name: {"": _score(name, judged, protocol)} for name in wanted}


def _scores_of(task: str) -> list[str]:
  _, _, split = task.partition("/")
  if not split:
    return list(names())
  if split not in _SPLITS:
    raise UserError(f"there is no task {task!r}; longbench2 has the splits {', '.join(_SPLITS)}")
  return [task]


def _score(name: str, judged: list[dict[str, Any]], protocol: str) -> Result:
  """Accuracy in percent; none where there is no question of a kind."""
  _, _, split = name.partition("/")
  mine = [each for each in judged if not split or each[_SPLITS[split]] == split]
  right = sum(each["predicted"] == each["answer"] for each in mine)
  return Result(metric="accuracy, %", value=100 * right / len(mine) if mine else None, samples=len(mine),
                truncated=sum(each["truncated"] for each in mine), protocol=protocol)


def _records(data_dir: str | None) -> list[dict[str, Any]]:
  """The questions, checked."""
  if data_dir is not None:
    path = epath.Path(data_dir)
    return _read(path / "data.json" if path.is_dir() else path)
  import datasets
  try:
    rows = datasets.load_dataset(_HUB, split="train")
  except Exception as error:  # the hub's client raises nearly anything without a network
    raise UserError(f"LongBench-v2 cannot be had from the hub ({type(error).__name__}): give --data_dir=FILE with "
                    f"the data.json of {_HUB}") from error
  return [_checked(row, i, _HUB) for i, row in enumerate(rows)]


def _read(path: epath.Path) -> list[dict[str, Any]]:
  if not path.exists():
    raise UserError(f"{path} does not exist: --data_dir must be LongBench-v2's data.json or the folder it lies in")
  try:
    rows = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is not JSON ({error}): LongBench-v2's data.json is wanted") from error
  if not isinstance(rows, list) or not rows:
    raise UserError(f"{path} holds {'an empty list' if rows == [] else 'a ' + type(rows).__name__}; wanted is a list "
                    "of questions, as in LongBench-v2's data.json")
  return [_checked(row, i, path) for i, row in enumerate(rows)]


def _checked(row: Any, index: int, place: Any) -> dict[str, Any]:
  if not isinstance(row, dict):
    raise UserError(f"{place}: record {index} is a {type(row).__name__}, wanted is an object with the fields "
                    f"{', '.join((*_TEXTS, *_CHOICES))}")
  for name in _TEXTS:
    if not isinstance(row.get(name), str):
      raise UserError(f"{place}: record {index} has {name} = {row.get(name)!r}, wanted is a text")
  for name, values in _CHOICES.items():
    if row.get(name) not in values:
      raise UserError(f"{place}: record {index} has {name} = {row.get(name)!r}, wanted is one of {', '.join(values)}")
  return {name: row[name] for name in (*_TEXTS, *_CHOICES)}


def _lm_eval_task(records: list[dict[str, Any]]):
  """lm-eval's LongBench-v2 on these records: its prompt, choices and metric, with another source of the data."""
  import datasets
  import lm_eval.tasks
  from lm_eval.api.task import ConfigurableTask
  folder = os.path.join(os.path.dirname(lm_eval.tasks.__file__), "longbench2")
  # All of its tasks have the same definition but for the domain whose questions they take.
  definition = dict(lm_eval_tasks.manager_of(folder).task_index["longbench2_code"].cfg)
  rows = [{"question": record["question"], "context": record["context"],
           "choices": [record[f"choice_{letter}"] for letter in _LETTERS],
           "answer": _LETTERS.index(record["answer"])} for record in records]
  table = {definition["test_split"]: datasets.Dataset.from_list(rows)}
  definition |= {"task": "longbench2", "dataset_name": None, "custom_dataset": lambda **_: table}
  return ConfigurableTask(config={key: value for key, value in definition.items() if key != "tag"})


def _letters(policy, records: list[dict[str, Any]], options: Options, directory: epath.Path) -> list[dict[str, Any]]:
  """The most likely letter of each question."""
  from lm_eval.tasks import TaskManager
  found, truncated = lm_eval_tasks.evaluate(policy, [_lm_eval_task(records)], TaskManager(include_defaults=False),
                                            options, directory)
  ordered = sorted(found["samples"]["longbench2"], key=lambda sample: sample["doc_id"])
  judged = []
  for record, sample in zip(records, ordered, strict=True):
    values = [value for value, _ in sample["filtered_resps"]]
    letter = _LETTERS[max(range(len(values)), key=values.__getitem__)]
    cut = sample["doc_id"] in truncated.get("longbench2", ())
    judged.append(_judged(record, letter, cut, log_likelihoods=values))
  return judged


def _written(policy, records: list[dict[str, Any]], options: Options, directory: epath.Path) -> list[dict[str, Any]]:
  """The letter that the policy writes for each question; none where it writes none."""
  task = _lm_eval_task(records)
  texts = [task.doc_to_text(document).removesuffix("Answer:") + _LAST_LINE for document in task.eval_docs]

  def answer(questions: list[tuple[str, int]], progress: Callable[[int], None]) -> list[tuple[str, bool]]:
    prompts = [_prompt(policy, text) for text, _ in questions]
    written = policy.generate([tokens for tokens, _ in prompts], _NEW_TOKENS, temperature=_TEMPERATURE,
                              seed=options.seed, numbers=[number_of(question) for question in questions],
                              progress=progress)
    return [(generation.text, cut) for generation, (_, cut) in zip(written, prompts, strict=True)]

  found = answered([(text, options.seed) for text in texts], answer, directory / "longbench2" / "answers", "longbench2")
  return [_judged(record, letter_in(text), cut, text=text) for record, (text, cut) in zip(records, found, strict=True)]


def _judged(record: dict[str, Any], letter: str | None, truncated: bool, **evidence) -> dict[str, Any]:
  return {**{name: record[name] for name in ("_id", "domain", "sub_domain", *_CHOICES)}, "predicted": letter,
          "truncated": truncated, **evidence}


def _prompt(policy, text: str) -> tuple[list[int], bool]:
  """The tokens of a question as a chat's first message, and whether its middle was cut."""
  tokenizer = policy.tokenizer
  tokens = tokenizer(text, add_special_tokens=False).input_ids
  room = min(_MOST_PROMPT_TOKENS, len(tokens))
  while True:
    message = text if room == len(tokens) else tokenizer.decode(cut_middle(tokens, room), skip_special_tokens=True)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": message}], tokenize=False,
                                         add_generation_prompt=True)
    prompt = list(tokenizer(chat, add_special_tokens=False).input_ids)
    # The template adds tokens, and the seam may be read as other tokens than were cut there.
    excess = len(prompt) - (policy.window - _NEW_TOKENS)
    if excess <= 0:
      return prompt, room < len(tokens)
    if room <= excess:
      raise UserError(f"LongBench-v2's prompts need more than the {policy.window} tokens of {policy.name}'s window, "
                      f"of which {_NEW_TOKENS} are for the answer")
    room -= excess


def letter_in(text: str) -> str | None:
  """The letter a text settles on: after "The correct answer is", in brackets if there is one, bold or not."""
  text = text.replace("*", "")
  for form in (r"\(([A-D])\)", r"([A-D])"):
    if found := re.search("The correct answer is " + form, text):
      return found[1]
  return None
