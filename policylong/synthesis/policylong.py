"""The PolicyLong sequence: shuffled positives and hard negatives, then their root (arXiv 2604.07809).

Without negatives it is EntropyLong's (arXiv 2510.02330). How a sequence comes to exactly L tokens is
our decision, because no source says: positives by gain, then negatives in turn, the last chunk cut;
what is too short to fill L is joined with the next root's block.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from policylong.records import LongSequence, Negative, Positive, Root, by_document
from policylong.synthesis.assembly import Context, Draft
from policylong.synthesis.method import Inputs, Screened


def sequences(inputs: Inputs) -> Iterator[LongSequence]:
  """As many sequences of a screened round as its training reads; see `synthesize`, which also says what it raises."""
  made = synthesize(inputs.screened, separator=inputs.library.separator, length=inputs.length, seed=inputs.seed,
                    round_index=inputs.round_index, policy_step=inputs.policy_step)
  return itertools.islice(made, inputs.count)


def synthesize(screened: Screened, *, separator: np.ndarray, length: int, seed: int, round_index: int,
               policy_step: int) -> Iterator[LongSequence]:
  """Makes the training sequences of one round, in the order of the roots.

  A root without positives makes no block. A block takes the root's positives by gain, best first, then
  its negatives: each positive's nearest one, then each one's second, and so on, as many as a positive
  may bring, until the sequence is full. The last chunk is cut to fit; what is left over is dropped. A
  block that does not fill the sequence is joined with the next root's if that root and its best
  positive fit whole, behind a separator; if not, or if no root is left, random chunks fill the last
  block; where more roots are to come (`Screened.more`) that last sequence is not made. At last each block's contexts
  are shuffled by (seed, round, root), fillers among them.

  Args:
    screened: what the policy said; positives and negatives may come in any order.
    separator: int32 tokens that follow a root which is not the sequence's last.
    length: L.
    policy_step: of the policy that chose the contexts; kept in every span.

  Raises:
    UserError: a root leaves no room for a context, or the corpus is too small to fill L tokens.
  """
  positives_of, negatives_of = by_document(screened.positives), by_document(screened.negatives)

  def order(root: Root, context: Context) -> bytes:
    return _shuffle_key(seed, round_index, root.doc_id, context.chunk_id)

  def empty() -> Draft:
    return Draft(length, separator, screened.chunk_tokens)

  draft = empty()
  for root in screened.roots:
    own = sorted(positives_of.get(root.doc_id, ()), key=lambda positive: (-positive.gain, positive.chunk_id))
    best = [Context(p.chunk_id, "positive", p.position, p.gain, rank) for rank, p in enumerate(own)]
    if len(draft) and best and not draft.admits(root, best):
      yield draft.finish(screened.filler, order, policy_step)
      draft = empty()
    if not draft.admits(root, best):
      continue
    draft.add(root, itertools.chain(best, _in_turn(own, negatives_of.get(root.doc_id, ()),
                                                   screened.negatives_per_positive)))
    if draft.full:
      yield draft.finish(screened.filler, order, policy_step)
      draft = empty()
  if len(draft) and not screened.more:
    yield draft.finish(screened.filler, order, policy_step)


def _in_turn(positives: Sequence[Positive], negatives: Iterable[Negative], most: int | None) -> Iterator[Context]:
  """Negatives round-robin over the chunks that they are negatives of, `most` of each.

  The turns go through the positives by gain, then through other chunks (rejected candidates) in the
  order in which they come; within one, by rank. A chunk that was offered is passed over within a turn.
  """
  queues: dict[str, list[Negative]] = {positive.chunk_id: [] for positive in positives}
  for negative in negatives:
    queues.setdefault(negative.of_chunk, []).append(negative)
  offered = {positive.chunk_id for positive in positives}
  turns = [iter(sorted(queue, key=lambda negative: negative.rank)) for queue in queues.values()]
  rounds = itertools.count() if most is None else range(most)
  for _ in rounds:
    if not turns:
      break
    going = []
    for turn in turns:
      negative = next((n for n in turn if n.chunk_id not in offered), None)
      if negative is not None:
        offered.add(negative.chunk_id)
        yield Context(negative.chunk_id, "negative", -1, float("nan"), negative.rank)
        going.append(turn)
    turns = going


def _shuffle_key(seed: int, round_index: int, doc_id: str, chunk_id: str) -> bytes:
  """Sorting by it is a random order that is the same in every process and for every order of the input."""
  return hashlib.blake2b(f"{seed}/{round_index}/{doc_id}/{chunk_id}".encode(), digest_size=16).digest()
