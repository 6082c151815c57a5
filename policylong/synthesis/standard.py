"""Standard: documents in random order, one behind the other, cut every L tokens. The baseline of all baselines."""

import itertools
from collections.abc import Iterator

from policylong.records import LongSequence
from policylong.synthesis.method import Inputs
from policylong.synthesis.pieces import concatenated, document


def sequences(inputs: Inputs) -> Iterator[LongSequence]:
  """At most `inputs.count` sequences of the round's documents, each document once.

  A document that is cut at the end of a sequence goes on in the next one.

  Raises:
    UserError: the round's documents do not fill one sequence.
  """
  pieces = (document(inputs.library, doc_id) for doc_id in inputs.library.documents(inputs.round_index))
  rows = concatenated(pieces, inputs.length, inputs.policy_step,
                      what=f"standard, round {inputs.round_index}: its documents")
  return itertools.islice(rows, inputs.count)
