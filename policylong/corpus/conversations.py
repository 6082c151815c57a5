"""Reads chat JSONL: one {"messages": [{"role": ..., "content": ...}, ...]} a line, or what means the same.

What people's files hold is brought to one form, that of transformers' chat templates:

  ShareGPT             {"conversations": [{"from": "human", "value": ...}, ...]}, its system and tools beside them
  content parts        [{"type": "text", "text": ...}, ...] become one text; other kinds of part make a bad record
  tool calls           with arguments as an object, also where they are written as a string; function_call is one
  strings of JSON      in the place of messages, tools or tool calls, as tables have them
  reasoning            reasoning_content, reasoning, thinking, or parts of type thinking: all are reasoning_content
  weight, train        0 or false: an answer that is read and not learnt; at the record it holds for all of them

As with documents, a bad record is data and not an exception: it comes with the reason why it is bad.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from policylong.corpus.files import Unreadable, reason_of
from policylong.corpus.json_records import INVALID_UTF8, read_objects

ROLES = ("system", "developer", "user", "assistant", "tool")
# Other names of these, ShareGPT's among them. What a function_call says is the assistant's call of a tool.
_ROLES = {**{role: role for role in ROLES}, "human": "user", "gpt": "assistant", "chatgpt": "assistant",
          "model": "assistant", "bot": "assistant", "function": "tool", "observation": "tool",
          "function_response": "tool", "function_call": "assistant"}
_REASONING = ("reasoning_content", "reasoning", "thinking")
# Why a record is no conversation.
NO_MESSAGES = "messages missing"
NO_LIST = "messages not a list of objects"
UNKNOWN_ROLE = f"a role other than {', '.join(ROLES)}"
CONTENT_NOT_STRING = "content not a string"
NO_ANSWER = "no assistant turn"
EMPTY_ANSWER = "an empty answer"
NOT_LEARNT = "every assistant turn has weight 0"
BAD_WEIGHT = "a weight other than 0 and 1"
BAD_TOOLS = "tools not a list of objects"
BAD_CALLS = "tool calls not a list of functions with names"

Messages = list[dict[str, Any]]


class _Bad(Exception):
  """A record that is no conversation; with the reason."""


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One record: its messages, or the reason why it has none; and the bytes of input that it took.

  messages: {"role", "content"}, and where there are any "tool_calls", "tool_call_id", "name", "reasoning_content".
  learnt: for each of them whether it is an answer to be learnt. empty: answers that say nothing, which never are.
  tools: the functions that the assistant may call, as transformers' chat templates take them.
  """
  size: int
  messages: Messages
  reason: str = ""
  learnt: tuple[bool, ...] = ()
  empty: int = 0
  tools: tuple[dict, ...] = ()

  def draw(self, seed: int) -> int:
    """A number in 0 .. 2^64 - 1 that follows from what is said alone: copies of a conversation share it."""
    said = json.dumps([self.messages, self.tools] if self.tools else self.messages, sort_keys=True)
    return int.from_bytes(hashlib.sha256(f"{seed}/{said}".encode()).digest()[:8])


def read_conversations(files: list[pathlib.Path]) -> Iterator[Conversation]:
  """Every record of some JSONL files, in order; what is not named above is left out.

  A file that cannot be read, or not to its end, is a bad record among several files.

  Raises:
    UserError: the only file cannot be read.
  """
  for path in files:
    try:
      for _, size, value in read_objects(path):
        try:
          if isinstance(value, str):
            raise _Bad(value)
          yield _conversation(size, value)
        except _Bad as error:
          yield Conversation(size, [], str(error))
    except Unreadable as error:
      yield Conversation(0, [], reason_of(error, path, len(files) == 1))


def _conversation(size: int, record: dict) -> Conversation:
  given = record.get("messages")
  if given is None:
    given = record.get("conversations", record.get("conversation"))
  given = _parsed(given)
  if given is None:
    raise _Bad(NO_MESSAGES)
  if not isinstance(given, list) or not all(isinstance(message, dict) for message in given):
    raise _Bad(NO_LIST)
  messages = [_message(message) for message in given]
  system = record.get("system")
  if isinstance(system, str) and system and not any(message["role"] == "system" for message in messages):
    messages, given = [{"role": "system", "content": system}, *messages], [{}, *given]
  answers = [message["role"] == "assistant" for message in messages]
  if not any(answers):
    raise _Bad(NO_ANSWER)
  default = _weight(record, True)
  wanted = [answer and _weight(message, default) for answer, message in zip(answers, given)]
  if not any(wanted):
    raise _Bad(NOT_LEARNT)
  empty = [not message["content"].strip() and "tool_calls" not in message for message in messages]
  learnt = tuple(one and not nothing for one, nothing in zip(wanted, empty))
  if not any(learnt):
    raise _Bad(EMPTY_ANSWER)
  tools = _tools(record)
  try:  # JSON can spell half of a surrogate pair, which no tokenizer takes
    json.dumps([messages, tools], ensure_ascii=False).encode()
  except UnicodeEncodeError as error:
    raise _Bad(INVALID_UTF8) from error
  return Conversation(size, messages, learnt=learnt, empty=sum(wanted) - sum(learnt), tools=tools)


def _message(given: dict) -> dict[str, Any]:
  name = given.get("role", given.get("from"))
  name = name.lower() if isinstance(name, str) else ""
  role = _ROLES.get(name)
  if role is None:
    raise _Bad(UNKNOWN_ROLE)
  calls = _calls(given, name)
  content, thought = _content(given.get("content", given.get("value")) if name != "function_call" else "")
  if content is None:
    if not (role == "assistant" and (calls or "content" in given or "value" in given)):
      raise _Bad(CONTENT_NOT_STRING)
    content = ""  # as OpenAI writes an answer that only calls
  message: dict[str, Any] = {"role": role, "content": content}
  if role == "assistant":
    said = [given[field] for field in _REASONING if given.get(field)] or [thought] * bool(thought)
    if not all(isinstance(one, str) for one in said):
      raise _Bad("reasoning not a string")
    if said and said[0].strip():
      message["reasoning_content"] = said[0]
    if calls:
      message["tool_calls"] = calls
  if role == "tool":
    message |= {field: given[field] for field in ("tool_call_id", "name") if isinstance(given.get(field), str)}
  return message


def _content(given) -> tuple[str | None, str]:
  """(the text, None for null; the reasoning that stands among its parts)."""
  if given is None or isinstance(given, str):
    return given, ""
  if not isinstance(given, list):
    raise _Bad(CONTENT_NOT_STRING)
  texts: dict[str, list[str]] = {"text": [], "thinking": []}
  for part in given:
    part = {"type": "text", "text": part} if isinstance(part, str) else part
    kind = part.get("type", "text") if isinstance(part, dict) else None
    kind = {"input_text": "text", "output_text": "text", "reasoning": "thinking"}.get(kind, kind) if isinstance(
        kind, str) else None
    if kind is None:
      raise _Bad(CONTENT_NOT_STRING)
    if kind not in texts:
      raise _Bad("a part of content that is no text")
    text = part.get(kind, part.get("text", part.get("reasoning")))
    if not isinstance(text, str):
      raise _Bad(CONTENT_NOT_STRING)
    texts[kind].append(text)
  return "".join(texts["text"]), "".join(texts["thinking"])


def _calls(given: dict, name: str) -> list[dict]:
  """An assistant's tool calls, arguments as objects where they are such."""
  calls = _parsed(given.get("tool_calls")) or []
  if not calls and isinstance(given.get("function_call"), dict):
    calls = [given["function_call"]]
  if name == "function_call":  # ShareGPT's turn whose text is the call
    called = _parsed(given.get("value", given.get("content")))
    calls = called if isinstance(called, list) else [called]
  if not isinstance(calls, list):
    raise _Bad(BAD_CALLS)
  found = []
  for call in calls:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
      raise _Bad(BAD_CALLS)
    arguments = _parsed(function.get("arguments", {}))
    identifier = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    found.append({**identifier, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
  return found


def _tools(record: dict) -> tuple[dict, ...]:
  """The record's tools; functions, their older form, are wrapped."""
  tools = _parsed(record.get("tools")) or _parsed(record.get("functions")) or []
  if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
    raise _Bad(BAD_TOOLS)
  return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def _parsed(value):
  """What a string of JSON spells; anything else, and a string of something else, as it is."""
  try:
    return json.loads(value) if isinstance(value, str) else value
  except (ValueError, RecursionError):
    return value


def _weight(given: dict, default: bool) -> bool:
  """Whether an answer is learnt, by its "weight" or "train"."""
  flags = [given[name] for name in ("weight", "train") if given.get(name) is not None]
  if not all(isinstance(flag, bool | int | float) and flag in (0, 1) for flag in flags):
    raise _Bad(BAD_WEIGHT)
  return all(flags) if flags else default
