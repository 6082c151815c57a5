"""NExtLong (arXiv 2501.12766): a root in meta-chunks, each followed by the chunks most similar to it.

[m_1, n_11 .. n_1k, m_2, n_21 .. n_2k, ...]: what the root says next stands behind hard negatives. The meta-chunks
are the root's chunks (`corpus.chunk_chars`), and with T target tokens, E characters a token, S the root's
characters, p meta-chunks and s the chunk size

  k = (T E 1.5 - S) / (p s), rounded up, at least 1

where E is the root's own. Negatives are chunks of other documents, and none stands twice in a sequence. Our
decisions, because no source says:

- A root is cut behind the last meta-chunk that leaves half of the sequence to negatives, as k = 1 does.
- The formula has half as much again as a sequence needs, since neighbours repeat. What is too much is left out from the
  lowest ranks up, so that no meta-chunk is; the last negative is cut. A sequence that is still too short takes twice
  the k.
- A chunk that several meta-chunks want is the first one's of those that rank it highest.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

from policylong.errors import UserError
from policylong.randomness import generator
from policylong.records import LongSequence
from policylong.synthesis.assembly import document_of
from policylong.synthesis.method import Inputs, Library
from policylong.synthesis.pieces import Piece, sequence, size


def negatives_per_meta_chunk(length: int, characters: int, tokens: int, meta_chunks: int, chunk_chars: int) -> int:
  """k for a root of so many characters, tokens and meta-chunks."""
  wanted = 1.5 * length * characters / tokens - characters
  return max(1, math.ceil(wanted / (meta_chunks * chunk_chars)))


def sequences(inputs: Inputs) -> Iterator[LongSequence]:
  """One sequence for each of the round's first `inputs.count` roots.

  A meta-chunk is a span of role "root" with its chunk id; it stands before its negatives (`nextlong_position` "head"),
  behind them ("tail") or anywhere among them ("random"). `rank` is the order of a negative's similarity.

  Raises:
    UserError: all chunks of the corpus do not fill a root's sequence.
  """
  for root in itertools.islice(inputs.library.roots(inputs.round_index), inputs.count):
    yield sequence(_pieces(inputs, root), inputs.length, inputs.policy_step)


def _pieces(inputs: Inputs, root: str) -> list[Piece]:
  library = inputs.library
  meta_chunks = _meta_chunks(library, root, inputs.length)
  texts = [library.chunk_text(piece.chunk_id) for piece in meta_chunks]
  k = inputs.options.nextlong_k or negatives_per_meta_chunk(
      inputs.length, sum(map(len, texts)), size(meta_chunks), len(texts), library.chunk_chars)
  own = len(library.chunks(root))  # at most so many of the best are the root's own
  while True:
    found = library.nearest_chunks(texts, k + own)
    ranked = [[chunk_id for chunk_id in row if document_of(chunk_id) != root][:k] for row in found]
    blocks, missing = _negatives(library, root, ranked, inputs.length - size(meta_chunks))
    if missing <= 0:
      return _in_place(inputs, root, meta_chunks, blocks)
    if all(len(row) < k + own for row in found):
      raise UserError(f"nextlong: the root {root} lacks {missing} of {inputs.length} tokens with all chunks of the "
                      "corpus as its negatives: make synthesis.sequence_length smaller or add documents")
    k *= 2


def _meta_chunks(library: Library, root: str, length: int) -> list[Piece]:
  pieces = [Piece(library.chunk_tokens(chunk_id), root, "root", chunk_id) for chunk_id in library.chunks(root)]
  ends = itertools.accumulate(len(piece.tokens) for piece in pieces)
  return pieces[:max(1, sum(end <= length // 2 for end in ends))]


def _negatives(library: Library, root: str, ranked: Sequence[Sequence[str]],
               room: int) -> tuple[list[list[Piece]], int]:
  """The negatives of each meta-chunk, rank by rank until there is no room, and how many tokens are missing then."""
  blocks: list[list[Piece]] = [[] for _ in ranked]
  used: set[str] = set()
  for rank in range(max(map(len, ranked), default=0)):
    for block, row in zip(blocks, ranked):
      if room > 0 and rank < len(row) and row[rank] not in used:
        used.add(row[rank])
        block.append(Piece(library.chunk_tokens(row[rank])[:room], root, "negative", row[rank], rank))
        room -= len(block[-1].tokens)
  return blocks, room


def _in_place(inputs: Inputs, root: str, meta_chunks: Sequence[Piece], blocks: list[list[Piece]]) -> list[Piece]:
  numbers = generator(inputs.seed, "nextlong", inputs.round_index, root)
  for meta_chunk, block in zip(meta_chunks, blocks):
    anywhere = int(numbers.integers(len(block) + 1))
    place = {"head": 0, "tail": len(block), "random": anywhere}[inputs.options.nextlong_position]
    block.insert(place, meta_chunk)
  return list(itertools.chain.from_iterable(blocks))
