"""Chat JSONL: what is read, and why what is not is not."""

import json

import pytest

from policylong.corpus.conversations import BAD_CALLS, UNKNOWN_ROLE, read_conversations

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
    (b'{"conversations": {}}', "messages not a list of objects"),
    (b'{"messages": [{"role": "ghost", "content": "x"}]}', UNKNOWN_ROLE),
    (b'{"messages": [{"role": ["user"], "content": "x"}]}', UNKNOWN_ROLE),
    (b'{"messages": [{"content": "x"}]}', UNKNOWN_ROLE),
    (b'{"conversations": [{"from": "ghost", "value": "x"}]}', UNKNOWN_ROLE),
    (b'{"messages": [{"role": "user", "content": [1]}]}', "content not a string"),
    (b'{"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}', "content not a string"),
    (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "a part of content that is no text"),
    (b'{"messages": [{"role": "user", "content": null}, {"role": "assistant", "content": "x"}]}',
     "content not a string"),
    (b'{"messages": [{"role": "assistant", "content": ""}]}', "an empty answer"),
    (b'{"messages": [{"role": "assistant", "content": " \\n"}]}', "an empty answer"),
    (b'{"messages": [{"role": "assistant", "content": null}]}', "an empty answer"),
    (b'{"messages": [{"role": "assistant", "content": "", "reasoning_content": "x"}]}', "an empty answer"),
    (b'{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}', "every assistant turn has weight 0"),
    (b'{"messages": [{"role": "assistant", "content": "x", "train": false}]}', "every assistant turn has weight 0"),
    (b'{"messages": [{"role": "assistant", "content": "x"}], "weight": 0}', "every assistant turn has weight 0"),
    (b'{"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}', "a weight other than 0 and 1"),
    (b'{"messages": [{"role": "assistant", "content": "x", "weight": "1"}]}', "a weight other than 0 and 1"),
    (b'{"messages": [{"role": "assistant", "content": "x", "tool_calls": "f"}]}', BAD_CALLS),
    (b'{"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"function": {}}]}]}', BAD_CALLS),
    (b'{"conversations": [{"from": "function_call", "value": "no JSON"}]}', BAD_CALLS),
    (b'{"messages": [{"role": "assistant", "content": "x"}], "tools": "f"}', "tools not a list of objects"),
    (b'{"messages": [{"role": "assistant", "content": "x", "reasoning": {"a": 1}}]}', "reasoning not a string"),
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


def one(tmp_path, record):
  (found,) = read(tmp_path, json.dumps(record).encode())
  assert not found.reason
  return found


@pytest.mark.parametrize("record", [
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                  {"role": "assistant", "content": ["Hello"]}]},
    {"messages": json.dumps(GOOD), "tools": ""},
    {"conversations": [{"from": "Human", "value": "Hi"}, {"from": "GPT", "value": "Hello", "tool_calls": "[]"}]},
    {"messages": [{"from": "user", "value": "Hi", "weight": 0}, {"from": "chatgpt", "value": "Hello", "train": True}]},
])
def test_what_means_the_same_is_the_same(tmp_path, record):
  found = one(tmp_path, record)
  assert (found.messages, found.learnt, found.tools, found.empty) == (GOOD, (False, True), (), 0)
  assert found.draw(0) == one(tmp_path, {"messages": GOOD}).draw(0)


def test_a_system_text_beside_the_turns_is_the_first_message(tmp_path):
  turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
  found = one(tmp_path, {"system": "Be brief", "conversations": turns})
  assert found.messages == [{"role": "system", "content": "Be brief"}, *GOOD] and found.learnt == (False, False, True)


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Lima"}}}


@pytest.mark.parametrize("answer", [
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Lima"}'}}]},
    {"role": "assistant", "content": "", "function_call": {"name": "weather", "arguments": '{"city": "Lima"}'}},
    {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Lima"}}'},
])
def test_a_call_of_a_tool_is_an_answer_however_it_is_written(tmp_path, answer):
  tool = {"name": "weather", "parameters": {"type": "object"}}
  found = one(tmp_path, {"messages": [GOOD[0], answer, {"role": "tool", "content": "12", "tool_call_id": "1"}],
                         "tools": json.dumps([tool])})
  assert found.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
  assert found.messages[2] == {"role": "tool", "content": "12", "tool_call_id": "1"}
  assert found.learnt == (False, True, False) and found.tools == ({"type": "function", "function": tool},)


@pytest.mark.parametrize("answer", [
    {"content": "Two.", "reasoning_content": "Count on."}, {"content": "Two.", "reasoning": "Count on."},
    {"content": "Two.", "thinking": "Count on."},
    {"content": [{"type": "thinking", "thinking": "Count on."}, {"type": "text", "text": "Two."}]},
])
def test_reasoning_is_one_field_however_it_is_written(tmp_path, answer):
  found = one(tmp_path, {"messages": [GOOD[0], {"role": "assistant", **answer}]})
  assert found.messages[1] == {"role": "assistant", "content": "Two.", "reasoning_content": "Count on."}


def test_answers_of_weight_0_and_empty_ones_are_read_and_not_learnt(tmp_path):
  turns = [GOOD[0], {**GOOD[1], "weight": 0}, GOOD[0], {"role": "assistant", "content": ""}, *GOOD,
           GOOD[0], {"role": "assistant", "content": "", "weight": 0}]
  found = one(tmp_path, {"messages": turns})
  assert [i for i, learnt in enumerate(found.learnt) if learnt] == [5] and found.empty == 1
  assert one(tmp_path, {"weight": 0, "messages": [*GOOD, GOOD[0], {**GOOD[1], "weight": 1}]}).learnt == (
      False, False, False, True)
