"""Whole-paragraph chunks: spans of characters, and the ids that name them.

A paragraph ends at a blank line. Paragraphs are packed greedily while the chunk, with the white space
between its paragraphs, has at most `chunk_chars` characters. A longer paragraph is its own chunk, with
two exceptions, because texts from the web often end every paragraph with a single newline and some
hold megabytes without any:

- a paragraph of more than `chunk_chars` characters that has newlines is taken apart into its lines,
  which are then packed like paragraphs;
- a line of more than LONGEST * chunk_chars characters is cut at white space (or, without any, hard).

Only white space lies between two chunks and around them, so no text is lost.
"""

import re
from collections.abc import Iterator

import numpy as np

# No chunk has more than LONGEST * chunk_chars characters. Screening reads a chunk's first
# `max_chunk_tokens` tokens only, far less than this: the cap bounds the cost, not the meaning.
LONGEST = 8

_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_NEWLINE = re.compile(r"\n")
_LEADING_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)*")


def chunk_spans(text: str, chunk_chars: int) -> list[tuple[int, int]]:
  """Cuts a text into chunks of about `chunk_chars` characters.

  Returns:
    [start, end) in characters, in order, disjoint; each starts a line where it can (indentation is
    kept) and ends with a character that is not white space. Empty for a text of white space.
  """
  spans: list[tuple[int, int]] = []
  for start, end in _pieces(text, chunk_chars):
    if spans and end - spans[-1][0] <= chunk_chars:
      spans[-1] = (spans[-1][0], end)
    else:
      spans.append((start, end))
  return spans


def chunk_table(text: str, chunk_chars: int) -> np.ndarray:
  """int64[chunks, 4]: start and end in characters, then in bytes, of a text's chunks."""
  spans = chunk_spans(text, chunk_chars)
  return np.asarray([(*span, *inside) for span, inside in zip(spans, byte_spans(text, spans))], np.int64).reshape(-1, 4)


def byte_spans(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
  """The same spans counted in bytes of the text's UTF-8."""
  if text.isascii():
    return spans
  result, position, size = [], 0, 0
  for start, end in spans:
    first = size + len(text[position:start].encode())
    size = first + len(text[start:end].encode())
    position = end
    result.append((first, size))
  return result


def chunk_id(doc_id: str, start: int, end: int) -> str:
  """The stable id of characters [start, end) of a document."""
  return f"{doc_id}#{start}-{end}"


def parse_chunk_id(identifier: str) -> tuple[str, int, int]:
  """(doc id, start, end) of a chunk id.

  Raises:
    KeyError: it has not the form of a chunk id.
  """
  doc_id, mark, span = identifier.rpartition("#")
  start, dash, end = span.partition("-")
  if not (mark and dash and start.isdecimal() and end.isdecimal()):
    raise KeyError(f"{identifier!r} is not a chunk id")
  return doc_id, int(start), int(end)


def _pieces(text: str, chunk_chars: int) -> Iterator[tuple[int, int]]:
  """Paragraphs, lines of long paragraphs and parts of very long lines: what is packed, never cut."""
  for start, end in _split(text, 0, len(text), _BLANK_LINES):
    if end - start <= chunk_chars:
      yield start, end
      continue
    for first, last in _split(text, start, end, _NEWLINE):
      yield from _cut(text, first, last, LONGEST * chunk_chars)


def _split(text: str, start: int, end: int, separator: re.Pattern) -> Iterator[tuple[int, int]]:
  """The parts of text[start:end] between separators, without white space lines before and white space after."""
  position = start
  for match in separator.finditer(text, start, end):
    yield from _trimmed(text, position, match.start())
    position = match.end()
  yield from _trimmed(text, position, end)


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
  start = min(_LEADING_BLANK_LINES.match(text, start, end).end(), end)
  end = start + len(text[start:end].rstrip())
  if end > start:
    yield start, end


def _cut(text: str, start: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
  """Parts of at most `longest` characters, cut behind the last white space that allows it."""
  while end - start > longest:
    cut = start + longest
    for position in range(cut, start + longest // 2, -1):
      if text[position].isspace():
        cut = position
        break
    yield from _trimmed(text, start, cut)
    start = cut
    while start < end and text[start].isspace():
      start += 1
  yield from _trimmed(text, start, end)
