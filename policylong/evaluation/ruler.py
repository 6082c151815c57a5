"""RULER (2404.06654) by NVIDIA's own package: its prompts, our answers, its metrics.

Two protocols, named in every table:
  nvidia   as the package runs it: 500 samples, its own number of new tokens, the answer prefix on the question's line.
  helmet   as the HELMET release (2410.02694) configures RULER, and so the papers that are compared: 100 samples, 50
           new tokens (100 where _HELMET_LONG says so), the answer prefix on a line of its own. The score is the
           package's in both.
Greedy, no stop but the tokenizer's end tokens. The mean of the 13 tasks is the task "ruler".
"""

import json
from collections.abc import Sequence

from etils import epath

from policylong.devices import hosts
from policylong.errors import UserError
from policylong.evaluation.answers import Answers
from policylong.evaluation.policy import cut_middle
from policylong.evaluation.results import Options, Result, check_lengths
from policylong.evaluation.ruler_package import TASKS, Package, Task
from policylong.evaluation.ruler_prompts import PromptSets
from policylong.model.tokenizer import encode_begun
from policylong.storage.checksums import sha256_of_texts
from policylong.storage.progress import Bar

PROTOCOLS = {"nvidia": 500, "helmet": 100}  # samples
_HELMET_LONG = ("niah_multikey_3", "niah_multiquery", "cwe")
# Prompts that are answered together, and kept together.
_GROUP = 16


def names() -> tuple[str, ...]:
  """All task names."""
  return ("ruler", *(f"ruler/{task}" for task in TASKS))


def claims(task: str) -> bool:
  """Whether a task is RULER's."""
  return task in names()


def run(policy, tasks: Sequence[str], options: Options, directory: epath.Path) -> dict[str, dict[str, Result]]:
  """Scores the policy; "ruler" stands for all 13 tasks and their mean.

  Raises:
    UserError: bad lengths or protocol, a prompt set that cannot be made, no chat template where one is asked for.
  """
  if options.protocol not in PROTOCOLS:
    raise UserError(f"--protocol is {options.protocol!r}; it must be one of {', '.join(PROTOCOLS)}")
  if options.apply_chat_template and not policy.tokenizer.chat_template:
    raise UserError(f"--apply_chat_template is asked for, and the tokenizer of {policy.name} has no chat template: "
                    "leave it out, or use a tokenizer that has one")
  check_lengths(options.lengths, policy.window, policy.name)
  samples = options.samples or PROTOCOLS[options.protocol]
  chosen = TASKS if "ruler" in tasks else [task for task in TASKS if f"ruler/{task}" in tasks]
  with hosts.first_before_others("ruler package"):
    package = Package(options.ruler_dir)
  sets = PromptSets(package, policy.tokenizer, package.directory / "prompts", seed=options.seed, count=samples)
  with hosts.first_before_others("ruler prompts"):  # on a disk that is not shared each makes its own, all the same
    sets.make([(task, length) for length in options.lengths for task in chosen])
  results: dict[str, dict[str, Result]] = {}
  for length in options.lengths:
    for task in chosen:
      records = sets.read(task, length)
      asked = sha256_of_texts(json.dumps([records, new_tokens(package.tasks[task], options.protocol)]))
      name = (sets.path(task, length).name + f"-{options.protocol}" + "-chat" * options.apply_chat_template
              + f"-{asked[:16]}")
      answers = _answer(policy, package.tasks[task], length, records, options, directory / "ruler" / name)
      score = package.score(task, [answer["prediction"] for answer in answers],
                            [record["outputs"] for record in records])
      results.setdefault(f"ruler/{task}", {})[str(length)] = Result(
          package.tasks[task].metric, score, samples, sum(answer["truncated"] for answer in answers),
          _protocol(options))
  if "ruler" in tasks:
    results["ruler"] = {str(length): _mean(results, str(length)) for length in options.lengths}
  return results


def _protocol(options: Options) -> str:
  return f"RULER {options.protocol}" + (", chat template" if options.apply_chat_template else "")


def _mean(results: dict[str, dict[str, Result]], length: str) -> Result:
  rows = [results[f"ruler/{task}"][length] for task in TASKS]
  return Result("mean of 13", sum(row.value for row in rows) / len(rows), sum(row.samples for row in rows),
                sum(row.truncated for row in rows), rows[0].protocol)


def _answer(policy, task: Task, length: int, records: list[dict], options: Options, directory: epath.Path
            ) -> list[dict]:
  """The policy's answers to all prompts of a set, in order; those that are there already are kept."""
  answers = Answers(directory)
  most_new = new_tokens(task, options.protocol)
  mine = [index for index in hosts.share(len(records)) if index not in answers.known]
  with Bar(desc=f"{task.name} {length}", total=len(mine), unit="prompt", disable=not mine) as bar:
    for start in range(0, len(mine), _GROUP):
      group = mine[start:start + _GROUP]
      tokens = [prompt_tokens(policy.tokenizer, task, records[index], options) for index in group]
      room = policy.window - most_new
      generations = policy.generate([cut_middle(row, room) for row in tokens], most_new, progress=bar.update)
      answers.add([{"index": index, "prediction": generation.text, "truncated": len(row) > room}
                   for index, row, generation in zip(group, tokens, generations)])
  hosts.barrier("ruler answers")
  known = answers.all()
  return [known[index] for index in range(len(records))]


def new_tokens(task: Task, protocol: str) -> int:
  """How many tokens an answer may have."""
  return task.new_tokens if protocol == "nvidia" else 100 if task.name in _HELMET_LONG else 50


def prompt_tokens(tokenizer, task: Task, record: dict, options: Options) -> list[int]:
  """A prompt as the policy reads it: always the question, then the answer prefix."""
  question, prefix = split_prefix(task, record["input"])
  if options.protocol == "helmet":
    prefix = prefix.strip()
  if options.apply_chat_template:
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False,
                                         add_generation_prompt=True)
    return tokenizer(text + prefix.lstrip(), add_special_tokens=False).input_ids
  return encode_begun(tokenizer, question + ("\n" if options.protocol == "helmet" else "") + prefix).tolist()


def split_prefix(task: Task, text: str) -> tuple[str, str]:
  """The prompt and the answer prefix that the package has put at its end."""
  at = text.rfind(task.prefix_head)
  if at < 0:
    raise RuntimeError(f"a prompt of {task.name} does not end with its answer prefix: {json.dumps(text[-200:])}")
  return text[:at], text[at:]
