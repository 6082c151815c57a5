"""A `Policy` as one of lm-eval's models: every task that lm-eval knows runs on it.

To lm-eval there is one process (its own way to split a task gathers with torch). Every process builds all of a
task's requests, answers its share of them and reads the others' answers, so all end with the same metrics.
"""

import collections
import hashlib
import json
import logging
from collections.abc import Callable, Sequence

import jinja2
from etils import epath
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from policylong.errors import UserError
from policylong.evaluation.shared_work import answered, number_of
from policylong.model.tokenizer import beginning, encode, encode_begun

log = logging.getLogger(__name__)

# Tokens to generate where a task does not say: lm-eval's own number.
_MOST_NEW_TOKENS = 256
# What a task may say of sampling that a policy does not know; these values change nothing.
_WITHOUT_EFFECT = {"top_p": (None, 1, 1.0), "top_k": (None, 0, -1), "min_p": (None, 0, 0.0)}


class PolicyLM(TemplateLM):
  """Answers lm-eval's requests with a policy.

  A prompt that does not fit the window loses tokens on its left, all but a BOS, and its document counts as truncated.
  The last token of what is scored is not read, so that context and continuation have the window and one token, as in
  lm-eval's own models.
  """

  def __init__(self, policy, directory: epath.Path, seed: int = 0):
    """Wraps a policy.

    Args:
      policy: what answers.
      directory: where its answers are kept; no other policy's.
      seed: of tasks which sample.

    Raises:
      UserError: its tokenizer has neither a begin nor an end token, which stands where a context is empty.
    """
    super().__init__()
    self._policy = policy
    self._directory = directory
    self._seed = seed
    self.tokenizer = policy.tokenizer
    self._beginning = beginning(policy.tokenizer).tolist()
    self._warned: set[str] = set()
    # {name of a task: ids of its documents that were truncated}
    self.truncated: dict[str, set[int]] = collections.defaultdict(set)
    if self.prefix_token_id is None:
      raise UserError(f"the tokenizer of {policy.name} has neither a bos_token nor an eos_token: name one in its "
                      "tokenizer_config.json, as it is what an empty context stands on")

  @property
  def max_length(self) -> int:
    """The window in tokens, prompt and answer together."""
    return self._policy.window

  @property
  def eot_token_id(self) -> int | None:
    """The end token."""
    return self.tokenizer.eos_token_id

  @property
  def prefix_token_id(self) -> int | None:
    """What an empty context is replaced by: the begin token, or the end token where there is none."""
    begin = self.tokenizer.bos_token_id
    return self.eot_token_id if begin is None else begin

  @property
  def tokenizer_name(self) -> str:
    """Of the tokenizer and its chat template by content: lm-eval keys cached requests by it."""
    told = self.tokenizer.backend_tokenizer.to_str() + str(self.tokenizer.chat_template)
    return "policylong-" + hashlib.sha256(told.encode()).hexdigest()[:16]

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
    """Token ids, begun as the tokenizer begins a text, unless the text starts with the begin token already."""
    if add_special_tokens is None:
      begin = self.tokenizer.bos_token
      add_special_tokens = not (begin and string.startswith(begin))
    return encode_begun(self.tokenizer, string).tolist() if add_special_tokens else encode(
        self.tokenizer, string)[0].tolist()

  def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """The messages as one prompt, which ends where the model is to go on.

    Raises:
      UserError: the template refuses them, e.g. a system message where it knows none.
    """
    try:
      return self.tokenizer.apply_chat_template(chat_history, tokenize=False,
                                                add_generation_prompt=add_generation_prompt,
                                                continue_final_message=not add_generation_prompt)
    except jinja2.TemplateError as error:
      raise UserError(f"the chat template of {self._policy.name} refuses a task's messages ({error}): run this task "
                      "without --apply_chat_template") from error

  def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    """(log-probability in nats, whether greedy decoding gives it) of each request's (context, continuation)."""
    answers = self._answered(requests, [request.args for request in requests], self._pairs, "loglikelihood")
    return [(value, greedy) for value, greedy in answers]

  def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
    """Log-probability in nats of each text, after the prefix token.

    A text over the window is cut into windows that overlap by one token, and each token is predicted once.
    """
    return self._answered(requests, [request.args for request in requests], self._texts, "loglikelihood_rolling")

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    """What the policy writes after each context, before the first of the task's stop strings."""
    # A request that samples comes several times to be answered several times.
    times: collections.Counter[tuple[str, str]] = collections.Counter()
    questions = []
    for context, arguments in (request.args for request in requests):
      arguments = normalize_gen_kwargs(arguments, _MOST_NEW_TOKENS)
      question = (context, json.dumps(arguments, sort_keys=True, default=str))
      times[question] += 1
      questions.append((*question, (self._seed, times[question]) if arguments["do_sample"] else ()))
    return self._answered(requests, questions, self._generations, "generate_until")

  def _loglikelihood_tokens(self, requests: list[tuple], **kwargs) -> list[tuple[float, bool]]:
    """lm-eval's name for scoring ((context, continuation), context tokens, continuation tokens)."""
    return self._sums([self._windows(context, continuation) for _, context, continuation in requests])

  def _answered(self, requests: Sequence[Instance], questions: Sequence[tuple], answer, kind: str) -> list:
    """The answers to `questions`; `answer` gives (answer, whether truncated) for a list of them."""
    found = answered(questions, answer, self._directory / kind, kind)
    for request, (_, truncated) in zip(requests, found, strict=True):
      if truncated:
        self.truncated[request.task_name].add(request.doc_id)
    return [value for value, _ in found]

  def _pairs(self, questions: list[tuple[str, str]], progress: Callable[[int], None]) -> list[tuple]:
    tokens = [self._encode(context, continuation) for context, continuation in questions]
    truncated = [len(context) + len(continuation) > self.max_length + 1 for context, continuation in tokens]
    self._warn_of(truncated)
    sums = self._sums([self._windows(*pair) for pair in tokens], progress)
    return list(zip(sums, truncated))

  def _texts(self, questions: list[tuple[str]], progress: Callable[[int], None]) -> list[tuple]:
    texts = [self.tok_encode(text, add_special_tokens=False) for text, in questions]
    sums = self._sums([self._rolled(self.prefix_token_id, tokens) for tokens in texts], progress)
    return [(value, False) for value, _ in sums]

  def _generations(self, questions: list[tuple[str, str, tuple]], progress: Callable[[int], None]) -> list[tuple]:
    prompts, most, truncated, alike = [], [], [], collections.defaultdict(list)
    for i, (context, arguments, _) in enumerate(questions):
      arguments = json.loads(arguments)
      tokens = self.tok_encode(context) or [self.prefix_token_id]
      # As many as asked for, but the prompt keeps half of the window, and all that it needs of what is free.
      new = max(1, min(arguments["max_gen_toks"], max(self.max_length - len(tokens), self.max_length // 2)))
      truncated.append(len(tokens) + new > self.max_length)
      prompts.append(self._cut(tokens, self.max_length - new))
      most.append(new)
      alike[self._manner(arguments)].append(i)
    self._warn_of(truncated)
    texts = [""] * len(questions)
    for (stop, temperature), group in alike.items():
      written = self._policy.generate([prompts[i] for i in group], [most[i] for i in group], stop=stop,
                                      temperature=temperature, seed=self._seed,
                                      numbers=[number_of(questions[i]) for i in group], progress=progress)
      for i, generation in zip(group, written, strict=True):
        texts[i] = generation.text
    return list(zip(texts, truncated))

  def _manner(self, arguments: dict) -> tuple[tuple[str, ...], float]:
    """The stop strings and the temperature of a request."""
    stop = tuple(text for text in arguments["until"] if text)
    if not arguments["do_sample"]:
      return stop, 0.0
    for name, harmless in _WITHOUT_EFFECT.items():
      if arguments.get(name) not in harmless:
        self._warn(f"a task samples with {name} = {arguments[name]}, which is left out: only the temperature is used")
    return stop, float(arguments.get("temperature", 1.0))

  def _encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of a pair; there is always one to stand on before the first that is scored."""
    if context:
      context_tokens, tokens = self._encode_pair(context, continuation)
    else:
      context_tokens, tokens = [], self.tok_encode(continuation, add_special_tokens=False)
    if context_tokens:
      return context_tokens, tokens
    if tokens[:1] == [self.prefix_token_id]:
      return tokens[:1], tokens[1:]
    return [self.prefix_token_id], tokens

  def _windows(self, context: list[int], continuation: list[int]) -> list[tuple[list[int], list[int]]]:
    """The pair as one that fits the window; as several where the continuation alone does not."""
    if not continuation:
      return []
    room = self.max_length + 1 - len(continuation)
    return [(self._cut(context, room), continuation)] if room > 0 else self._rolled(context[-1], continuation)

  def _cut(self, tokens: list[int], room: int) -> list[int]:
    """At most `room` tokens: the last ones, behind what the tokenizer begins every text with if they begin so."""
    begun = self._beginning
    kept = begun if tokens[:len(begun)] == begun and len(begun) < room else []
    return tokens if len(tokens) <= room else kept + tokens[len(tokens) - room + len(kept):]

  def _rolled(self, before: int, tokens: list[int]) -> list[tuple[list[int], list[int]]]:
    windows = utils.get_rolling_token_windows(tokens, before, max_seq_len=self.max_length, context_len=1)
    return [utils.make_disjoint_window(window) for window in windows]

  def _sums(self, windows: Sequence[list[tuple[list[int], list[int]]]],
            progress: Callable[[int], None] = lambda count: None) -> list[tuple[float, bool]]:
    """The sum over each one's windows, and whether all of them are greedy; progress counts windows."""
    flat = [window for each in windows for window in each]
    scores = iter(self._policy.loglikelihoods(flat, progress=progress) if flat else [])
    found = []
    for each in windows:
      mine = [next(scores) for _ in each]
      found.append((float(sum(value for value, _ in mine)), all(bool(greedy) for _, greedy in mine)))
    return found

  def _warn_of(self, truncated: Sequence[bool]) -> None:
    if any(truncated):
      self._warn(f"a prompt is longer than the window of {self.max_length} tokens with its answer: such prompts are "
                 "cut on the left, and counted")

  def _warn(self, sentence: str) -> None:
    if sentence not in self._warned:
      self._warned.add(sentence)
      log.warning("%s", sentence)
