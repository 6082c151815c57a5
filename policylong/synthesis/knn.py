"""KNN: a root document, then its nearest documents, most similar first (the kNN baseline of arXiv 2310.10638).

A document is as near as the nearest of its chunks; the query is the root's text, of which an embedder reads
its first tokens. A document may stand in many sequences, and stands in one only once. Our decisions, because no
source says: the root comes first; the last document is cut and its rest is dropped.
"""

import itertools
from collections.abc import Iterator

from policylong.errors import UserError
from policylong.records import LongSequence
from policylong.synthesis.assembly import document_of
from policylong.synthesis.method import Inputs
from policylong.synthesis.pieces import Piece, document, sequence, size

# Chunks asked for at first; four times as many each time they are not enough.
_FIRST = 32


def sequences(inputs: Inputs) -> Iterator[LongSequence]:
  """One sequence for each of the round's first `inputs.count` roots; the neighbours' `rank` is their order.

  Raises:
    UserError: the corpus holds too few documents to fill a root's sequence.
  """
  for root in itertools.islice(inputs.library.roots(inputs.round_index), inputs.count):
    yield sequence(_pieces(inputs, root), inputs.length, inputs.policy_step)


def _pieces(inputs: Inputs, root: str) -> list[Piece]:
  library, asked = inputs.library, _FIRST
  pieces = [document(library, root)]
  known = {root: None}  # the documents in the order of their similarity, the root first
  while size(pieces) < inputs.length:
    (found,) = library.nearest_chunks([library.text(root)], asked)
    known.update(dict.fromkeys(map(document_of, found)))
    for rank, doc_id in enumerate(known):
      if rank >= len(pieces) and size(pieces) < inputs.length:
        pieces.append(document(library, doc_id, rank=rank - 1))
    if len(found) < asked and size(pieces) < inputs.length:
      missing = inputs.length - size(pieces)
      raise UserError(f"knn: the root {root} and its {len(pieces) - 1} neighbours, which are all there are, lack "
                      f"{missing} of {inputs.length} tokens: make synthesis.sequence_length smaller or add documents")
    asked *= 4
  return pieces
