"""ProLong (arXiv 2410.02660): sequences of one long document, mixed with sequences of short ones.

A share of the sequences, 60% in the paper, is cut from documents of at least L tokens, the others are documents of
fewer tokens one behind the other. The paper trains on them with attention that stays inside a document, which is
`training.document_masking`. Our decisions: a long document gives as many whole sequences as it has, its rest is
dropped; the kinds alternate as evenly as the share allows.
"""

from collections import deque
from collections.abc import Iterator

from policylong.errors import UserError
from policylong.records import LongSequence
from policylong.synthesis.method import Inputs
from policylong.synthesis.pieces import Piece, Shelf, document, due, fill, sequence


def sequences(inputs: Inputs) -> Iterator[LongSequence]:
  """At most `inputs.count` sequences, as long as there are documents of both kinds.

  Raises:
    UserError: there is no long document, or the short ones do not fill one sequence.
  """
  supply = _Supply(inputs)
  for number in range(inputs.count):
    pieces = supply.next(due(number, inputs.options.prolong_long_share))
    if pieces is None:
      return
    yield sequence(pieces, inputs.length, inputs.policy_step)


class _Supply:
  """Sequences of each kind, from one pass over the round's documents."""

  def __init__(self, inputs: Inputs):
    self._inputs = inputs
    self._documents = inputs.library.documents(inputs.round_index)
    self._long: deque[Piece] = deque()
    self._short: deque[Piece] = deque()
    self._shelf = Shelf(iter(self._next_short, None))
    self._longest, self._made = 0, {True: 0, False: 0}
    self._wanted = inputs.count * inputs.length  # tokens of short documents that are kept at most

  def next(self, long: bool) -> list[Piece] | None:
    """The pieces of the next sequence of a kind; None when the documents are used up."""
    pieces = self._next_long() if long else fill(self._shelf, self._inputs.length)
    if pieces is None and not self._made[long]:
      raise self._none_of(long)
    self._made[long] += pieces is not None
    return pieces

  def _next_long(self):
    while not self._long:
      if not self._read():
        return None
    return [self._long.popleft()]

  def _next_short(self):
    while not self._short:
      if not self._read():
        return None
    return self._short.popleft()

  def _read(self) -> bool:
    """Puts one more document where it belongs; False if there is none."""
    doc_id = next(self._documents, None)
    if doc_id is None:
      return False
    piece, length = document(self._inputs.library, doc_id), self._inputs.length
    tokens = self._inputs.library.document_tokens(doc_id)
    self._longest = max(self._longest, len(tokens))
    if len(tokens) < length and self._wanted > 0:
      self._short.append(piece)
      self._wanted -= len(piece.tokens)
    self._long.extend(Piece(tokens[i:i + length], doc_id) for i in range(0, len(tokens) - length + 1, length))
    return True

  def _none_of(self, long: bool) -> UserError:
    where, length = f"prolong, round {self._inputs.round_index}:", self._inputs.length
    if not long:
      return UserError(f"{where} documents of fewer than {length} tokens hold {self._shelf.taken} tokens, and "
                       f"{length - self._shelf.taken} of the {length} of a sequence are missing: set "
                       "method_options.prolong_long_share to 1 or add short documents")
    return UserError(f"{where} the longest document has {self._longest} tokens, {length - self._longest} fewer than a "
                     "sequence: make synthesis.sequence_length or method_options.prolong_long_share smaller or add "
                     "long documents")
