"""Documents one behind the other: what the methods share that keep no blocks.

A document is a span of role "root" that serves itself, so the places where `doc_id` changes are the document
boundaries that `training.document_masking` needs. The separator behind a document belongs to its span.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from policylong.errors import UserError
from policylong.records import LongSequence, Span
from policylong.synthesis.method import Library


@dataclasses.dataclass(frozen=True)
class Piece:
  """Tokens int32[n] of a sequence; the other fields are those of its `Span`."""
  tokens: np.ndarray
  doc_id: str
  role: str = "root"
  chunk_id: str = ""
  rank: int = -1


def size(pieces: Iterable[Piece]) -> int:
  """Tokens of all pieces."""
  return sum(len(piece.tokens) for piece in pieces)


def document(library: Library, doc_id: str, rank: int = -1) -> Piece:
  """A whole document with the separator behind it."""
  return Piece(np.concatenate([library.document_tokens(doc_id), library.separator]), doc_id, rank=rank)


def sequence(pieces: Sequence[Piece], length: int, policy_step: int) -> LongSequence:
  """The first `length` tokens of the pieces: the last one that fits in is cut, those behind it are dropped."""
  tokens: list[np.ndarray] = []
  spans: list[Span] = []
  position = 0
  for piece in pieces:
    part = piece.tokens[:length - position]
    if len(part):
      tokens.append(part)
      spans.append(Span(position, position + len(part), piece.role, piece.doc_id, piece.chunk_id, -1, float("nan"),
                        piece.rank, policy_step))
      position += len(part)
  assert position == length, f"a sequence of {position} tokens instead of {length}"
  return LongSequence(np.concatenate(tokens).astype(np.int32), tuple(spans))


class Shelf:
  """Pieces to take from the front: whole, or in part, and then the rest is the front."""

  def __init__(self, pieces: Iterable[Piece]):
    self._pieces = iter(pieces)
    self._front: Piece | None = None
    self.taken = 0  # tokens, for messages

  def next(self, most: int) -> Piece | None:
    """The front piece, at most so many tokens of it; None if there is none."""
    piece = self._front or next(self._pieces, None)
    if piece is None:
      return None
    head, rest = piece.tokens[:most], piece.tokens[most:]
    self._front = dataclasses.replace(piece, tokens=rest) if len(rest) else None
    self.taken += len(head)
    return dataclasses.replace(piece, tokens=head)

  def peek(self) -> Piece | None:
    """The front piece, which stays; None if there is none."""
    self._front = self._front or next(self._pieces, None)
    return self._front


def fill(shelf: Shelf, length: int) -> list[Piece] | None:
  """The front pieces that are `length` tokens, the last one cut; None if the shelf holds less."""
  pieces: list[Piece] = []
  room = length
  while room:
    piece = shelf.next(room)
    if piece is None:
      return None
    pieces.append(piece)
    room -= len(piece.tokens)
  return pieces


def concatenated(pieces: Iterable[Piece], length: int, policy_step: int, *, what: str) -> Iterator[LongSequence]:
  """Cuts the row of all pieces every `length` tokens; what is left at the end is dropped.

  Args:
    what: whose documents they are, for the message.

  Raises:
    UserError: they do not fill a single sequence.
  """
  shelf, made = Shelf(pieces), False
  while (parts := fill(shelf, length)) is not None:
    yield sequence(parts, length, policy_step)
    made = True
  if not made:
    raise too_short(what, shelf.taken, length)


def too_short(what: str, tokens: int, length: int) -> UserError:
  """The sentence for a corpus that does not fill one sequence."""
  return UserError(f"{what} hold {tokens} tokens, and {length - tokens} of the {length} of a sequence are missing: "
                   "make synthesis.sequence_length or rounds smaller or add documents")


def due(number: int, share: float) -> bool:
  """Whether the `number`-th of a row (from 0) is of the kind that has `share` of it, spread as evenly as can be."""
  # A share such as 0.6 is a little below or above itself, and a product of whole value must not fall short of it.
  return math.floor((number + 1) * share + 1e-9) > math.floor(number * share + 1e-9)
