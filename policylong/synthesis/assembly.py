"""Packs chunks and roots into sequences of exactly L tokens: what every method shares.

A sequence is a row of blocks. A block is one root with the contexts that serve it, in any order, the
root last. A root that another block follows ends with the separator's tokens, which belong to its span.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from policylong.errors import UserError
from policylong.records import LongSequence, Root, Span

# Contexts that are read together.
_AHEAD = 128


@dataclasses.dataclass(frozen=True)
class Context:
  """A chunk that is offered to a block; the fields are those of its `Span`."""
  chunk_id: str
  role: str
  position: int
  gain: float
  rank: int



class ChunkTokens(Protocol):
  """The corpus's chunks as tokens."""

  def __call__(self, chunk_id: str) -> np.ndarray:
    """int32: of a chunk's text and the separator behind it."""

  def prepare(self, chunk_ids: Iterable[str]) -> None:
    """Chunks that will be asked for soon: many at once are quicker to read than one after the other."""


Filler = Callable[[str, int], Sequence[str]]
"""(root's doc id, n) -> the first n of an endless fixed row of random chunk ids; fewer: there are no more."""


class Draft:
  """One sequence in the making.

  No text stands in it twice: a chunk is taken once, and no chunk of a document that is a root here.

  Args:
    length: L, tokens of the finished sequence.
    separator: int32 tokens between a root and the block behind it; may be empty.
    chunk_tokens: see `ChunkTokens`.
  """

  def __init__(self, length: int, separator: np.ndarray, chunk_tokens: ChunkTokens):
    self._length, self._separator, self._chunk_tokens = length, separator, chunk_tokens
    self._blocks: list[_Block] = []
    self._used = 0  # tokens of the blocks, a separator between each two
    self._chunks: set[str] = set()
    self._documents: set[str] = set()  # of the chunks
    self._roots: set[str] = set()

  def __len__(self) -> int:
    """How many blocks there are."""
    return len(self._blocks)

  @property
  def full(self) -> bool:
    """Whether nothing is missing."""
    return self._used == self._length

  def room(self, root: Root) -> int:
    """Tokens left for the contexts of `root` if its block came next; below 0 if not even the root fits."""
    between = len(self._separator) if self._blocks else 0
    return self._length - self._used - between - len(root.tokens)

  def admits(self, root: Root, contexts: Iterable[Context]) -> bool:
    """Whether a block of `root` fits with the first of `contexts` that may stand here: whole behind another
    block, cut if need be in an empty sequence."""
    if root.doc_id in self._roots or root.doc_id in self._documents:
      return False
    first = next((len(tokens) for context in contexts if len(tokens := self._offer(root, context))), None)
    return first is not None and (not self._blocks or first <= self.room(root))

  def add(self, root: Root, contexts: Iterable[Context]) -> None:
    """Adds a block: contexts in the order given until the sequence is full, the last one cut to fit.

    Reads a few of the contexts ahead.

    Raises:
      UserError: the root leaves no room for a context in an empty sequence.
    """
    if self.room(root) < 1:
      raise UserError(f"the root {root.doc_id} has {len(root.tokens)} tokens and synthesis.sequence_length is "
                      f"{self._length}: make the sequence longer or screening.root_tokens smaller")
    room = self.room(root)
    self._used = self._length - room
    self._roots.add(root.doc_id)
    self._blocks.append(_Block(root, []))
    for some in itertools.batched(contexts, _AHEAD):
      self._chunk_tokens.prepare(context.chunk_id for context in some)
      for context in some:
        if self.full:
          return
        self._take(self._blocks[-1], context)

  def finish(self, filler: Filler, order: Callable[[Root, Context], bytes], policy_step: int) -> LongSequence:
    """The sequence. What is missing comes from `filler`, into the last block; every block's contexts are
    sorted by `order`, which is how a method shuffles.

    Raises:
      UserError: the corpus has too few chunks to fill the sequence.
    """
    self._fill(filler)
    parts: list[np.ndarray] = []
    spans: list[Span] = []
    position = 0
    for number, block in enumerate(self._blocks, start=1):
      block.contexts.sort(key=lambda item: order(block.root, item[0]))
      last = number == len(self._blocks)
      root_tokens = block.root.tokens if last else np.concatenate([block.root.tokens, self._separator])
      for context, tokens in [*block.contexts, (_ROOT, root_tokens)]:
        parts.append(tokens)
        spans.append(Span(position, position + len(tokens), context.role, block.root.doc_id, context.chunk_id,
                          context.position, context.gain, context.rank, policy_step))
        position += len(tokens)
    assert position == self._length, f"a sequence of {position} tokens instead of {self._length}"
    return LongSequence(np.concatenate(parts).astype(np.int32), tuple(spans))

  def _offer(self, root, context) -> np.ndarray:
    """The context's tokens; none where its text stands in the sequence already, or will with `root`."""
    document = document_of(context.chunk_id)
    if context.chunk_id in self._chunks or document == root.doc_id or document in self._roots:
      return _NOTHING
    return self._chunk_tokens(context.chunk_id)

  def _take(self, block, context):
    tokens = self._offer(block.root, context)[:self._length - self._used]
    if len(tokens):
      block.contexts.append((context, tokens))
      self._used += len(tokens)
      self._chunks.add(context.chunk_id)
      self._documents.add(document_of(context.chunk_id))

  def _fill(self, filler):
    block, asked, seen = self._blocks[-1], 8, 0
    while not self.full:
      found = filler(block.root.doc_id, asked)
      for chunk_id in found[seen:]:
        if self.full:
          break
        self._take(block, Context(chunk_id, "filler", -1, float("nan"), -1))
      if not self.full and len(found) < asked:
        raise UserError(f"the sequence of root {block.root.doc_id} lacks {self._length - self._used} of "
                        f"{self._length} tokens, and the corpus has no other chunk for it: make "
                        "synthesis.sequence_length smaller or add documents")
      asked, seen = 2 * asked, len(found)


@dataclasses.dataclass
class _Block:
  root: Root
  contexts: list[tuple[Context, np.ndarray]]


_ROOT = Context("", "root", -1, float("nan"), -1)
_NOTHING = np.zeros(0, np.int32)


def document_of(chunk_id: str) -> str:
  """The document in a chunk id, "<doc id>#<start>-<end>"."""
  return chunk_id.rpartition("#")[0]
