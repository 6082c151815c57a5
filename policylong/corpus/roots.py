"""Which documents are the roots of a round, and which of their tokens the policy reads."""

import itertools
from collections.abc import Sequence

import numpy as np

from policylong.corpus.store import Corpus
from policylong.errors import UserError
from policylong.randomness import generator
from policylong.records import Root

# Characters read at first for each token wanted; English has about 4.5. Too few cost a second try.
CHARACTERS_PER_TOKEN = 8


def sample_documents(corpus: Corpus, *, seed: int, round_index: int, count: int,
                     sources: Sequence[str]) -> list[int]:
  """The documents of round `round_index` = 1, 2, ...: `count` rows, none in two rounds.

  The documents of `sources` (of all sources if empty) are put in one random order that depends on the
  seed alone; round r takes places [(r - 1) * count, r * count). Memory: 8 bytes an eligible document.

  Raises:
    UserError: there are too few documents.
  """
  names = sources or corpus.summary()["sources"]
  rows = [corpus.source_rows(name) for name in corpus.summary()["sources"] if name in names]
  firsts = np.cumsum([0] + [len(r) for r in rows])
  total, last = int(firsts[-1]), round_index * count
  if last > total:
    raise UserError(f"{round_index} rounds of screening.roots_per_round = {count} need {last} root documents, "
                    f"but the corpus holds {total} ({', '.join(names)}): lower one of them or add documents")
  places = generator(seed, "sample").permutation(total)[last - count:last]
  part = np.searchsorted(firsts, places, side="right") - 1
  return [rows[i].start + int(place - firsts[i]) for i, place in zip(part, places)]


def root_span(corpus: Corpus, tokenizer, document: int, *, root_tokens: int, min_root_tokens: int,
              seed: int) -> Root | None:
  """The tokens of a document that the policy reads as a root; None if they are fewer than min_root_tokens.

  A document of at most `root_tokens` tokens is taken whole. Of a longer one, a window that begins at one
  of its chunks, drawn evenly among those that leave `root_tokens` tokens or more, and only with the seed
  and the document's id, so that a document has the same window in every round and on every machine. If
  none leaves so many, the window begins with the document.

  A window ends between two characters: where the cut would fall inside a character of several tokens,
  it has up to three tokens fewer.
  """
  record = corpus.document(document)
  text = record.text
  tokens, ends = _first_tokens(tokenizer, text, 0, root_tokens)
  start = 0
  if len(tokens) > root_tokens:
    starts = corpus.chunk_starts(document)
    for candidate in generator(seed, "root", record.id).permutation(starts).tolist():
      found, found_ends = _first_tokens(tokenizer, text, candidate, root_tokens)
      if len(found) >= root_tokens:
        start, tokens, ends = candidate, found, found_ends
        break
  if len(tokens) < min_root_tokens:
    return None
  if len(tokens) > root_tokens:
    length = root_tokens
    while length and ends[length] == ends[length - 1]:  # the next token spells the same character's rest
      length -= 1
    tokens, ends = tokens[:length], ends[:length]
  end = start + int(ends[-1])
  return Root(record.id, start, end, tokens, tuple(_cut_at(text[start:end], ends)))


def pieces(tokenizer, text: str) -> list[str]:
  """The text of each token of `tokenizer(text, add_special_tokens=False)`, which together are the text.

  Of a character that is spelt by several tokens the first has it and the others have "". White space
  that a tokenizer drops goes to the token behind it.
  """
  _, ends = _tokenize(tokenizer, text)
  return _cut_at(text, ends)


def _cut_at(text: str, ends: np.ndarray) -> list[str]:
  return [text[start:end] for start, end in itertools.pairwise([0, *ends.tolist()])]


def _first_tokens(tokenizer, text: str, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Tokens of text[start:], all of them or more than `count`, and where each ends, counted from `start`.

  Only a prefix is read, because a document may be a thousand times longer than a window. What stands
  at the prefix's end may be tokenised differently than inside the text, so some tokens are to spare.
  """
  spare = 16
  length = CHARACTERS_PER_TOKEN * (count + spare)
  while True:
    tokens, ends = _tokenize(tokenizer, text[start:start + length])
    if start + length >= len(text):
      return tokens, ends
    if len(tokens) >= count + spare:
      return tokens[:count + 1], ends[:count + 1]
    length *= 2


def _tokenize(tokenizer, text: str) -> tuple[np.ndarray, np.ndarray]:
  """int32 tokens and the character behind each, never decreasing, the last one the end of the text."""
  encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
  tokens = np.asarray(encoding["input_ids"], np.int32)
  ends = np.asarray([end for _, end in encoding["offset_mapping"]], np.int64)
  ends = np.maximum.accumulate(ends) if len(ends) else ends
  if len(ends):
    ends[-1] = len(text)
  return tokens, ends
