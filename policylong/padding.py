"""The lengths that scoring rows are padded to: few, so that few programs are compiled."""


def bucket(length: int, multiple: int) -> int:
  """The padded length of a row of `length` tokens: multiples of `multiple`, at most eight lengths an octave."""
  step = max(multiple, (1 << (length - 1).bit_length()) // 8)
  return -(-length // step) * step
