"""Where a policy's frontier is: which true sources it can use, by their difficulty, on letters that nobody trains on.

A source is *verified* where the policy, reading it in front of its letter, becomes surer of the told value (its entropy
there falls by more than EPSILON) and the value likelier (by more than MARGIN nats). Both are the same for every policy,
whatever its run's thresholds are. No loop takes part: every source is scored, none is searched for.
"""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.frontier_study.corpora import PLACES_IN_LETTER
from experiments.frontier_study.world import NUMBERS, STUDIED, FrontierWorld, Told
from experiments.small_study.corpora import TASK_WORLD
from policylong.corpus.chunks import parse_chunk_id
from policylong.model.stored import open_model
from policylong.model.tokenizer import encode
from policylong.screening.scorer import Row, Scorer
from policylong.screening.verify import Pair, verify
from policylong.storage import tables
from policylong.storage.workdir import read_json

# EntropyLong's epsilon, and more than 99% of random contexts lower the loss by.
EPSILON, MARGIN = 0.4, 0.5
SEPARATOR = "\n\n"
# The least number of the sources of which the base model can use fewer than one in five.
HARD = 4
HARD_SOURCES = "hard_sources"


@dataclasses.dataclass(frozen=True)
class Reading:
  """What a policy said of each told value of the letters; arrays have a place for each of them.

  number: of its source's difficulty. gain, drop: with the source alone in front of the letter, the share by which the
  entropy fell and the nats by which the loss did. loss: nats of the value with all sources and other entries before it,
  a context as long as what the model is trained on.
  """
  number: np.ndarray
  gain: np.ndarray
  drop: np.ndarray
  loss: np.ndarray

  @property
  def verified(self) -> np.ndarray:
    """bool: whether the policy can use the source."""
    return (self.gain > EPSILON) & (self.drop > MARGIN)

  def numbers(self) -> dict[str, float]:
    """verified: share of the sources; verified@N: of those of number N; told_nll, told_nll@N: mean loss likewise."""
    verified = self.verified
    found = {"verified": float(verified.mean()), "told_nll": float(self.loss.mean(dtype=np.float64))}
    for number in np.unique(self.number).tolist():
      of_number = self.number == number
      found |= {f"verified@{number}": float(verified[of_number].mean()),
                f"told_nll@{number}": float(self.loss[of_number].mean(dtype=np.float64))}
    return found


def read(path: pathlib.Path, letters: int, length: int, mesh: jax.sharding.Mesh, world: int = TASK_WORLD) -> Reading:
  """Of a model in an HF directory, a run or a checkpoint, made to read `length` tokens whether trained to or not.

  world: the seed of the letters' world.
  """
  stored = open_model(path)
  scorer = Scorer(stored.load(jnp.float32, mesh), stored.config.trained_on(length), mesh, dtype="float32",
                  tokens_per_batch=4096, bucket_multiple=64)
  planted = FrontierWorld(world, STUDIED)
  pairs: list[Pair] = []
  rows: list[Row] = []
  number = []
  for i in range(letters):
    told = planted.told(PLACES_IN_LETTER)
    root, positions = value_positions(stored.tokenizer, told)
    sources = [tokens(stored.tokenizer, text) for _, text in told.sources]
    pairs += [Pair(str(i), root, positions, source) for source in sources]
    rows.append(long_row(planted, stored.tokenizer, sources, root, positions, length))
    number += [difficulty.number for difficulty in told.difficulties]
  places = list(itertools.islice(itertools.cycle(range(PLACES_IN_LETTER)), len(pairs)))
  before, after, nll_before, nll_after = (
      np.array([values[place] for values, place in zip(column, places)], np.float64)
      for column in zip(*verify(scorer, pairs, PLACES_IN_LETTER)))
  long = scorer.likelihoods(rows, PLACES_IN_LETTER)
  return Reading(np.array(number), (before - after) / before, nll_before - nll_after,
                 np.concatenate([nll for _, nll in long]))


def chosen(workdir: pathlib.Path, corpus: pathlib.Path) -> dict[str, float]:
  """{"round1/sources@4": ...}: how many positives of a round are a true source, by the number of its difficulty.

  HARD_SOURCES: of all numbers from HARD on. {} of a run that did not screen.
  """
  facts = read_json(corpus / "truth.json", checked=False)
  number_of = {(letter, entry): number for letter, told in facts.items() for _, entry, _, number in told}
  numbers = {}
  for path in sorted(workdir.glob("rounds/*/positives.parquet")):
    pairs = tables.read(path).select(["doc_id", "chunk_id"]).to_pylist()
    found = collections.Counter(number_of.get((row["doc_id"], parse_chunk_id(row["chunk_id"])[0])) for row in pairs)
    of_round = {f"sources@{number}": found[number] for number in NUMBERS}
    of_round[HARD_SOURCES] = sum(found[number] for number in NUMBERS if number >= HARD)
    numbers |= {f"round{path.parent.name}/{name}": float(count) for name, count in of_round.items()}
  return numbers


def value_positions(tokenizer, told: Told) -> tuple[np.ndarray, np.ndarray]:
  """(int32[T] tokens of the letter, int32[places] where the first token of each told value stands)."""
  encoding = tokenizer(told.letter.text, add_special_tokens=False, return_offsets_mapping=True)
  ends = np.array([end for _, end in encoding["offset_mapping"]])
  starts = [start for _, _, start in told.letter.told]
  return np.asarray(encoding["input_ids"], np.int32), np.searchsorted(ends, starts, side="right").astype(np.int32)


def tokens(tokenizer, text: str) -> np.ndarray:
  """int32: of an entry and what separates it from what follows."""
  return encode(tokenizer, text + SEPARATOR)[0]


def long_row(world: FrontierWorld, tokenizer, sources: Sequence[np.ndarray], root: np.ndarray, positions: np.ndarray,
              length: int) -> Row:
  """The letter at the end of `length` tokens of its sources and other entries, mixed; the first entry is cut to fit."""
  room = length - len(root) - sum(map(len, sources))
  others: list[np.ndarray] = []
  while room > 0:
    others.append(tokens(tokenizer, world.bystander()[1])[-room:])
    room -= len(others[-1])
  context = [*others[-1:], *world.mixed([*sources, *others[:-1]])]
  row = np.concatenate([*context, root])
  return Row(row, positions + len(row) - len(root), length)
