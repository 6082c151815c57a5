"""Reads JSON records: an object a line, or a JSON array of objects, compressed or not.

A file is taken for an array if it begins with "[" and an object (or with "[]"): the first line of JSONL never does.
"""

import codecs
import json
import pathlib
import re
from collections.abc import Callable, Iterator

from policylong.corpus.files import Stream, Unreadable, opened

# Why a line or an element is no record.
NOT_JSON = "not JSON"
NOT_AN_OBJECT = "not a JSON object"
INVALID_UTF8 = "invalid UTF-8"
# Why a whole file holds none.
NOT_TEXT = "not text in UTF-8"

_BOM = b"\xef\xbb\xbf"
_HEAD = 1024
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*[{\]]")
_SPACE = re.compile(r"\s*")
_BLOCK = 1 << 20
# An error so near to the end of what was read may be the end's.
_CUT = 16


def read_objects(path: pathlib.Path) -> Iterator[tuple[int, int, dict | str]]:
  """(number, bytes of the file that it took, the object or why it is none) of each record of a file.

  The number is that of the line, or of the array's element, from 1. Blank lines are left out.

  Raises:
    Unreadable: there is no such file, it ends too early, or it holds no text.
  """
  with opened(path) as (stream, position):
    head = stream.peek(_HEAD)
    if b"\0" in head[:_HEAD]:  # which JSON spells otherwise
      raise Unreadable(NOT_TEXT, f"is {NOT_TEXT} (a binary file, or UTF-16)")
    for number, size, value in (_elements if _ARRAY.match(head) else _lines)(stream, position):
      yield number, size, value if isinstance(value, dict | str) else NOT_AN_OBJECT


def _lines(stream: Stream, position: Callable[[], int]) -> Iterator[tuple[int, int, object]]:
  last = 0
  for number, line in enumerate(stream, start=1):
    size, last = position() - last, position()
    if number == 1:
      line = line.removeprefix(_BOM)
    if not line.strip():
      continue
    try:
      value = json.loads(line.decode())
    except UnicodeDecodeError:
      value = INVALID_UTF8
    except (ValueError, RecursionError):
      value = NOT_JSON
    else:
      value = NOT_AN_OBJECT if isinstance(value, str) else value
    yield number, size, value


def _elements(stream: Stream, position: Callable[[], int]) -> Iterator[tuple[int, int, object]]:
  """The elements of an array, in memory one at a time; behind one that is no JSON nothing more can be told."""
  text = _Text(stream)
  text.skip("[")
  number = last = 0
  while not text.skip("]"):
    number += 1
    try:
      value = text.value()
    except (ValueError, RecursionError):
      yield number, position() - last, NOT_JSON
      return
    size, last = position() - last, position()
    yield number, size, NOT_AN_OBJECT if isinstance(value, str) else value
    if not text.skip(",") and not text.at("]"):
      yield number + 1, 0, NOT_JSON
      return
  if not text.at(""):
    yield number + 1, position() - last, NOT_JSON


class _Text:
  """A long text of which only the part is held that is being read.

  Bytes that are no UTF-8 become halves of surrogate pairs, which no document may hold: the record is refused, not all.
  """

  def __init__(self, stream: Stream):
    self._stream, self._decoder = stream, codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    self._text, self._start, self._whole = "", 0, False
    self._json = json.JSONDecoder()

  def at(self, mark: str) -> bool:
    """Whether `mark` (or, if that is empty, the end) comes next, behind white space."""
    while True:
      self._start = _SPACE.match(self._text, self._start).end()
      if self._start < len(self._text) or not self._more():
        break
    return self._text.startswith(mark, self._start) if mark else self._start == len(self._text)

  def skip(self, mark: str) -> bool:
    """Whether `mark` comes next; it is passed."""
    found = self.at(mark)
    self._start += len(mark) if found else 0
    return found

  def value(self) -> object:
    """The JSON value that comes next.

    Raises:
      ValueError: there is none.
    """
    self.at("")
    while True:
      try:
        value, end = self._json.raw_decode(self._text, self._start)
      except json.JSONDecodeError as error:
        cut = error.pos >= len(self._text) - _CUT or error.msg.startswith("Unterminated string")
        if not cut or not self._more():
          raise
        continue
      if end == len(self._text) and self._more():  # of a number, more digits may follow
        continue
      self._start = end
      return value

  def _more(self) -> bool:
    """Reads as much again as is held, at least a block; False at the end."""
    if self._whole:
      return False
    held = self._text[self._start:]
    data = self._stream.read(max(_BLOCK, len(held)))
    self._whole = not data
    self._text, self._start = held + self._decoder.decode(data, final=self._whole), 0
    return True
