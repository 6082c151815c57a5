"""NExtLong (arXiv 2501.12766): a root in meta-chunks, each followed by the chunks most similar to it.

[m_1, n_11 .. n_1k, m_2, n_21 .. n_2k, ...]: what the root says next stands behind hard negatives. The meta-chunks
are the root's chunks (`corpus.chunk_chars`), and with T target tokens, E characters a token, S the root's
characters, p meta-chunks and s the chunk size

  k = (T E 1.5 - S) / (p s), rounded up, at least 1

where E is the root's own. Negatives are chunks of other documents and stand in a sequence once: one that is there
already is left out. Our decisions, because no source says: a sequence that is still too short is made again with
twice the k; what is too long is cut at its end.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from policylong.errors import UserError
from policylong.randomness import generator
from policylong.records import LongSequence
from policylong.synthesis.assembly import document_of
from policylong.synthesis.method import Inputs, Library
from policylong.synthesis.packing import Piece, sequence, size


def negatives_per_meta_chunk(length: int, characters: int, tokens: int, meta_chunks: int, chunk_chars: int) -> int:
  """k for a root of so many characters, tokens and meta-chunks."""
  wanted = 1.5 * length * characters / tokens - characters
  return max(1, math.ceil(wanted / (meta_chunks * chunk_chars)))


def sequences(inputs: Inputs) -> Iterator[LongSequence]:
  """One sequence for each of the round's first `inputs.count` roots.

  A meta-chunk is a span of role "root" with its chunk id, its negatives follow (`nextlong_position` "head"), precede
  ("tail") or surround it ("random"); `rank` is their similarity's order.

  Raises:
    UserError: all chunks of the corpus do not fill a root's sequence.
  """
  for root in itertools.islice(inputs.library.roots(inputs.round_index), inputs.count):
    yield sequence(_pieces(inputs, root), inputs.length, inputs.policy_step)


def _pieces(inputs: Inputs, root: str) -> list[Piece]:
  library, meta_chunks = inputs.library, inputs.library.chunks(root)
  k = inputs.options.nextlong_k or negatives_per_meta_chunk(
      inputs.length, len(library.text(root)), len(library.document_tokens(root)), len(meta_chunks), library.chunk_chars)
  texts = [library.chunk_text(chunk_id) for chunk_id in meta_chunks]
  while True:
    asked = k + len(meta_chunks)  # at most so many of the best are the root's own
    found = library.nearest_chunks(texts, asked)
    pieces = _extended(inputs, library, root, [[c for c in row if document_of(c) != root][:k] for row in found])
    if size(pieces) >= inputs.length:
      return pieces
    if all(len(row) < asked for row in found):
      raise UserError(f"nextlong: the root {root} lacks {inputs.length - size(pieces)} of {inputs.length} tokens with "
                      "all chunks of the corpus as its negatives: make synthesis.sequence_length smaller or add "
                      "documents")
    k *= 2


def _extended(inputs: Inputs, library: Library, root: str, negatives: list[list[str]]) -> list[Piece]:
  """The blocks of all meta-chunks, without a chunk that an earlier block holds."""
  numbers = generator(inputs.seed, "nextlong", inputs.round_index, root)
  pieces, used = [], set()
  for meta_chunk, own in zip(library.chunks(root), negatives):
    block = [Piece(library.chunk_tokens(chunk_id), root, "negative", chunk_id, rank)
             for rank, chunk_id in enumerate(own) if chunk_id not in used]
    used.update(own)
    place = _place(inputs.options.nextlong_position, len(block), numbers)
    block.insert(place, Piece(library.chunk_tokens(meta_chunk), root, "root", meta_chunk))
    pieces += block
  return pieces


def _place(position: str, negatives: int, numbers: np.random.Generator) -> int:
  return {"head": 0, "tail": negatives, "random": int(numbers.integers(negatives + 1))}[position]
