"""What benchmarks ask and what they ask it about, as hashes of 13 words, and the documents that hold any of it.

A document is contaminated, and removed whole, if it holds 13 words in a row (NGRAM, as GPT-3 has it, 2005.14165,
appendix C) of any text of a benchmark, by words as words.py has them: in scripts without spaces 26 or 39 letters. A
question has often fewer: one of at least SHORTEST words counts where all of it stands in the document.

A benchmark is given as NAME or NAME=PATH, with the NAMEs of KNOWN, or as a file of any name:
  ruler[=DIR]       SQuAD and HotpotQA as RULER's package has them: questions, answers and contexts. Its essays are the
                    haystack and its needles are made up, so they count as nothing
  longbench2[=FILE] LongBench-v2's data.json, or from the hub
  FILE              JSON, JSONL (compressed or not) or text. Of a JSON record every string counts, and a list of strings
                    as one text; of a text file every paragraph
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from policylong import config as config_lib
from policylong import paths
from policylong.corpus import streamed
from policylong.corpus.files import Unreadable, opened
from policylong.corpus.json_records import read_objects
from policylong.errors import UserError
from policylong.material import fetch_ruler
from policylong.prepare.words import WORD, Words, hash_words, ngrams

NGRAM, SHORTEST = 13, 8
KNOWN = ("ruler", "longbench2")
MOST = 63  # benchmarks, a bit each
# Fields of a record that hold a question, which counts also if it is short.
_QUESTIONS = ("question", "query", "input", "prompt", "problem")
_RULER = "long_context_eval/data/synthetic/json"
_LONGBENCH2 = "hf://THUDM/LongBench-v2"
_PARAGRAPHS = re.compile(r"\n\s*\n")
_BATCH = 1024


class Table:
  """Which n-grams belong to which benchmarks.

  Args:
    hashes: uint64[K], sorted within a size, each once.
    owners: uint64[K], a bit for each benchmark that has it.
    sizes: int64[K], of the n-grams, sixths of a word; sorted.
  """

  def __init__(self, hashes: np.ndarray, owners: np.ndarray, sizes: np.ndarray):
    self.hashes, self.owners, self.sizes = hashes, owners, sizes
    self._parts = {}
    for size in np.unique(sizes).tolist():
      part = slice(*np.searchsorted(sizes, [size, size + 1]))
      self._parts[size] = _Maybe(hashes[part]), hashes[part], owners[part]

  def contaminated(self, words: Words) -> np.ndarray:
    """uint64[documents]: a bit for each benchmark that a document holds something of."""
    result = np.zeros(len(words.first) - 1, np.uint64)
    # Of whole words no run counts a part of one more.
    for size, where, found in ngrams(words, [size for size in self._parts if not (words.spaced and size % WORD)]):
      maybe, hashes, owners = self._parts[size]
      asked = np.flatnonzero(maybe.holds(found))
      at = np.minimum(np.searchsorted(hashes, found[asked]), len(hashes) - 1)
      hit = hashes[at] == found[asked]
      document = np.searchsorted(words.first, where[asked[hit]], side="right") - 1
      np.bitwise_or.at(result, document, owners[at[hit]])
    return result


class _Maybe:
  """A table of 16 bits for each hash of a set, which says of most others at one look that they are not in it."""

  def __init__(self, hashes: np.ndarray):
    bits = max(10, (16 * len(hashes)).bit_length())
    self._shift = np.uint64(64 - bits)
    flags = np.zeros(1 << bits, bool)
    flags[hashes >> self._shift] = True
    self._bytes = np.packbits(flags, bitorder="little")

  def holds(self, hashes: np.ndarray) -> np.ndarray:
    """bool: False where a hash is certainly not in the set."""
    place = hashes >> self._shift
    bit = np.uint8(1) << (place & np.uint64(7)).astype(np.uint8)
    return (self._bytes[place >> np.uint64(3)] & bit) > 0


def names_of(benchmarks: Sequence[str]) -> list[str]:
  """What benchmarks are called in counts: a file by its name, and by so many of its folders as tell it from the others.

  Raises:
    UserError: one is given twice.
  """
  given = [(name,) if (name := benchmark.partition("=")[0]) in KNOWN else
           pathlib.Path(os.path.abspath(paths.local(benchmark))).parts for benchmark in benchmarks]
  if twice := {parts for parts in given if given.count(parts) > 1}:
    raise UserError(f"--benchmark is {' and '.join(sorted(str(pathlib.Path(*parts)) for parts in twice))} more than "
                    "once: give each once")
  lengths = (next(n for n in range(1, 1 + len(parts)) if parts == (parts[-1],) or sum(
      other[-n:] == parts[-n:] for other in given) == 1) for parts in given)
  return [pathlib.Path(*parts[-n:]).as_posix() for parts, n in zip(given, lengths)]


def load(benchmarks: list[str]) -> Table:
  """Reads all that the benchmarks ask.

  Raises:
    UserError: there is no such benchmark or file, it cannot be read, or holds nothing.
  """
  if len(benchmarks) > MOST:
    raise UserError(f"--benchmark is given {len(benchmarks)} times, and {MOST} is the most: put files together")
  found: list[tuple[int, np.ndarray, np.ndarray]] = []
  for bit, benchmark in enumerate(benchmarks):
    before = len(found)
    for batch in _batches(_texts(benchmark)):
      found += [(size, hashes, np.full(len(hashes), 1 << bit, np.uint64)) for size, hashes in _hashes(batch)]
    if not any(len(hashes) for _, hashes, _ in found[before:]):
      raise UserError(f"--benchmark={benchmark} holds no text of {NGRAM} words and no question of {SHORTEST}")
  if not found:
    return Table(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64))
  every = np.concatenate([hashes for _, hashes, _ in found])
  owners = np.concatenate([bits for *_, bits in found])
  sizes = np.concatenate([np.full(len(hashes), size) for size, hashes, _ in found])
  order = np.lexsort((every, sizes))
  every, owners, sizes = every[order], owners[order], sizes[order]
  first = np.flatnonzero(np.concatenate([[True], (every[1:] != every[:-1]) | (sizes[1:] != sizes[:-1])]))
  return Table(every[first], np.bitwise_or.reduceat(owners, first), sizes[first])


def fingerprint(table: Table) -> str:
  """What a table holds, in 16 digits."""
  return hashlib.sha256(table.hashes.tobytes() + table.owners.tobytes()).hexdigest()[:16]


def _hashes(texts: list[tuple[str, bool]]) -> Iterator[tuple[int, np.ndarray]]:
  """(size, hashes) of the n-grams of texts, of which the second member says whether it is a question."""
  words = hash_words([text for text, _ in texts])
  sizes, question = np.diff(words.counted[words.first]), np.array([flag for _, flag in texts])
  short = np.unique(sizes[question & (sizes >= SHORTEST * WORD) & (sizes < NGRAM * WORD)]).tolist()
  for size, where, hashes in ngrams(words, [*short, NGRAM * WORD]):
    if size < NGRAM * WORD:  # a whole one begins with its first word
      hashes = hashes[np.searchsorted(where, words.first[:-1][question & (sizes == size)])]
    yield size, hashes


def _batches(texts: Iterator[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
  batch = []
  for text in texts:
    batch.append(text)
    if len(batch) == _BATCH:
      yield batch
      batch = []
  if batch:
    yield batch


def _texts(benchmark: str) -> Iterator[tuple[str, bool]]:
  name, _, path = benchmark.partition("=")
  if name == "ruler":
    directory = paths.local(path or "material/ruler")
    if not path and not (directory / "DONE").exists():
      fetch_ruler(directory)
    for file in ("squad.json", "hotpotqa.json"):
      yield from _strings(_known(directory / _RULER / file, benchmark))
  elif name == "longbench2" and not path:
    source = config_lib.Source(name="longbench2", kind="hub", path=paths.Path(_LONGBENCH2), id_field="_id",
                               text_field="context", split="train")
    for _, _, row in streamed.rows(source):
      yield from _strings(row)
  elif name == "longbench2":
    data = paths.local(path)
    yield from _strings(_known(data / "data.json" if data.is_dir() else data, benchmark))
  else:
    yield from _file(paths.local(benchmark), benchmark)


def _known(path: pathlib.Path, benchmark: str) -> Any:
  """What a file of a benchmark of KNOWN holds."""
  try:
    value = _json(path)
  except Unreadable as error:
    raise UserError(f"--benchmark={benchmark}: {path} {error}") from error
  if value is None:
    raise UserError(f"--benchmark={benchmark}: {path} is not JSON")
  return value


def _file(path: pathlib.Path, benchmark: str) -> Iterator[tuple[str, bool]]:
  text = re.search(r"\.(txt|md)(\.\w+)?$", path.name)
  try:
    if text:
      with opened(path) as (stream, _):
        for paragraph in _PARAGRAPHS.split(stream.read().decode("utf-8-sig")):
          yield paragraph, False
      return
    for number, _, record in read_objects(path):
      if isinstance(record, str):
        if isinstance(value := _json(path), dict | list):  # one over several lines, or an array with other things in it
          yield from _strings(value)
          return
        raise UserError(f"--benchmark={benchmark}: record {number} is {record}; wanted is JSON, an object a line, or "
                        f"text (.txt), and ruler or longbench2 (known: {', '.join(KNOWN)})")
      yield from _strings(record)
  except (Unreadable, UnicodeDecodeError) as error:
    why = error if isinstance(error, Unreadable) else "is not UTF-8"
    raise UserError(f"--benchmark={benchmark}: {path} {why}; wanted is {', '.join(KNOWN)}, or a file of JSON or text"
                    ) from error


def _json(path: pathlib.Path) -> Any:
  """What a file is as one JSON value, compressed or not; None where it is none."""
  with opened(path) as (stream, _):
    try:
      return json.loads(stream.read().decode("utf-8-sig"))
    except (ValueError, RecursionError):
      return None


def _strings(value: Any, question: bool = False) -> Iterator[tuple[str, bool]]:
  """Every text of a JSON value, and whether it is a question; a list of strings is one."""
  if isinstance(value, str):
    yield value, question
  elif isinstance(value, dict):
    for name, inner in value.items():
      yield from _strings(inner, name in _QUESTIONS)
  elif isinstance(value, list) and value and all(isinstance(inner, str) for inner in value):
    yield " ".join(value), False
    if question:
      for inner in value:
        yield inner, True
  elif isinstance(value, list):
    for inner in value:
      yield from _strings(inner, question)
