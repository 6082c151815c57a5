"""Quest (arXiv 2405.19846): sequences of documents that share a keyword.

Each document has RAKE keywords of score 3 or more, one of them is drawn, and an inverted index leads from keyword to
documents. The keywords with the fewest documents, a share `quest_split_ratio` of all, are oversampled. Our decisions:

- Keywords come from the text itself, not from queries that a model makes of it.
- A keyword must have two documents and fill a sequence. Where it does not, its documents draw again, from the emptiest
  keyword up, until all that are left do; documents that then have none are not used.
- Oversampled means: rare and other keywords give a sequence in turn, each keyword one at a time, and rare ones begin
  again in another order when they are used up, until the others are.
- A document that is cut at the end of a sequence goes on in the keyword's next one.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from policylong.errors import UserError
from policylong.records import LongSequence
from policylong.synthesis.keywords import rake
from policylong.synthesis.method import Inputs
from policylong.synthesis.pieces import Shelf, document, fill, sequence


def sequences(inputs: Inputs) -> Iterator[LongSequence]:
  """At most `inputs.count` sequences of the round's documents, one keyword a sequence.

  Holds the keywords and the length of every document of the round in memory.

  Raises:
    UserError: no keyword fills a sequence.
  """
  sizes, keywords = {}, {}
  for doc_id in inputs.library.documents(inputs.round_index):
    sizes[doc_id] = len(document(inputs.library, doc_id).tokens)
    keywords[doc_id] = tuple(rake(inputs.library.text(doc_id), inputs.options.quest_least_score))
  key = f"{inputs.seed}/{inputs.round_index}"
  groups = inverted_index(keywords, sizes, inputs.length, key)
  if not groups:
    raise _nothing(inputs, sizes, keywords)
  ranked = sorted(groups, key=lambda keyword: (len(groups[keyword]), _draw(key, keyword)))
  split = min(int(inputs.options.quest_split_ratio * len(ranked)), len(ranked) - 1)
  rare, others = ([groups[k] for k in sorted(part, key=lambda k: _draw(key, k))] for part in (
      ranked[:split], ranked[split:]))
  turns = _in_turn(inputs, rare, others, key)
  for pieces in itertools.islice(turns, inputs.count):
    yield sequence(pieces, inputs.length, inputs.policy_step)


def inverted_index(keywords: Mapping[str, Sequence[str]], sizes: dict[str, int], length: int,
                   key: str) -> dict[str, list[str]]:
  """{keyword: its documents}: each document under one keyword of its own; every keyword can fill a sequence.

  Args:
    keywords: of each document.
    sizes: of each document, tokens.
    length: L.
    key: chooses the draw.
  """
  reach: dict[str, list[str]] = {}
  for doc_id, own in keywords.items():
    for keyword in own:
      reach.setdefault(keyword, []).append(doc_id)

  def fills(documents: Sequence[str]) -> bool:
    return len(documents) > 1 and sum(sizes[doc_id] for doc_id in documents) >= length

  allowed = {keyword for keyword, documents in reach.items() if fills(documents)}
  order = {doc_id: sorted((k for k in own if k in allowed), key=lambda k: _draw(key, doc_id, k))
           for doc_id, own in keywords.items()}
  while True:
    groups: dict[str, list[str]] = {}
    for doc_id, own in order.items():
      drawn = next((keyword for keyword in own if keyword in allowed), None)
      if drawn is not None:
        groups.setdefault(drawn, []).append(doc_id)
    short = sorted((k for k in allowed if not fills(groups.get(k, ()))), key=lambda k: (
        sum(sizes[doc_id] for doc_id in groups.get(k, ())), _draw(key, k)))
    if not short:
      return groups
    allowed -= set(short[:(len(short) + 1) // 2])


def _in_turn(inputs, rare, others, key):
  """The pieces of sequence after sequence, rare and other keywords in turn until the others are used up."""
  again = itertools.chain.from_iterable(_round_robin(inputs, rare, f"{key}/{pass_}") for pass_ in itertools.count())
  for pieces in _round_robin(inputs, others, f"{key}/others"):
    if rare:
      yield next(again)
    yield pieces


def _round_robin(inputs: Inputs, groups: Iterable[Sequence[str]], key: str):
  """One sequence of each keyword, then a second of each that has one, and so on."""
  shelves = [Shelf(document(inputs.library, doc_id) for doc_id in sorted(
      group, key=lambda doc_id: _draw(key, doc_id))) for group in groups]
  while shelves:
    left = []
    for shelf in shelves:
      if (pieces := fill(shelf, inputs.length)) is not None:
        yield pieces
        left.append(shelf)
    shelves = left


def _draw(*parts: str) -> bytes:
  """Sorting by it is a random order, the same in every process."""
  return hashlib.blake2b("/".join(parts).encode(), digest_size=12).digest()


def _nothing(inputs, sizes, keywords) -> UserError:
  reach: dict[str, list[int]] = {}
  for doc_id, own in keywords.items():
    for keyword in own:
      reach.setdefault(keyword, []).append(sizes[doc_id])
  where = f"quest, round {inputs.round_index}:"
  least = f"method_options.quest_least_score = {inputs.options.quest_least_score:g}"
  shared = {keyword: sum(own) for keyword, own in reach.items() if len(own) > 1}
  if not shared:
    return UserError(f"{where} none of its {len(keywords)} documents shares a keyword of {least} with another, so all "
                     f"{inputs.length} tokens of a sequence are missing: lower the score or add documents")
  best = max(shared, key=shared.get)
  return UserError(f"{where} the documents of the most frequent keyword, {best!r}, hold {shared[best]} tokens, "
                   f"{max(0, inputs.length - shared[best])} too few for a sequence of {inputs.length}: make "
                   f"synthesis.sequence_length or {least} smaller or add documents")
