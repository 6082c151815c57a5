"""What a method is: from a round's inputs to sequences of exactly L tokens, the same records whoever makes them.

A method never sees the corpus, the index or the policy themselves: it asks a `Library`, and what the policy
said comes to it as records.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from policylong import config as config_lib
from policylong.records import GivenSequence, LongSequence, Negative, Positive, Root
from policylong.synthesis.assembly import ChunkTokens, Filler


class Library(Protocol):
  """The corpus as a method reads it, by document ids and chunk ids.

  Attributes:
    separator: int32 tokens between two texts; may be empty.
    chunk_chars: about how many characters a chunk has.
  """
  separator: np.ndarray
  chunk_chars: int

  def documents(self, round_index: int) -> Iterator[str]:
    """The round's part of all documents in a random order that the seed gives; no document is in two rounds."""

  def roots(self, round_index: int) -> Iterator[str]:
    """The root documents of the round, those that PolicyLong would screen."""

  def text(self, doc_id: str) -> str:
    """A document's text."""

  def document_tokens(self, doc_id: str) -> np.ndarray:
    """int32: all tokens of a document, no separator."""

  def chunks(self, doc_id: str) -> list[str]:
    """The ids of a document's chunks, in order."""

  def chunk_text(self, chunk_id: str) -> str:
    """A chunk's text."""

  def chunk_tokens(self, chunk_id: str) -> np.ndarray:
    """int32: all tokens of a chunk and the separator behind it."""

  def tokens(self, text: str) -> np.ndarray:
    """int32 tokens of any text."""

  def nearest_chunks(self, texts: Sequence[str], k: int) -> list[list[str]]:
    """For each text the k most similar chunks of the corpus, best first; fewer if there are no more."""

  def neighbours(self, texts: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each text the k most similar others among `texts`: rows int32[n, k] (-1: none) and float32[n, k]."""

  def given(self, round_index: int, at_a_time: int) -> Iterator[GivenSequence]:
    """The round's part of the sequences that were given, read so many at a time; none is in two rounds."""


@dataclasses.dataclass(frozen=True)
class Screened:
  """What the policy said of the round's roots.

  roots: in the order in which they are used. filler: see `assembly.Filler`. negatives_per_positive: that a positive
  brings at most; None: as many as fit. more: whether these are not the last roots, so that a sequence that they leave
  unfilled is not made.
  """
  roots: Sequence[Root]
  positives: Sequence[Positive]
  negatives: Sequence[Negative]
  chunk_tokens: ChunkTokens
  filler: Filler
  negatives_per_positive: int | None
  more: bool = False


@dataclasses.dataclass(frozen=True)
class Inputs:
  """A round as a method sees it.

  length: L. count: how many sequences the round's training reads; a method makes no more.
  screened: None where the method does not ask the policy.
  """
  seed: int
  round_index: int
  policy_step: int
  length: int
  count: int
  options: config_lib.MethodOptions
  library: Library
  screened: Screened | None


@dataclasses.dataclass(frozen=True)
class Method:
  """One way to make sequences.

  asks: what must be there: "policy" (screening), "negatives" (of the screening), "roots" (enough root documents for all
  rounds), "embedder", "index"; or "sequences" (given ones, in the place of documents).
  sequences: makes a round's sequences.
  """
  asks: frozenset[str]
  sequences: Callable[[Inputs], Iterator[LongSequence]]
