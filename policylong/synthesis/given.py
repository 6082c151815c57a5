"""Given: token sequences that exist already, trained on as they are, as published sets of long sequences are.

A sequence of exactly L tokens is taken as it is. Our decisions for others: a longer one is cut into as many whole
sequences as it holds, and the rest at its end is dropped; shorter ones are put one behind the other, the last one that
fits in is cut and goes on in the next sequence. Where `method_options.given_boundaries` names them, a sequence has
documents, which `training.document_masking` keeps apart; without, it is one document.
"""

import itertools
import logging
from collections import deque
from collections.abc import Iterator

import numpy as np

from policylong.records import GivenSequence, LongSequence
from policylong.synthesis.method import Inputs
from policylong.synthesis.pieces import Piece, Shelf, fill, sequence, too_short

log = logging.getLogger(__name__)


def sequences(inputs: Inputs) -> Iterator[LongSequence]:
  """At most `inputs.count` sequences of the round's part of what was given.

  Raises:
    UserError: the round's part does not fill one sequence, or cannot be read.
  """
  length, made, read, cut, short, dropped, tokens = inputs.length, 0, 0, 0, 0, 0, 0
  waiting: deque[Piece] = deque()
  shelf, held = Shelf(iter(lambda: waiting.popleft() if waiting else None, None)), 0
  for given in inputs.library.given(inputs.round_index, inputs.count):
    read, tokens = read + 1, tokens + len(given.tokens)
    rows = []
    if len(given.tokens) < length:
      short += 1
      waiting.extend(_pieces(given, 0, len(given.tokens)))
      held += len(given.tokens)
      if held >= length:
        rows = [fill(shelf, length)]
        held -= length
    else:
      whole = len(given.tokens) // length * length
      cut, dropped = cut + (len(given.tokens) > length), dropped + len(given.tokens) - whole
      rows = [_pieces(given, start, start + length) for start in range(0, whole, length)]
    for pieces in rows[:inputs.count - made]:
      yield sequence(pieces, length, inputs.policy_step)
      made += 1
    if made == inputs.count:
      break
  if not made:
    raise too_short(f"given, round {inputs.round_index}: its {read} sequences", tokens, length)
  if cut or short:
    log.info("given, round %d: %d sequences of %d tokens from %d, of which %d were longer (%d tokens at their ends are "
             "dropped) and %d shorter (put one behind the other)", inputs.round_index, made, length, read, cut, dropped,
             short)


def _pieces(given: GivenSequence, start: int, end: int) -> list[Piece]:
  """Tokens [start, end) of a sequence, a piece for each of its documents."""
  inner = [place for place in given.cuts if start < place < end]
  first = int(np.searchsorted(given.cuts, start, side="right")) - 1
  one = len(given.cuts) == 2
  return [Piece(given.tokens[a:b], given.id if one else f"{given.id}#{first + i}")
          for i, (a, b) in enumerate(itertools.pairwise([start, *inner, end]))]
