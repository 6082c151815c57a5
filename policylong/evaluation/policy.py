"""A checkpoint as benchmarks see it: text generation, log-likelihoods, and nothing about where it came from."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from policylong import config as config_lib
from policylong.devices.mesh import make_mesh
from policylong.errors import UserError
from policylong.model.generate import Generator, Request
from policylong.model.qwen import ModelConfig, Params
from policylong.model.stored import StoredModel, open_model
from policylong.screening.scorer import Row, Scorer

# Rows are padded to multiples of it.
_BUCKET = 128


@dataclasses.dataclass(frozen=True)
class Generation:
  """What a prompt was continued with.

  tokens: int32[n], without the token or the tokens of the string that ended it. text: what they say, special tokens
  left out, cut before the first stop string.
  """
  tokens: np.ndarray
  text: str


def _nothing(count: int) -> None:
  """No progress bar."""


class Policy:
  """A model with its tokenizer, ready to generate and to score, on all devices of this process.

  Attributes:
    tokenizer: a transformers fast tokenizer.
    name: where the model came from, for tables.
    window: tokens of a prompt and what follows it at most.
    dtype: of weights and matmul inputs.
  """

  def __init__(self, params: Params, model: ModelConfig, tokenizer, *, name: str, end_tokens: Sequence[int],
               mesh: jax.sharding.Mesh, dtype: str, batch_tokens: int):
    """Puts a copy of the weights in `dtype` on each device, or takes them as they are if they lie so.

    Args:
      params: in any float dtype, anywhere on `mesh`.
      model: their shape.
      tokenizer: the model's.
      name: for tables.
      end_tokens: tokens that end a generation.
      mesh: the devices; rows are spread over those of this process.
      dtype: of weights and matmul inputs.
      batch_tokens: tokens that a device reads at once, 64 or more.
    """
    self.tokenizer, self.name, self.window, self.dtype = tokenizer, name, model.max_positions, dtype
    self._vocab_size, self._end_tokens = model.vocab_size, tuple(end_tokens)
    self._scorer = Scorer(params, model, mesh, dtype=dtype, tokens_per_batch=batch_tokens, bucket_multiple=_BUCKET)
    self._generator = Generator(self._scorer.params, model, self._scorer.mesh, dtype=jnp.dtype(dtype),
                                chunk_tokens=1 << (batch_tokens.bit_length() - 1))

  def generate(self, prompts: Sequence[Sequence[int]], most_new_tokens: int | Sequence[int], *,
               stop: Sequence[str] = (), temperature: float = 0.0, seed: int = 0,
               numbers: Sequence[int] | None = None,
               progress: Callable[[int], None] = _nothing) -> list[Generation]:
    """Continues each prompt to an end token, a stop string or its number of tokens, whichever comes first.

    Args:
      prompts: token ids, one at least for each.
      most_new_tokens: for all, or for each.
      stop: strings that end a generation and are no part of it; one that is a special token ends it as that token.
      temperature: 0 decodes greedily.
      seed: of the draws.
      numbers: of the prompts, 0 to 2^31 - 1; what is drawn for a prompt hangs on the seed and its number, not on which
        others it is asked with. Needed for a temperature above 0.
      progress: called with the number of prompts each time some are done.

    Raises:
      UserError: a prompt is empty, has unknown tokens, or leaves no room for its new tokens.
      ValueError: there are no numbers to draw by.
    """
    if temperature > 0 and numbers is None:
      raise ValueError("a generation that samples needs a number for each prompt")
    most = [most_new_tokens] * len(prompts) if isinstance(most_new_tokens, int) else list(most_new_tokens)
    for i, (prompt, new) in enumerate(zip(prompts, most, strict=True)):
      self._check(f"prompt {i}", prompt, new)
    special = {str(token): i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
    stop_ids = {*self._end_tokens, *(special[string] for string in stop if string in special)}
    strings = [string for string in stop if string and string not in special]

    def finished(_: int, tokens: list[int]) -> bool:
      text = self._text(tokens) if strings else ""
      return any(string in text for string in strings)
    requests = [Request(*each) for each in zip(prompts, most, numbers or [None] * len(prompts), strict=True)]
    found = self._generator.generate(requests, stop_ids=sorted(stop_ids), temperature=temperature, seed=seed,
                                     finished=finished, progress=progress)
    return [self._cut(tokens, strings) for tokens in found]

  def loglikelihoods(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]],
                     progress: Callable[[int], None] = _nothing) -> list[tuple[float, bool]]:
    """For (context, continuation) the continuation's log-probability in nats, and whether it is the greedy one.

    Requests that differ in nothing but the last token of the continuation are read once.

    Args:
      requests: token ids; a context has one at least.
      progress: called with the number of requests each time some are done.

    Raises:
      UserError: a context is empty, a token unknown, or a pair longer than the window without its last token, which is
        not read.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, (context, continuation) in enumerate(requests):
      self._check(f"context {i}", context, max(len(continuation) - 1, 0))
      rows.setdefault((*context, *continuation)[:-1] if continuation else (), []).append(i)
    result: list = [(0.0, True)] * len(requests)
    progress(len(rows.pop((), ())))
    by_count: dict[int, list[tuple[tuple[int, ...], list[int]]]] = {}
    for tokens, members in rows.items():
      count = sum(len(requests[i][1]) for i in members)
      by_count.setdefault(1 << (count - 1).bit_length(), []).append((tokens, members))
    for count, group in sorted(by_count.items()):
      scored = self._choices(requests, group, count)
      for (_, members), (nll, greedy) in zip(group, scored):
        ends = np.cumsum([len(requests[i][1]) for i in members])[:-1]
        for i, of_one, is_greedy in zip(members, np.split(nll, ends), np.split(greedy, ends)):
          result[i] = (-float(of_one.sum(dtype=np.float64)), bool(is_greedy.all()))
      progress(sum(len(members) for _, members in group))
    return result

  def token_nlls(self, rows: Sequence[Sequence[int] | np.ndarray],
                 progress: Callable[[int], None] = _nothing) -> list[np.ndarray]:
    """The nll in nats of each token given those before it, float32[T], NaN at token 0.

    Args:
      rows: token ids, one at least for each.
      progress: called with the number of tokens each time some are done.

    Raises:
      UserError: a row is empty, has unknown tokens or is longer than the window.
    """
    for i, row in enumerate(rows):
      self._check(f"row {i}", row, 0)
    return [nll for _, nll in self._scorer.traces([np.asarray(row, np.int32) for row in rows], progress)]

  def _choices(self, requests, group, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(nll, greedy) of all continuations of each row of a group, one request after another."""
    rows, targets = [], []
    for tokens, members in group:
      positions = [len(requests[i][0]) + k for i in members for k in range(len(requests[i][1]))]
      rows.append(Row(np.asarray(tokens, np.int32), np.asarray(positions, np.int32), self._scorer.bucket(len(tokens))))
      targets.append(np.concatenate([np.asarray(requests[i][1], np.int32) for i in members]))
    return self._scorer.choices(rows, targets, count)

  def _check(self, what: str, tokens: Sequence[int] | np.ndarray, new: int) -> None:
    if not len(tokens):
      raise UserError(f"{what} has no token: give it one at least, the tokenizer's first or end token for example")
    if len(tokens) + new > self.window:
      more = f", and {new} more are to follow" if new else ""
      raise UserError(f"{what} has {len(tokens)} tokens{more}: the window of {self.name} is {self.window} tokens; "
                      "shorten it, or use a model with a longer window")
    if not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
      raise UserError(f"{what} has token ids from {min(tokens)} to {max(tokens)}; {self.name} knows 0 to "
                      f"{self._vocab_size - 1}: was it made with another tokenizer?")

  def _text(self, tokens: Iterable[int]) -> str:
    return self.tokenizer.decode(list(map(int, tokens)), skip_special_tokens=True, clean_up_tokenization_spaces=False)

  def _cut(self, tokens: np.ndarray, strings: Sequence[str]) -> Generation:
    """What stands before the first stop string: all of the text, and the tokens that lie wholly within it."""
    text = self._text(tokens)
    if ends := [found for found in map(text.find, strings) if found >= 0]:
      text = text[:min(ends)]
      # A token may hold the string's beginning and what is before it, or part of a character.
      while not text.startswith(self._text(tokens)):
        tokens = tokens[:-1]
    return Generation(tokens, text)


def cut_middle(tokens: list[int], room: int) -> list[int]:
  """At most `room` tokens: the middle goes, for the question stands at the end and the task at the beginning."""
  return tokens if len(tokens) <= room else tokens[:room - room // 2] + tokens[len(tokens) - room // 2:]


def load_policy(model: str | StoredModel, *, dtype: str = "bfloat16", batch_tokens: int = 2048,
                mesh: jax.sharding.Mesh | None = None) -> Policy:
  """Opens a checkpoint for benchmarks.

  Args:
    model: an HF directory, a GGUF file, the working directory of a run (its newest checkpoint; the run may go on
      meanwhile), one checkpoint of it (WORKDIR/checkpoints/STEP), a directory of `convert hf-to-orbax`; or one of
      these that was opened.
    dtype: of weights and matmul inputs; logits and reductions are float32.
    batch_tokens: tokens that a device reads at once.
    mesh: the devices; None takes all.

  Raises:
    UserError: nothing that can be read is there.
  """
  stored = model if isinstance(model, StoredModel) else open_model(model)
  mesh = mesh or make_mesh(config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1))
  # Read in the dtype that is kept, the weights are on a device once, and in no other dtype before.
  return Policy(stored.load(jnp.dtype(dtype), mesh), stored.config, stored.tokenizer, name=stored.name,
                end_tokens=sorted(stored.end_tokens), mesh=mesh, dtype=dtype, batch_tokens=batch_tokens)
