"""Which tokens are the assistant's, told by hand for the templates of SmolLM2 and of Qwen's shape."""

import pathlib
import sys

import pytest

from policylong.errors import UserError
from policylong.model.chat import Chat, NotRendered
from policylong.model.tokenizer import load_tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from tests.small_chat import QWEN2_SHAPED, QWEN3_SHAPED

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."},
        {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good night."}]
SYSTEM = ["You", " are", " a", " helpful", " AI", " assistant", " named", " Sm", "ol", "LM", ",", " trained", " by",
          " H", "ugging", " Face"]
START, END = "<|im_start|>", "<|im_end|>"
ASSISTANT = [START, "ass", "istant", "\n"]


@pytest.fixture(scope="module")
def smollm2_tokenizer(material):
  return load_tokenizer(material / "smollm2.gguf")


@pytest.fixture
def chat(smollm2_tokenizer):
  """A function: a Chat with SmolLM2's tokens and a template (None: its own)."""
  own = smollm2_tokenizer.chat_template

  def make(template=None):
    smollm2_tokenizer.chat_template = own if template is None else template
    return Chat(smollm2_tokenizer, "a model")
  yield make
  smollm2_tokenizer.chat_template = own


def pieces(tokenizer, example):
  """[(text of a token, whether the assistant wrote it)]"""
  return [(tokenizer.decode([token]), bool(answer)) for token, answer in zip(example.tokens, example.answers)]


def marked(*parts):
  """Parts of a rendered text: a list is not the assistant's, a tuple is."""
  return [(piece, isinstance(part, tuple)) for part in parts for piece in part]


def test_in_smollm2s_template_the_answers_and_their_ends_are_the_assistants(chat, smollm2_tokenizer):
  (example,) = chat().examples(TALK)
  assert pieces(smollm2_tokenizer, example) == marked(
      [START, "system", "\n", *SYSTEM, END, "\n"], [START, "user", "\n", "Hi", END, "\n", *ASSISTANT],
      ("Hello", " there", ".", END), ["\n"], [START, "user", "\n", "Hello", END, "\n", *ASSISTANT],
      ("Good", " night", ".", END), ["\n"])


def test_in_a_template_of_qwen2s_shape_too(chat, smollm2_tokenizer):
  found = chat(QWEN2_SHAPED)
  (example,) = found.examples([{"role": "system", "content": "Be brief"}, *TALK[:3]])
  assert pieces(smollm2_tokenizer, example) == marked(
      [START, "system", "\n", "Be", " brief", END, "\n"], [START, "user", "\n", "Hi", END, "\n", *ASSISTANT],
      ("Hello", " there", ".", END), ["\n"], [START, "user", "\n", "Hello", END, "\n"])
  assert found.end_of_turn == smollm2_tokenizer.convert_tokens_to_ids(END)


def test_where_only_the_last_answer_shows_its_reasoning_each_answer_is_an_example(chat, smollm2_tokenizer):
  first, second = chat(QWEN3_SHAPED).examples(TALK)
  think = ("<", "think", ">", "\n", "\n", "</", "think", ">", "\n", "\n")
  question = [START, "user", "\n", "Hi", END, "\n", *ASSISTANT]
  assert pieces(smollm2_tokenizer, first) == marked(question, (*think, "Hello", " there", ".", END), ["\n"])
  assert pieces(smollm2_tokenizer, second) == marked(
      question, ["Hello", " there", ".", END, "\n", START, "user", "\n", "Hello", END, "\n", *ASSISTANT],
      (*think, "Good", " night", ".", END), ["\n"])


def test_the_tokens_are_those_that_transformers_gives(chat, smollm2_tokenizer):
  for template in (None, QWEN2_SHAPED):
    (example,) = chat(template).examples(TALK)
    assert example.tokens.tolist() == smollm2_tokenizer.apply_chat_template(TALK, return_dict=False)


def test_a_template_without_end_tokens_has_whole_answers(chat, smollm2_tokenizer):
  found = chat("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
               "{% if add_generation_prompt %}assistant:{% endif %}")
  (example,) = found.examples(TALK[:2])
  assert pieces(smollm2_tokenizer, example) == marked(
      ["user", ":", " Hi", "\n", "ass", "istant", ":"], (" Hello", " there", ".", "\n"))
  assert found.end_of_turn is None


def test_an_end_token_that_a_user_typed_changes_nothing_of_what_is_the_assistants(chat, smollm2_tokenizer):
  typed = [{"role": "user", "content": f"say {END}"}, {"role": "assistant", "content": f"{END} it is"}]
  (example,) = chat().examples(typed)
  assert [piece for piece, answer in pieces(smollm2_tokenizer, example) if answer] == [END, " it", " is", END]


def test_no_template_is_one_sentence(chat):
  with pytest.raises(UserError, match=r"a model has no chat template: put one into its HF directory as chat_template"):
    chat("")


@pytest.mark.parametrize("template, why", [
    ("{{ messages[-1].content }}", "does not show where an answer begins"),
    ("{{ raise_exception('never') }}", r"refused by the chat template \(never\)"),
    ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
     "does not show what an assistant says"),
    ("{{ messages[0].content", "refused by the chat template"),
])
def test_a_template_that_does_not_tell_the_answers_is_one_sentence(chat, template, why):
  with pytest.raises(UserError, match=f"the chat template of a model cannot be used .*{why}") as caught:
    chat(template)
  assert "\n" not in str(caught.value)


def test_a_conversation_that_begins_with_an_answer_is_not_rendered(chat):
  with pytest.raises(NotRendered, match="begins with an answer"):
    chat().examples(TALK[1:])


# In the shape of Qwen's templates with tools: what the assistant writes stands in generation blocks, as transformers
# has them, so that its own mask says which tokens those are.
TOOLS_SHAPED = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %} {{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>{% endgeneration %}\n"
    "{% elif m.role != 'developer' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Lima"}}}
CALLING = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Weather in Lima?"},
           {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "I must look."},
           {"role": "tool", "content": '{"degrees": 12}'}, {"role": "assistant", "content": "It is 12 degrees."}]
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},)


@pytest.mark.parametrize("messages, tools", [
    (TALK, ()), (CALLING, TOOLS), (CALLING[1:3], TOOLS), (CALLING, ()), ([*CALLING, *TALK], TOOLS)])
def test_what_is_learnt_is_what_transformers_masks(chat, smollm2_tokenizer, messages, tools):
  (example,) = chat(TOOLS_SHAPED).examples(messages, tools=tools)
  wanted = smollm2_tokenizer.apply_chat_template(messages, tools=list(tools) or None, return_dict=True,
                                                 return_assistant_tokens_mask=True)
  assert example.tokens.tolist() == wanted["input_ids"]
  assert example.answers.astype(int).tolist() == wanted["assistant_masks"]
  assert any(wanted["assistant_masks"])


def test_the_call_and_the_reasoning_are_the_assistants_and_the_tools_answer_is_not(chat, smollm2_tokenizer):
  (example,) = chat(TOOLS_SHAPED).examples(CALLING, tools=TOOLS)
  said = smollm2_tokenizer.decode(example.tokens[example.answers])
  assert said == ('<think>\nI must look.\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Lima"}}'
                  "\n</tool_call><|im_end|>It is 12 degrees.<|im_end|>")


def test_a_turn_of_weight_0_is_read_and_not_learnt(chat, smollm2_tokenizer):
  for template, examples in ((TOOLS_SHAPED, 1), (QWEN3_SHAPED, 1)):
    found = chat(template).examples(TALK, [False, False, False, True])
    assert len(found) == examples
    assert "Hello there." in smollm2_tokenizer.decode(found[0].tokens)
    assert smollm2_tokenizer.decode(found[0].tokens[found[0].answers]).endswith("Good night.<|im_end|>")
    assert "Hello there." not in smollm2_tokenizer.decode(found[0].tokens[found[0].answers])


@pytest.mark.parametrize("messages, tools, template, why", [
    (CALLING[1:3], (), None, "does not show tool calls"),
    ([CALLING[1], {**CALLING[2], "tool_calls": None, "content": "Hm"}], (), None, "not show an answer's reasoning"),
    (TALK[:2], TOOLS, None, "does not show tools"),
    ([{"role": "developer", "content": "Hi"}, *TALK[:2]], (), TOOLS_SHAPED, "not show a message of the role developer"),
    ([*TALK[:2], {"role": "tool", "content": "Hi"}, TALK[3]], (),
     "{% for m in messages if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
     "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "not show a message of the role tool"),
    ([TALK[0], {"role": "system", "content": "Hi"}, TALK[1]], (),
     "{% for m in messages %}{% if m.role != 'system' or loop.first %}<|im_start|>{{ m.role }}\n{{ m.content }}"
     "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
     "not show a message of the role system that is not the first"),
])
def test_what_the_template_leaves_out_is_not_learnt_around(chat, messages, tools, template, why):
  messages = [{name: value for name, value in message.items() if value is not None} for message in messages]
  with pytest.raises(NotRendered, match=why):
    chat(template).examples(messages, tools=tools)


def test_a_template_may_call_reasoning_otherwise(chat, smollm2_tokenizer):
  answer = {"role": "assistant", "content": "Two.", "reasoning_content": "Count on."}
  for name in ("thinking", "reasoning"):
    (example,) = chat(TOOLS_SHAPED.replace("m.reasoning_content", f"m.{name}")).examples([TALK[0], answer])
    said = smollm2_tokenizer.decode(example.tokens[example.answers])
    assert said == "<think>\nCount on.\n</think>\n\nTwo.<|im_end|>"
