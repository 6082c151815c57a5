"""UtK, "Untie the Knots" (arXiv 2409.04774): documents in pieces, the pieces shuffled, their order to recall.

Of a share `utk_share` of the sequences (the paper's 30% or 80%), every document is cut into pieces and the pieces of
all its documents are shuffled together. Each cut is a knot: the piece before it ends, and the piece behind it begins,
with the knot's label, so that every document can be put together again. At the end of the sequence stand each
document's labels in order, to be recalled. The other sequences are plain concatenation.

Our decisions: a document has one piece for each chunk's worth of characters (`corpus.chunk_chars`), cut at random
tokens; a label is four hexadecimal digits that no other knot of the sequence has; one line of labels a document, in
the order in which the documents were put in. The last document is cut to fit and goes on in the next sequence.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from policylong.randomness import generator
from policylong.records import LongSequence
from policylong.synthesis.method import Inputs, Library
from policylong.synthesis.pieces import Piece, Shelf, document, due, fill, sequence, too_short


def sequences(inputs: Inputs) -> Iterator[LongSequence]:
  """At most `inputs.count` sequences of the round's documents.

  A piece is a span of role "root" whose `rank` is its place in the document; a line of labels is a "filler" that
  serves its document.

  Raises:
    UserError: the round's documents do not fill one sequence.
  """
  shelf = Shelf(document(inputs.library, doc_id) for doc_id in inputs.library.documents(inputs.round_index))
  for number in range(inputs.count):
    numbers = generator(inputs.seed, "utk", inputs.round_index, number)
    knotted = due(number, inputs.options.utk_share)
    pieces = _knotted(inputs, shelf, numbers) if knotted else fill(shelf, inputs.length)
    if pieces is None:
      if not number:
        raise too_short(f"utk, round {inputs.round_index}: its documents", shelf.taken, inputs.length)
      return
    yield sequence(pieces, inputs.length, inputs.policy_step)


@dataclasses.dataclass(frozen=True)
class _Knots:
  """The knots of one document: tokens of each knot's label, and the line that recalls them all."""
  labels: Sequence[np.ndarray]
  line: np.ndarray

  @property
  def tokens(self) -> int:
    """How many tokens they take."""
    return 2 * sum(map(len, self.labels)) + len(self.line)


def _knots(library: Library, labels: Sequence[str], tokens: int, room: int) -> _Knots:
  """As many knots of these labels as a document of so many tokens can have: each piece keeps at least one."""
  marks = [library.tokens(f"\n[{label}]\n") for label in labels]
  for count in range(len(labels), 0, -1):
    left = room - 2 * sum(map(len, marks[:count]))
    if min(tokens, left) > count:
      line = library.tokens("[" + " ".join(labels[:count]) + "]\n")
      if left - len(line) > count:
        return _Knots(marks[:count], line)
  return _Knots((), np.zeros(0, np.int32))


def _knotted(inputs: Inputs, shelf: Shelf, numbers: np.random.Generator) -> list[Piece] | None:
  """The pieces of a sequence, `inputs.length` tokens in all; None if the shelf holds too little."""
  labels = iter([f"{label:04x}" for label in numbers.permutation(1 << 16)])
  pieces: list[Piece] = []
  lines: list[Piece] = []
  room = inputs.length
  while room:
    front = shelf.peek()
    if front is None:
      return None
    # Only what has room is cut into pieces; the rest of a long document is, in the next sequence.
    fitting = dataclasses.replace(front, tokens=front.tokens[:room])
    own = [next(labels) for _ in range(_parts(inputs.library, fitting) - 1)]
    # Near the end there may be room for fewer knots, at last for none.
    knots = _knots(inputs.library, own, len(front.tokens), room)
    piece = shelf.next(room - knots.tokens)
    pieces += _cut(piece, knots, numbers)
    lines += [Piece(knots.line, piece.doc_id, "filler")] if knots.labels else []
    room -= len(piece.tokens) + knots.tokens
  return [pieces[i] for i in numbers.permutation(len(pieces))] + lines


def _parts(library: Library, piece: Piece) -> int:
  """How many pieces a document, or what is left of one, is cut into: never more than it has tokens."""
  whole = len(library.document_tokens(piece.doc_id))
  characters = len(library.text(piece.doc_id)) * len(piece.tokens) / max(whole, 1)
  return max(1, min(round(characters / library.chunk_chars), len(piece.tokens)))


def _cut(piece: Piece, knots: _Knots, numbers: np.random.Generator) -> list[Piece]:
  tokens, count = piece.tokens, len(knots.labels)
  cuts = numbers.choice(np.arange(1, len(tokens)), count, replace=False) if count else np.zeros(0, int)
  parts = np.split(tokens, np.sort(cuts))
  none = [np.zeros(0, np.int32)]
  return [dataclasses.replace(piece, tokens=np.concatenate([before, part, behind]), rank=rank)
          for rank, (before, part, behind) in enumerate(zip([*none, *knots.labels], parts, [*knots.labels, *none]))]
