"""What the tokenizer's chat template makes of a conversation, and which of its tokens are the assistant's.

A template is a program that turns messages into one text; it does not say where an answer begins and ends.
That is found by rendering prefixes. The conversation up to an answer, with the generation prompt, is what the model is
given when it has to answer; what the template adds to it when the answer is there is what the model should write.
White space after the last special token of an answer is not part of it: generation stops at that token.

Some templates show earlier answers otherwise than the last one (without its reasoning, say), so that the prefixes are
not beginnings of the whole. A conversation is then one example for each answer, as the model would meet it.
"""

import dataclasses

import jinja2
import numpy as np
import transformers

from policylong.errors import UserError
from policylong.model.tokenizer import encode

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
    try:
      (probe,) = self.examples(_PROBE)
      if not probe.answers.any():
        raise NotRendered("it does not show what an assistant says")
    except NotRendered as error:
      raise UserError(f"the chat template of {name} cannot be used for fine-tuning: {error}") from error
    last = int(probe.tokens[probe.answers][-1])
    # The special token that ends an answer, where the template writes one.
    self.end_of_turn = last if last in self._special else None

  def render(self, messages: list[dict[str, str]], prompt: bool = False) -> str:
    """The text of the messages; with `prompt`, up to where the assistant's next words would stand.

    Raises:
      NotRendered: the template refuses them.
    """
    try:
      return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
      reason = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise NotRendered(f"refused by the chat template ({reason})") from error

  def examples(self, messages: list[dict[str, str]]) -> list[Example]:
    """The conversation as one example or, where the template makes it necessary, one for each answer.

    Raises:
      NotRendered: the template refuses it or does not show where an answer begins.
    """
    if messages[0]["role"] == "assistant":
      raise NotRendered("begins with an answer")  # to what, no template can tell
    whole = self.render(messages)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spans, texts = [], []
    for i in turns:
      before, with_answer = self.render(messages[:i], prompt=True), self.render(messages[:i + 1])
      if not with_answer.startswith(before):
        raise NotRendered("the chat template does not show where an answer begins")
      spans.append((len(before), len(with_answer)))
      texts.append(with_answer)
    if all(whole.startswith(text) for text in texts):
      return [self._example(whole, spans)]
    return [self._example(text, [span]) for text, span in zip(texts, spans)]

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
