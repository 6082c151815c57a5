"""What the tokenizer's chat template makes of a conversation, and which of its tokens are the assistant's.

A template is a program that turns messages into one text; it does not say where an answer begins and ends.
That is found by rendering prefixes. The conversation up to an answer, with the generation prompt, is what the model is
given when it has to answer; what the template adds to it when the answer is there is what the model should write.
White space after the last special token of an answer is not part of it: generation stops at that token.

What else a conversation holds (tools, tool calls, reasoning, roles, a system message at an odd place) is given to the
template, and whether it knows it is found by rendering without it: where the text is the same, nothing of the
conversation is learnt, for the answer would follow from what the model does not see, or be half of one.

Some templates show earlier answers otherwise than the last one (without its reasoning, say), so that the prefixes are
not beginnings of the whole. A conversation is then one example for each answer, as the model would meet it.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np
import transformers

from policylong.errors import UserError
from policylong.model.tokenizer import encode

# What an answer's reasoning is called, whatever the template calls it.
REASONING = "reasoning_content"
_PROBE = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]


class NotRendered(Exception):
  """A conversation that the template refuses, or of which it does not show where the answers are; with the reason."""


@dataclasses.dataclass(frozen=True)
class Example:
  """Token ids int32[T] of a rendered conversation, and bool[T]: which of them the assistant wrote."""
  tokens: np.ndarray
  answers: np.ndarray


class Chat:
  """A tokenizer with a chat template that was found usable."""

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast, name: str):
    """Tries the template on a conversation of two messages.

    Args:
      tokenizer: with its template.
      name: of the model, for the sentence.

    Raises:
      UserError: there is no template, or it does not show where answers are.
    """
    if not tokenizer.chat_template:
      raise UserError(f"the tokenizer of {name} has no chat template: put one into its HF directory as "
                      "chat_template.jinja, or start from a model that has one")
    self._tokenizer = tokenizer
    self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    self._reasoning = REASONING
    self._reasoning = self._name_of_reasoning()
    try:
      (probe,) = self.examples(_PROBE)
      if not probe.answers.any():
        raise NotRendered("it does not show what an assistant says")
    except NotRendered as error:
      raise UserError(f"the chat template of {name} cannot be used for fine-tuning: {error}") from error
    last = int(probe.tokens[probe.answers][-1])
    # The special token that ends an answer, where the template writes one.
    self.end_of_turn = last if last in self._special else None

  def render(self, messages: Sequence[Mapping], prompt: bool = False, tools: Sequence[Mapping] = ()) -> str:
    """The text of the messages; with `prompt`, up to where the assistant's next words would stand.

    Raises:
      NotRendered: the template refuses them.
    """
    if self._reasoning != REASONING:
      messages = [{self._reasoning if name == REASONING else name: value for name, value in message.items()}
                  for message in messages]
    try:
      return self._tokenizer.apply_chat_template(list(messages), tools=list(tools) or None, tokenize=False,
                                                 add_generation_prompt=prompt)
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
      reason = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise NotRendered(f"refused by the chat template ({reason})") from error

  def examples(self, messages: Sequence[Mapping], learnt: Sequence[bool] | None = None,
               tools: Sequence[Mapping] = ()) -> list[Example]:
    """The conversation as one example or, where the template makes it necessary, one for each answer.

    Args:
      messages: as transformers' chat templates take them, an answer's reasoning as "reasoning_content".
      learnt: for each message whether it is an answer to be learnt; None: all answers.
      tools: that the assistant may call.

    Raises:
      NotRendered: the template refuses it, leaves out a part of it, or does not show where an answer begins.
    """
    if messages[0]["role"] == "assistant":
      raise NotRendered("begins with an answer")  # to what, no template can tell
    if learnt is None:
      learnt = [message["role"] == "assistant" for message in messages]
    turns = [i for i, wanted in enumerate(learnt) if wanted]
    if not turns:
      raise NotRendered("has no answer to be learnt")
    whole = self.render(messages, tools=tools)
    if tools and whole == self._render_or_none(messages):
      raise NotRendered("the chat template does not show tools")
    spans, texts, checked = [], [], 0
    for i in turns:
      before = self.render(messages[:i], prompt=True, tools=tools)
      with_answer = self.render(messages[:i + 1], tools=tools)
      if not with_answer.startswith(before):
        raise NotRendered("the chat template does not show where an answer begins")
      self._check_shown(messages[:i + 1], checked, tools, with_answer)
      checked = i + 1
      spans.append((len(before), len(with_answer)))
      texts.append(with_answer)
    if all(whole.startswith(text) for text in texts):
      return [self._example(whole, spans)]
    return [self._example(text, [span]) for text, span in zip(texts, spans)]

  def _check_shown(self, messages: Sequence[Mapping], start: int, tools: Sequence[Mapping], text: str) -> None:
    """Raises NotRendered where the text of messages would be the same without a part of one of those from `start` on.

    The last one is an answer. Reasoning is looked for in it only: templates leave it out of earlier ones on purpose.
    """
    for i, message in enumerate(messages[start:], start):
      role, content = message["role"], message["content"].strip()
      changes = [({"tool_calls": None}, "tool calls")] if message.get("tool_calls") else []
      if message.get(REASONING) and i == len(messages) - 1:
        changes.append(({REASONING: None}, "an answer's reasoning"))
      if content and (role not in ("user", "assistant") or content not in text):
        place = " that is not the first" if role == "system" and i else ""
        what = "what an assistant says" if role == "assistant" else f"a message of the role {role}{place}"
        changes.append(({"content": message["content"] + "?"}, what))
      for change, what in changes:
        changed = {name: value for name, value in {**message, **change}.items() if value is not None}
        if self._render_or_none([*messages[:i], changed, *messages[i + 1:]], tools) == text:
          raise NotRendered(f"the chat template does not show {what}")

  def _render_or_none(self, messages: Sequence[Mapping], tools: Sequence[Mapping] = ()) -> str | None:
    try:
      return self.render(messages, tools=tools)
    except NotRendered:
      return None

  def _name_of_reasoning(self) -> str:
    """The field by which the template knows an answer's reasoning: it writes another text with it than without."""
    without = self._render_or_none(_PROBE)
    for name in (REASONING, "thinking", "reasoning"):
      if self._render_or_none([_PROBE[0], {**_PROBE[1], name: "Because."}]) not in (without, None):
        return name
    return REASONING

  def _example(self, text: str, spans: list[tuple[int, int]]) -> Example:
    tokens, offsets = encode(self._tokenizer, text)
    answers = np.zeros(len(tokens), bool)
    for start, end in spans:
      inside = np.flatnonzero((offsets[:, 0] >= start) & (offsets[:, 1] <= end))
      special = [at for at in inside if int(tokens[at]) in self._special]
      if special and not text[offsets[special[-1], 1]:end].strip():
        inside = inside[inside <= special[-1]]
      answers[inside] = True
    return Example(tokens, answers)
