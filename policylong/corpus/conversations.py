"""Reads chat JSONL: one {"messages": [{"role": ..., "content": ...}, ...]} a line.

As with documents, a bad record is data and not an exception: it comes with the reason why it is bad.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator

from policylong.corpus.files import Unreadable, reason_of
from policylong.corpus.json_records import INVALID_UTF8, read_objects

ROLES = ("system", "user", "assistant")
# Why a record is no conversation.
NO_MESSAGES = "messages missing"
NO_LIST = "messages not a list of objects"
UNKNOWN_ROLE = f"a role other than {', '.join(ROLES)}"
CONTENT_NOT_STRING = "content not a string"
NO_ANSWER = "no assistant turn"

Messages = list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One record: its messages, or the reason why it has none; and the bytes of input that it took."""
  size: int
  messages: Messages
  reason: str = ""

  def draw(self, seed: int) -> int:
    """A number in 0 .. 2^64 - 1 that follows from what is said alone: copies of a conversation share it."""
    said = json.dumps(self.messages, sort_keys=True)
    return int.from_bytes(hashlib.sha256(f"{seed}/{said}".encode()).digest()[:8])


def read_conversations(files: list[pathlib.Path]) -> Iterator[Conversation]:
  """Every record of some JSONL files, in order; what a message holds besides role and content is left out.

  A file that cannot be read, or not to its end, is a bad record among several files.

  Raises:
    UserError: the only file cannot be read.
  """
  for path in files:
    try:
      for _, size, value in read_objects(path):
        reason = value if isinstance(value, str) else _why_not(value.get("messages"))
        given = [] if isinstance(value, str) or reason else value["messages"]
        messages = [{"role": m["role"], "content": m["content"]} for m in given]
        yield Conversation(size, messages, reason)
    except Unreadable as error:
      yield Conversation(0, [], reason_of(error, path, len(files) == 1))


def _why_not(messages) -> str:
  """Why something is no conversation, "" if it is one."""
  if messages is None:
    return NO_MESSAGES
  if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
    return NO_LIST
  if any(message.get("role") not in ROLES for message in messages):
    return UNKNOWN_ROLE
  if not all(isinstance(message.get("content"), str) for message in messages):
    return CONTENT_NOT_STRING
  if not any(message["role"] == "assistant" for message in messages):
    return NO_ANSWER
  try:  # JSON can spell half of a surrogate pair, which no tokenizer takes
    "".join(message["content"] for message in messages).encode()
  except UnicodeEncodeError:
    return INVALID_UTF8
  return ""
