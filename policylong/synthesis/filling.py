"""How many sequences the roots so far fill, reckoned by their sizes alone, before their negatives are known."""

from collections.abc import Sequence


class Filling:
  """Sequences of `policylong.synthesize` as they would fill, root by root.

  A positive's negatives are taken to be as long as the root's positives are on average, and none is lacking.

  Args:
    length: L, tokens of a sequence.
    separator: tokens between two blocks.
    negatives: that each positive brings; None: as many as fit.
  """

  def __init__(self, length: int, separator: int, negatives: int | None):
    self._length, self._separator, self._negatives = length, separator, negatives
    self._used = 0  # tokens of the sequence that is not full
    self.sequences = 0  # full ones

  @property
  def tokens(self) -> int:
    """Tokens that are filled."""
    return self.sequences * self._length + self._used

  def block(self, root: int, positives: Sequence[float]) -> float:
    """Tokens that a root of so many tokens and its positives, by their tokens, want of a sequence at most."""
    if not positives:
      return 0
    if self._negatives is None:
      return self._length
    return min(self._length, self._separator + root + (1 + self._negatives) * sum(positives))

  def add(self, root: int, positives: Sequence[int]) -> None:
    """The next root and its positives, best first; without positives it is passed over."""
    if not positives or root >= self._length:
      return
    between = self._separator if self._used else 0
    if self._used and self._used + between + root + positives[0] > self._length:
      self.sequences, self._used, between = self.sequences + 1, 0, 0
    contexts = self._length if self._negatives is None else round((1 + self._negatives) * sum(positives))
    self._used = min(self._length, self._used + between + root + contexts)
    if self._used == self._length:
      self.sequences, self._used = self.sequences + 1, 0
