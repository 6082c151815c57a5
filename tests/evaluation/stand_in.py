"""Policies that are no model: what they answer or lose is known by hand; and a tokenizer of single bytes."""

import hashlib
import re

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from policylong.evaluation.policy import Generation

END = "<|end|>"
CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|end|>{% endfor %}" \
       "{% if add_generation_prompt %}[assistant] {% endif %}"


def byte_tokenizer(chat_template=CHAT, begin=None, merges=()) -> PreTrainedTokenizerFast:
  """A token a byte, then one for each merge, then the end token, then a begin token if it is named."""
  words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
  backend = Tokenizer(BPE({word: i for i, word in enumerate(words)}, list(merges)))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (END, begin) if text])
  return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, bos_token=begin, chat_template=chat_template,
                                 clean_up_tokenization_spaces=False)


class StandIn:
  """Knows what stands in its window as "the letter is X", and else likes vowels.

  The log-probability of a token is -0.5 for a letter that the context names so, -1 for a vowel and -2 for the rest;
  it is greedy where all tokens score -1 or more. It writes "The correct answer is (X)", or `says`; where it samples, a
  full stop and what it draws by after that.
  """

  name = "stand-in"

  def __init__(self, window=4096, says=None, **tokenizer):
    self.tokenizer = byte_tokenizer(**tokenizer)
    self.window = window
    self.says = says
    self.asked = []    # (context, continuation) of loglikelihoods, in tokens
    self.written = []  # (prompt, most new tokens, stop, temperature) of generate

  def loglikelihoods(self, requests, progress=lambda count: None):
    found = []
    for context, continuation in requests:
      assert len(context) >= 1 and len(continuation) >= 1 and len(context) + len(continuation) - 1 <= self.window
      self.asked.append((list(context), list(continuation)))
      known = self._known(context)
      scores = [-0.5 if letter == known else -1.0 if letter.lower() in "aeiou" else -2.0
                for letter in (self.tokenizer.decode([token]) for token in continuation)]
      found.append((sum(scores), min(scores) >= -1))
      progress(1)
    return found

  def generate(self, prompts, most_new_tokens, *, stop=(), temperature=0.0, seed=0, numbers=None,
               progress=lambda count: None):
    most = [most_new_tokens] * len(prompts) if isinstance(most_new_tokens, int) else most_new_tokens
    assert numbers is None or all(0 <= number < 2 ** 31 for number in numbers)
    draws = [f". Drawn by {seed} {number}" for number in numbers] if temperature else [""] * len(prompts)
    found = []
    for prompt, new, draw in zip(prompts, most, draws, strict=True):
      assert len(prompt) >= 1 and new >= 1 and len(prompt) + new <= self.window
      self.written.append((list(prompt), new, tuple(stop), temperature))
      says = self.says(self.tokenizer.decode(prompt)) if self.says else f"The correct answer is ({self._known(prompt)})"
      says += draw
      tokens = self.tokenizer(says).input_ids[:new]
      text = self.tokenizer.decode(tokens)
      for end in stop:
        text = text.partition(end)[0]
      found.append(Generation(np.array(tokens, np.int32), text))
      progress(1)
    return found

  def _known(self, tokens):
    named = re.search("the letter is (.)", self.tokenizer.decode(tokens))
    return named and named[1]


class Answering:
  """Answers each prompt, decoded, by a function; counts what it is asked."""

  name, window = "stand-in", 8192

  def __init__(self, tokenizer, answer):
    self.tokenizer, self._answer, self.asked = tokenizer, answer, []

  def generate(self, prompts, most_new_tokens, *, stop=(), temperature=0.0, seed=0, progress=lambda count: None):
    texts = [self.tokenizer.decode(prompt) for prompt in prompts]
    self.asked += list(zip(texts, [most_new_tokens] * len(texts), map(len, prompts)))
    assert all(len(prompt) + most_new_tokens <= self.window for prompt in prompts)
    return [Generation(np.zeros(0, np.int32), self._answer(text)) for text in texts]


class Losing:
  """The loss of a token is a hash of it and of how much precedes it, 0 to 8 nats."""

  name, window = "losing", 8192

  def __init__(self, tokenizer, salt="", dtype="bfloat16"):
    self.tokenizer, self._salt, self.dtype, self.rows = tokenizer, salt, dtype, 0

  def token_nlls(self, rows, progress=lambda count: None):
    self.rows += len(rows)
    return [np.array([np.nan, *(self.nll(row, t) for t in range(1, len(row)))], np.float32) for row in rows]

  def nll(self, row, t):
    digest = hashlib.sha256(f"{self._salt} {row[t]} {row[t - 1]} {min(t, 40) // 10} {t // 64}".encode()).digest()
    return int.from_bytes(digest[:4], "little") / 2**32 * 8
