"""The study's corpus on disk: letters, the entries that they can be understood from, and others."""

import itertools
import json
import pathlib

from experiments.frontier_study import base
from experiments.frontier_study.world import STUDIED, FrontierWorld
from experiments.small_study.corpora import CORPUS_WORLD, leads, write_documents
from experiments.small_study.world import World, training_documents
from policylong.storage.workdir import write_atomically

PLACES_IN_LETTER = 4
SOURCES = ("letters", "entries", "mix", "real")
# Places of the base model's world that it has not seen.
MIX_WORLD = base.WORLD + 14


def write_corpus(directory: pathlib.Path, letters: int, mixed: int, lead_count: int) -> None:
  """Writes letters.jsonl; entries.jsonl; mix.jsonl; real.jsonl; and truth.json last.

  Entries are the letters' sources, and as many of places that nobody tells of. The mix is `mixed` documents of the kind
  that the base model has its language from, which use what they said before, as real documents do.

  truth.json: {letter's id: [[where a told value starts in the text, the entry that states it, its relation, the number
  of the source's difficulty], ...]}, with document ids as a corpus of these files has them, the file's name first.
  """
  world = FrontierWorld(CORPUS_WORLD, STUDIED)
  texts, entries, truth = [], [], {}
  for i in range(letters):
    told = world.told(PLACES_IN_LETTER)
    texts.append((f"letter/{i}", told.letter.text))
    for place, text in (*told.sources, *(world.bystander() for _ in told.sources)):
      entries.append((f"entry/{place.name}", text))
    truth[f"letters/letter/{i}"] = [
        [start, f"entries/entry/{place.name}", relation, difficulty.number]
        for (place, relation, start), difficulty in zip(told.letter.told, told.difficulties)]
  write_documents(directory / "letters.jsonl", texts)
  write_documents(directory / "entries.jsonl", world.mixed(entries))
  mix = itertools.islice(training_documents(World(MIX_WORLD)), mixed)
  write_documents(directory / "mix.jsonl", ((f"mix/{i}", text) for i, text in enumerate(mix)))
  write_documents(directory / "real.jsonl", leads()[:lead_count])
  write_atomically(directory / "truth.json", json.dumps(truth).encode())
