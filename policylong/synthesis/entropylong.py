"""EntropyLong (arXiv 2510.02330): shuffled verified positives, then their root; screened once, with the base model.

It is PolicyLong's round without negatives. That it is screened once means one round (`config.rounds` = 1), with as many
roots and steps as PolicyLong has in all of its rounds.
"""

import dataclasses
from collections.abc import Iterator

from policylong.records import LongSequence
from policylong.synthesis import policylong
from policylong.synthesis.method import Inputs


def sequences(inputs: Inputs) -> Iterator[LongSequence]:
  """See `policylong.synthesize`; raises what it raises."""
  return policylong.sequences(dataclasses.replace(inputs, screened=dataclasses.replace(inputs.screened, negatives=())))
