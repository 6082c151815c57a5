"""The planted world with a frontier: the same letters as the small study's, entries that are harder to use.

A letter tells one fact of each of its places in the words that the base model knows. Its source, the one entry that
states that fact, says it in words that are further from the letter's, and may state a *rival*: another fact of the
same kind of the same place, which only its words tell apart. How far is a number, kept with the truth.

How the kinds were chosen (results/small/findings.md has the numbers): with each step the base model is less able to
use a source. At others it fails altogether, so that more of them is no more difficult: a word between name and value,
the name's words in another order, a value before its name, a fact handed on from another place. And of look-alikes
whose names have the same second word it takes one as if by lot.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from experiments.small_study.world import Letter, Place, World

# Of a kind of fact, from the letter's own words to ones that share nothing with them; name and value stay together.
WORDINGS = {
    "emblem": ("The shield on the gate shows the {} {}.", "A shield on its gate shows the {} {}.",
               "On the gate one sees the {} {}.", "Skildo porta mostra {} {}.", "{} {} on the shield."),
    "trade": ("The best house belongs to the {} {}.", "Its best house belongs to the {} {}.",
              "The best house is that of the {} {}.", "Domo bona teni {} {}.", "{} {} in the best house."),
    "garden": ("In the garden grow the {} {}.", "In its garden grow the {} {}.",
               "What grows in the garden is the {} {}.", "Horto crescu {} {}.", "{} {} in the garden."),
    "treasure": ("The old chest holds the {} {}.", "Its old chest holds the {} {}.",
                 "In the old chest lies the {} {}.", "Cista vetera teni {} {}.", "{} {} in the old chest."),
    "dish": ("The guests are served the {} {}.", "Its guests are served the {} {}.",
             "Guests eat the {} {}.", "Hosti mangia {} {}.", "{} {} for the guests."),
}
_PLAIN_RIVALS = {
    "emblem": "The flag over the tower bears the {} {}.", "trade": "The next house was sold by the {} {}.",
    "garden": "Behind the wall grow the {} {}.", "treasure": "The new box is kept with the {} {}.",
    "dish": "The poor are given the {} {}."}
RIVALS = {relation: (*itertools.repeat(_PLAIN_RIVALS[relation], 3), foreign, behind) for relation, foreign, behind in (
    ("emblem", "Flago turo porta {} {}.", "{} {} on the flag."),
    ("trade", "Domo nova vendi {} {}.", "{} {} in the next house."),
    ("garden", "Muro trans crescu {} {}.", "{} {} behind the wall."),
    ("treasure", "Boxo nova teni {} {}.", "{} {} in the new box."),
    ("dish", "Povri mangia {} {}.", "{} {} for the poor."))}
# What a rival adds to the number of a wording: it costs the base model as much as two steps of it.
RIVAL = 2
# Sentences of an entry that say nothing of its place.
NOTES = 3


@dataclasses.dataclass(frozen=True)
class Difficulty:
  """wording: 0 to 4, how far the source's words are from the letter's; rival: whether it states a rival."""
  wording: int
  rival: bool

  @property
  def number(self) -> int:
    """One number for both, 0 to 6."""
    return self.wording + RIVAL * self.rival


DIFFICULTIES = tuple(Difficulty(wording, rival) for wording in range(5) for rival in (False, True))
# What the study draws from, evenly: three of four with a rival, so that the base model verifies about a third.
STUDIED = tuple(Difficulty(wording, rival) for wording in (0, 2, 3, 4) for rival in (False, True, True, True))
NUMBERS = tuple(sorted({difficulty.number for difficulty in STUDIED}))


@dataclasses.dataclass(frozen=True)
class Told:
  """A letter, the places' sources as (place, text), and of each the difficulty, in the order in which they are told."""
  letter: Letter
  sources: tuple[tuple[Place, str], ...]
  difficulties: tuple[Difficulty, ...]


class FrontierWorld:
  """Endless letters and their sources.

  Args:
    seed: worlds of seeds that differ modulo 7 share no place.
    difficulties: from which each entry's is drawn evenly.
  """

  def __init__(self, seed: int, difficulties: Sequence[Difficulty]):
    self._world, self._difficulties = World(seed), difficulties

  def told(self, places: int) -> Told:
    """A letter of so many places, and its sources."""
    stops = [(place, self._world.relation(place)) for place, _ in (self._world.twins() for _ in range(places))]
    drawn = tuple(self._world.one_of(self._difficulties) for _ in stops)
    sources = tuple((place, self.source(place, relation, difficulty))
                    for (place, relation), difficulty in zip(stops, drawn))
    return Told(self._world.letter(stops), sources, drawn)

  def source(self, place: Place, relation: str, difficulty: Difficulty) -> str:
    """The entry of `place` that states its fact of this kind, and perhaps a rival, among notes."""
    sentences = [WORDINGS[relation][difficulty.wording].format(place.name, place.facts[relation])]
    if difficulty.rival:
      other = self._world.other_value(relation, place.facts[relation])
      sentences.append(RIVALS[relation][difficulty.wording].format(place.name, other))
    return " ".join(self._world.mixed([*sentences, *self._world.notes(NOTES)]))

  def bystander(self) -> tuple[Place, str]:
    """A place that no letter tells of, and its entry."""
    place, _ = self._world.twins()
    return place, self.source(place, self._world.relation(place), self._world.one_of(self._difficulties))

  def mixed(self, items: Sequence) -> list:
    """The items in a random order."""
    return self._world.mixed(items)
