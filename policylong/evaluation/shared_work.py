"""Questions that several processes answer together, and that a run which was stopped does not ask again."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from policylong.devices import hosts
from policylong.evaluation.answers import Answers
from policylong.storage.progress import Bar

# What is asked between two writings of answers: so many questions, or so many characters, about a million tokens.
_QUESTIONS = 1024
_CHARACTERS = 4_000_000


def answered(questions: Sequence[tuple], answer: Callable[[list[tuple], Callable[[int], None]], list],
             directory: epath.Path, what: str) -> list[Any]:
  """The answer to every question, the same in all processes. Collective.

  Equal questions are asked once. Each process asks its share, some at a time, and keeps the answers in `directory`
  by what the question says: those that are there already are not asked again.

  Args:
    questions: tuples of texts and numbers, the same in all processes.
    answer: (questions, progress) -> their answers in order, of what JSON can hold; progress takes numbers of
      questions that are done. Never called without a question.
    directory: of one policy, on storage that the processes share.
    what: is being done, for the progress bar.
  """
  different = list(dict.fromkeys(questions))
  names = [hashlib.sha256(repr(question).encode()).hexdigest() for question in different]
  kept = Answers(directory)
  mine = [i for i in hosts.share(len(different)) if names[i] not in kept.known]
  with Bar(desc=what, total=len(mine), disable=not hosts.is_first()) as bar:
    for some in _some_at_a_time(mine, different):
      found = answer([different[i] for i in some], bar.update)
      kept.add([{"index": names[i], "answer": each} for i, each in zip(some, found, strict=True)])
  hosts.barrier("answered")
  known = kept.all()
  by_question = {question: known[name]["answer"] for question, name in zip(different, names)}
  return [by_question[question] for question in questions]


def number_of(question: Sequence) -> int:
  """0 to 2^31 - 1, made of what a question says: its draws are the same whenever, wherever and after whatever it is
  asked, and another question's are others."""
  return int.from_bytes(hashlib.sha256(repr(question).encode()).digest()[:4]) >> 1


def _some_at_a_time(mine: Sequence[int], questions: Sequence[tuple]) -> Iterator[list[int]]:
  some, characters = [], 0
  for i in mine:
    some.append(i)
    characters += sum(len(part) for part in questions[i] if isinstance(part, str))
    if len(some) >= _QUESTIONS or characters >= _CHARACTERS:
      yield some
      some, characters = [], 0
  if some:
    yield some
