"""The planted world: invented places whose facts stand in exactly one document each.

A gazetteer's *entry* states four facts of one place. A *letter* tells of a journey to some places and repeats one fact
of each, so its reader needs as many entries, which lie somewhere else. For every place there is a *look-alike*: another
place whose name begins with the same word, with an entry of its own and other values. Values are ordinary words, 48 for
each kind of fact: without the entry nothing is better than a guess (3.9 nats), with it nothing is left to guess.

A value stands right behind its place's name, and the name's last word is one of many, because the model that has to
learn it is small: what followed the same token before is what attention heads learn first.

Everything follows from a seed, and worlds of seeds that differ modulo 7 share no name.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

FACTS_IN_ENTRY = 4


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split())


_STARTS = _words("b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pl pr sk sl st tr")
_VOWELS = _words("a e i o u")
_ENDS = _words("l m n r s th nd rk st ld")
_SECOND_WORDS = _words(
    "Abbey Acre Avenue Bank Barn Basin Bay Beach Bend Border Bottom Bridge Brook Canal Cape Castle Cave Chapel Church "
    "City Cliff Close Coast College Common Corner Cottage County Court Creek Cross Dale Dam Deep Desert District Dock "
    "East Edge End Estate Falls Farm Ferry Field Flat Ford Forest Fort Gate Glen Green Grove Gulf Hall Harbor Head "
    "Height Hill Hole Hollow House Island Junction Lake Land Lane Lodge Lower Manor Market Marsh Meadow Middle Mill "
    "Mine Moor Mount Mouth Neck North Orchard Palace Park Parish Pass Path Peak Plain Point Pond Pool Port Quarter "
    "Ranch Range Reach Ridge Rise River Road Rock Row Sands School Shore Side South Spring Square Station Stone Strait "
    "Stream Street Temple Terrace Tower Town Turn Union Upper Valley Village Wall Water Way Well West Wharf Wood Yard")

# The value follows the words; "{}" is the place. The same words in entries and letters: what is asked of the model is
# to find the place, not to understand a paraphrase.
RELATIONS = {
    "emblem": "The shield on the gate shows the {}",
    "trade": "The best house belongs to the {}",
    "garden": "In the garden grow the {}",
    "treasure": "The old chest holds the {}",
    "dish": "The guests are served the {}",
}
VALUES = {
    "emblem": _words(
        "badger bear beaver bee boar bull camel cat cow crab crane crow deer dog dolphin donkey dove duck "
        "eagle elephant falcon fish fox frog goat goose hare hawk hedgehog heron horse lamb leopard lion "
        "mole mouse otter owl ox peacock pig rabbit ram raven seal snake swan wolf"),
    "trade": _words(
        "actor baker banker barber brewer builder butcher captain carpenter clerk cook dancer doctor "
        "driver farmer fisherman gardener glover guard hatter hunter jeweller judge lawyer mason merchant "
        "miller miner monk painter pilot piper poet porter potter printer sailor saddler shepherd singer "
        "smith soldier surgeon tailor teacher tinker weaver writer"),
    "garden": _words(
        "apples ash barley beans beech berries birch cedar cherries clover corn cotton elm ferns figs "
        "flax grapes grass hay heather hemp herbs holly ivy lemons lilies maple mint moss nettles nuts "
        "oak oats olives onions oranges palms peaches pears peas pines plums poppies reeds roses rye "
        "tulips willows"),
    "treasure": _words(
        "anchor arrow axe ball basket bell belt bird book bottle bow bowl box brush button candle chain "
        "clock coin comb cross crown cup dagger drum feather flute glove hammer harp helmet horn key "
        "knife ladder lamp mask mirror nail needle pen pipe plate ring shield spoon sword wheel"),
    "dish": _words(
        "bacon beef beer biscuits brandy bread broth butter cabbage cake carrots cheese chicken cider "
        "coffee crabs cream custard dates eggs flour fruit ham honey jam lobster mackerel meat milk "
        "mushrooms mutton noodles omelette pancakes pastry pepper porridge potatoes pudding rice salad "
        "salmon sausage soup stew toast veal wine"),
}

_REMARKS = (
    "It rained in the morning.", "The road was long and dry.", "We slept well that night.",
    "The people there were kind to us.", "Nobody asked where we came from.", "We stayed for two days.",
    "The wind came from the sea.", "There was a market in the square.", "We left before the sun was up.",
    "The horses were tired.", "An old man showed us the way.", "We wrote down what we saw.")
_NOTES = (
    "It was built long before the war.", "Few people live there now.", "Visitors are welcome in the summer.",
    "It has been sold more than once.", "The road to it is closed in winter.", "Its walls are made of grey stone.",
    "It is older than the town.", "No map shows it.")


@dataclasses.dataclass(frozen=True)
class Place:
  """An invented place. facts: {relation: value}, in the order of its entry."""
  name: str
  facts: dict[str, str]

  def statement(self, relation: str) -> str:
    """The words of a fact up to its value."""
    return RELATIONS[relation].format(self.name)

  def fact(self, relation: str) -> str:
    """The sentence."""
    return f"{self.statement(relation)} {self.facts[relation]}."


@dataclasses.dataclass(frozen=True)
class Letter:
  """text; told: for each place that it tells of, in order, (place, relation, where in the text the value starts)."""
  text: str
  told: tuple[tuple[Place, str, int], ...]


class World:
  """Endless places of one seed.

  Args:
    seed: worlds whose seeds differ modulo 7 share no place.
  """

  def __init__(self, seed: int):
    self._rng = np.random.default_rng([seed, 2604_07809])
    self._seed, self._beginnings = seed, set()

  def twins(self) -> tuple[Place, Place]:
    """Two places whose names have a first word in common, which no other place of the world has."""
    while True:
      beginning = "".join(map(self._one, (_STARTS, _VOWELS, _ENDS, _VOWELS, _STARTS, _VOWELS)))
      # A name belongs to the world that its letters say, so worlds never meet.
      if beginning not in self._beginnings and sum(beginning.encode()) % 7 == self._seed % 7:
        break
    self._beginnings.add(beginning)
    one, other = (self._place(f"{beginning.capitalize()} {word}")
                  for word in self._rng.choice(_SECOND_WORDS, 2, replace=False))
    return one, other

  def entry(self, place: Place) -> str:
    """The gazetteer's entry of a place: all of its facts, and two notes."""
    sentences = [place.fact(relation) for relation in place.facts]
    sentences[1:1], sentences[3:3] = [self._one(_NOTES)], [self._one(_NOTES)]
    return " ".join(sentences)

  def letter(self, stops: Sequence[tuple[Place, str]]) -> Letter:
    """A journey with a fact, (place, relation), at each stop; the places stand at its head, so only values surprise."""
    text = f"A journey to {', '.join(dict.fromkeys(place.name for place, _ in stops))}."
    told = []
    for place, relation in stops:
      text += f"\n\nThen we came to {place.name}. {self._one(_REMARKS)} {place.statement(relation)} "
      told.append((place, relation, len(text)))
      text += f"{place.facts[relation]}. {self._one(_REMARKS)}"
    return Letter(text, tuple(told))

  def relation(self, place: Place) -> str:
    """One of the kinds of a place's facts."""
    return self._one(list(place.facts))

  def chains(self, count: int, links: int) -> tuple[list[list[str]], Place]:
    """`count` chains of sentences: a place's fact, then `links` places, each of which has it from the one before.

    All chains have facts of one kind. The place is the last one of the first chain, with the fact that it ends up with.
    """
    relation = self._one(list(RELATIONS))
    values = self._rng.choice(VALUES[relation], count, replace=False)
    chains, ends = [], []
    for value in values:
      places = [Place(self.twins()[0].name, {relation: str(value)}) for _ in range(links + 1)]
      ends.append(places[-1])
      chains.append([places[0].fact(relation)] + [f"What is told of {a.name} is also true of {b.name}."
                                                  for a, b in itertools.pairwise(places)])
    return chains, ends[0]

  def mixed(self, items: Sequence) -> list:
    """The items in a random order."""
    return [items[i] for i in self._rng.permutation(len(items))]

  def coin(self) -> bool:
    """Heads, half of the time."""
    return bool(self._rng.integers(2))

  def one_of(self, items: Sequence):
    """One of the items."""
    return items[self._rng.integers(len(items))]

  def notes(self, count: int) -> list[str]:
    """So many different sentences that say nothing."""
    return [_NOTES[i] for i in self._rng.choice(len(_NOTES), count, replace=False)]

  def other_value(self, relation: str, value: str) -> str:
    """A value of this kind of fact that is not `value`."""
    return self._one([other for other in VALUES[relation] if other != value])

  def _place(self, name: str) -> Place:
    relations = self._rng.choice(list(RELATIONS), FACTS_IN_ENTRY, replace=False)
    return Place(name, {str(relation): self._one(VALUES[relation]) for relation in relations})

  def _one(self, choices) -> str:
    return str(choices[self._rng.integers(len(choices))])


def training_documents(world: World) -> Iterator[str]:
  """What the base model learns the world's language from, within its short context: up to 450 tokens each.

  Places with a fact of each told twice in two orders; two entries and a letter that tells all of their facts, so that
  half of all values can be looked up; a letter alone; a chain with its end told.
  """
  while True:
    facts = [place.fact(next(iter(place.facts))) for _ in range(5) for place in world.twins()]
    yield " ".join(facts + world.mixed(facts))
    for _ in range(2):
      known = [world.twins()[0] for _ in range(2)] if world.coin() else list(world.twins())
      letter = world.letter(world.mixed([(place, relation) for place in known for relation in place.facts]))
      yield "\n\n".join([*map(world.entry, world.mixed(known)), letter.text])
    yield world.letter([(place, world.relation(place)) for place, _ in (world.twins() for _ in range(4))]).text
    chains, last = world.chains(count=2, links=1)
    handed_on = [sentence for level in zip(*chains) for sentence in world.mixed(level)]
    yield " ".join([*handed_on, last.fact(next(iter(last.facts)))])
