"""Chat JSONL: what is read, and why what is not is not."""

import json

import pytest

from policylong.corpus.conversations import read_conversations

GOOD = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def read(tmp_path, *lines: bytes):
  path = tmp_path / "chats.jsonl"
  path.write_bytes(b"\n".join(lines) + b"\n")
  return list(read_conversations([path]))


def test_messages_are_read_without_what_else_stands_there(tmp_path):
  line = json.dumps({"id": 3, "messages": [{**message, "weight": 1} for message in GOOD]}).encode()
  (found,) = read(tmp_path, line, b"", b"  ")
  assert (found.messages, found.reason, found.size) == (GOOD, "", len(line) + 1)


@pytest.mark.parametrize("line, reason", [
    (b"{", "not JSON"), (b"[1]", "not a JSON object"), (b'{"text": "x"}', "messages missing"),
    (b'{"messages": "x"}', "messages not a list of objects"),
    (b'{"messages": ["x"]}', "messages not a list of objects"),
    (b'{"messages": [{"role": "tool", "content": "x"}]}', "a role other than system, user, assistant"),
    (b'{"messages": [{"role": ["user"], "content": "x"}]}', "a role other than system, user, assistant"),
    (b'{"messages": [{"content": "x"}]}', "a role other than system, user, assistant"),
    (b'{"messages": [{"role": "user", "content": ["x"]}]}', "content not a string"),
    (b'{"messages": [{"role": "user"}]}', "content not a string"),
    (b'{"messages": [{"role": "user", "content": "x"}]}', "no assistant turn"),
    (b'{"messages": []}', "no assistant turn"),
    (b'{"messages": [{"role": "assistant", "content": "\xff"}]}', "invalid UTF-8"),
    (b'{"messages": [{"role": "assistant", "content": "\\ud800"}]}', "invalid UTF-8"),
])
def test_what_is_no_conversation_says_why(tmp_path, line, reason):
  (found,) = read(tmp_path, line)
  assert (found.messages, found.reason) == ([], reason)


def test_copies_are_drawn_together_and_seeds_draw_apart(tmp_path):
  line = json.dumps({"messages": GOOD}).encode()
  copies = read(tmp_path, line, line.replace(b": ", b":  "), line.replace(b"Hi", b"Ho"))
  draws = [conversation.draw(0) for conversation in copies]
  assert draws[0] == draws[1] != draws[2] and copies[0].draw(1) != draws[0]
  assert all(0 <= draw < 2**64 for draw in draws)
