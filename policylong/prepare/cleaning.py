"""What is taken out of every text before anything else looks at it: bytes that no reader sees."""

import re
import unicodedata

# Control characters but tab and newline, soft hyphens, byte order marks.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\xad\ufeff]")
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")


def clean(text: str) -> str:
  """The text in NFC, with "\\n" for every kind of line end, without what is not seen."""
  if text.isascii() and not _UNSEEN.search(text):
    return text
  return unicodedata.normalize("NFC", _UNSEEN.sub("", _LINE_ENDS.sub("\n", text)))
