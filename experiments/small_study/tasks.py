"""Retrieval tasks in RULER's spirit that a model of 5M parameters can learn, over places that it never read of.

needle:     one entry among held-out speeches; at the end one of its facts is asked for.
multikey:   the haystack is entries of other places, the look-alike of the one that is asked for among them.
tracking:   among speeches, two chains of sentences hand a fact on; the end of one is asked for (variable tracking).

A prompt and its answer have exactly the length asked for. Every model gets the same prompts.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from experiments.small_study.corpora import TASK_WORLD, speeches
from experiments.small_study.world import Place, World
from policylong.model.tokenizer import encode

TASKS = ("needle", "multikey", "tracking")


class Prompts:
  """Prompts of all tasks for one tokenizer."""

  def __init__(self, tokenizer):
    self._tokens: Callable[[str], list[int]] = lambda text: encode(tokenizer, text)[0].tolist()
    self._speeches = [self._tokens(text) for _, text in speeches(held_out=True)]

  def make(self, task: str, length: int, count: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) token ids, together `length`."""
    rng = np.random.default_rng([zlib.crc32(task.encode()), length])
    world = World(TASK_WORLD + 7 * int(rng.integers(10_000)))
    return [getattr(self, f"_{task}")(world, rng, length) for _ in range(count)]

  def _needle(self, world: World, rng: np.random.Generator, length: int):
    place = world.twins()[0]
    ending, answer = self._question(place, str(rng.choice(list(place.facts))))
    return self._among_speeches([self._paragraph(world.entry(place))], ending, answer, rng, length)

  def _tracking(self, world: World, rng: np.random.Generator, length: int):
    chains, last = world.chains(count=2, links=1)
    sentences = [sentence for level in zip(*chains) for sentence in world.mixed(level)]
    ending, answer = self._question(last, next(iter(last.facts)))
    return self._among_speeches([self._paragraph(sentence) for sentence in sentences], ending, answer, rng, length)

  def _multikey(self, world: World, rng: np.random.Generator, length: int):
    place, twin = world.twins()
    ending, answer = self._question(place, str(rng.choice(list(place.facts))))
    wanted = [self._paragraph(world.entry(one)) for one in (place, twin)]
    room = length - len(ending) - len(answer) - sum(map(len, wanted))
    others: list[list[int]] = []
    while room > 0:
      others += [self._paragraph(world.entry(one))[:room] for one in world.twins()[:1]]
      room -= len(others[-1])
    # the one that is cut stands first, as if the text began before
    cut, whole = others[-1:], world.mixed([*others[:-1], *wanted])
    return [token for part in [*cut, *whole] for token in part] + ending, answer

  def _among_speeches(self, parts: Sequence[list[int]], ending: list[int], answer: list[int],
                      rng: np.random.Generator, length: int):
    """Parts in their order at random depths of a held-out speech."""
    room = length - len(ending) - len(answer) - sum(map(len, parts))
    speech = self._speeches[rng.integers(len(self._speeches))]
    while len(speech) < room:
      speech = speech + self._speeches[rng.integers(len(self._speeches))]
    start = int(rng.integers(len(speech) - room + 1))
    cuts = [0, *sorted(rng.integers(0, room + 1, len(parts)).tolist()), room]
    prompt = speech[start:start + cuts[1]]
    for part, low, high in zip(parts, cuts[1:], cuts[2:]):
      prompt = prompt + part + speech[start + low:start + high]
    return prompt + ending, answer

  def _paragraph(self, text: str) -> list[int]:
    return self._tokens(f"\n\n{text}\n\n")

  def _question(self, place: Place, relation: str) -> tuple[list[int], list[int]]:
    return (self._tokens(f"\n\nThen we came to {place.name}. {place.statement(relation)}"),
            self._tokens(f" {place.facts[relation]}"))


def measure(policy, lengths: Sequence[int], count: int) -> dict[str, float]:
  """{"needle/512": share of answers that greedy decoding gives, "needle_nll/512": mean nats of an answer, ...}."""
  prompts, numbers = Prompts(policy.tokenizer), {}
  for task in TASKS:
    for length in lengths:
      found = policy.loglikelihoods(prompts.make(task, length, count))
      numbers[f"{task}/{length}"] = float(np.mean([greedy for _, greedy in found]))
      numbers[f"{task}_nll/{length}"] = float(-np.mean([logprob for logprob, _ in found]))
  return numbers
