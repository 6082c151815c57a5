"""Where a chunk repeats the root's own words up to an anchor: the part of its text worth reading first."""

import re

from policylong.report.markup import Markup, element, join

_LEFT = 400  # characters of the root looked at before the anchor
_SHORTEST = 3  # a shorter shared run is no evidence of anything
_RIGHT = 80  # characters of the root compared after the anchor


def shared_run(pieces: list[str], position: int, text: str) -> tuple[int, int] | None:
  """Characters [start, end) of `text` that repeat the root up to the anchor token and on, the longest run to its left.

  Args:
    pieces: the root's tokens as text.
    position: the anchor; the run holds its token whole.
    text: the chunk.

  Returns:
    None where the chunk does not hold the anchor token, or the run is shorter than three characters.
  """
  token = pieces[position]
  before = "".join(pieces[max(0, position - _LEFT):position])[-_LEFT:]
  after = "".join(pieces[position + 1:position + 1 + _RIGHT])[:_RIGHT]
  # A token that ends a word in the root must end one in the chunk too: " the" is not in " them".
  ending = "" if after[:1].isalnum() else r"(?!\w)"
  if not token.strip() or (found := re.search(re.escape(token) + ending, text)) is None:
    return None
  start, length = found.start(), 0
  while length < len(before) and (found := re.search(re.escape(before[-length - 1:] + token) + ending, text)):
    start, length = found.start(), length + 1
  end = start + length + len(token)
  for character in after:
    if end >= len(text) or text[end] != character:
      break
    end += 1
  while length and text[start].isalnum() and start and text[start - 1].isalnum():  # not from the middle of a word
    start, length = start + 1, length - 1
  return (start, end) if len(text[start:end].strip()) >= _SHORTEST else None


def marked(text: str, run: tuple[int, int] | None) -> Markup:
  """The text with the shared run in bold."""
  if run is None:
    return join((text,))
  return join((text[:run[0]], element("b", text[run[0]:run[1]]), text[run[1]:]))


def excerpt(text: str, run: tuple[int, int] | None, length: int) -> Markup:
  """About `length` characters on one line: around the shared run, or else from the start."""
  if run is None:
    low, high = 0, length
  else:
    low = max(0, run[0] - max(0, length - (run[1] - run[0])) // 2)
    high = max(low + length, run[1])
  cut = text[low:high]
  inside = run and (run[0] - low, run[1] - low)
  return join(("… " if low else "", marked(cut, inside), " …" if high < len(text) else ""))
