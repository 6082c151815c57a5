"""The study's text on disk: what the base model learns from, what it is extended with, and what nobody trains on.

Real text is what `make material` fetches: State of the Union speeches, of which every eighth is held out, and leads of
Wikipedia articles. Places are of three worlds that share none: one to learn the language from, one to extend with, one
to be asked about (tasks.py).
"""

import itertools
import json
import pathlib
from collections.abc import Iterable, Sequence

from experiments.small_study.world import World, training_documents
from policylong.errors import UserError
from policylong.storage.workdir import write_atomically

BASE_WORLD, CORPUS_WORLD, TASK_WORLD = 1, 2, 3
PLACES_IN_LETTER = 8

MATERIAL = pathlib.Path("material")


def speeches(held_out: bool) -> list[tuple[str, str]]:
  """(title, text) of the speeches that are held out, or of the others.

  Raises:
    UserError: the material is not there.
  """
  paths = sorted((MATERIAL / "sotu").glob("*.txt"))
  if not paths:
    raise UserError(f"{MATERIAL}/sotu has no speeches: run `make material` first, and start from the project's folder")
  return [(path.stem, path.read_text(encoding="utf-8")) for i, path in enumerate(paths) if (i % 8 == 3) is held_out]


def leads() -> list[tuple[str, str]]:
  """(title, text) of the Wikipedia leads."""
  with open(MATERIAL / "wiki.jsonl", encoding="utf-8") as file:
    return [(record["id"], record["text"]) for record in map(json.loads, file)]


def write_base_corpus(path: pathlib.Path, planted: int) -> None:
  """All real text that is not held out, and `planted` documents of a world that is used for nothing else."""
  texts = itertools.islice(training_documents(World(BASE_WORLD)), planted)
  write_documents(path, [*speeches(held_out=False), *leads(), *((f"base/{i}", text) for i, text in enumerate(texts))])


def write_corpus(directory: pathlib.Path, letters: int, speech_count: int, lead_count: int) -> None:
  """letters.jsonl, entries.jsonl and real.jsonl: the corpus that every method reads; truth.json last.

  truth.json: {letter's id: [[where a told value starts in the text, the entry that states it, its relation], ...]},
  with document ids as a corpus of these files has them, the file's name first.
  """
  world = World(CORPUS_WORLD)
  texts, entries, truth = [], [], {}
  for i in range(letters):
    places = []
    for _ in range(PLACES_IN_LETTER):
      place, twin = world.twins()
      places.append(place)
      entries += [(f"entry/{one.name}", world.entry(one)) for one in (place, twin)]
    letter = world.letter([(place, world.relation(place)) for place in places])
    texts.append((f"letter/{i}", letter.text))
    truth[f"letters/letter/{i}"] = [[start, f"entries/entry/{place.name}", relation]
                                    for place, relation, start in letter.told]
  write_documents(directory / "letters.jsonl", texts)
  write_documents(directory / "entries.jsonl", entries)
  write_documents(directory / "real.jsonl", [*speeches(held_out=False)[:speech_count], *leads()[:lead_count]])
  write_atomically(directory / "truth.json", json.dumps(truth).encode())


def sources(directory: pathlib.Path, names: Sequence[str] = ("letters", "entries", "real")) -> tuple[dict, ...]:
  """`corpus.sources` of a config, of the files of a study's corpus."""
  return tuple({"name": name, "kind": "jsonl", "path": str(directory / f"{name}.jsonl"), "id_field": "id",
                "text_field": "text", "split": ""} for name in names)


def write_documents(path: pathlib.Path, documents: Iterable[tuple[str, str]]) -> None:
  """A JSONL of (id, text) pairs."""
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps({"id": title, "text": text}, ensure_ascii=False) + "\n" for title, text in documents]
  write_atomically(path, "".join(lines).encode())
