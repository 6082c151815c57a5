"""LongPPL (2410.23771): perplexity on the tokens that need the long context.

A token is a key token if the evaluator's loss on it falls by more than 2 nats from a short context to the whole one
(long-short difference, LSD) and is below 2 nats in the whole one (long-context likelihood, LCL). LongPPL is exp of
the policy's mean loss over all key tokens of all documents. The short context of a token is at least `short_window`
tokens and less than a quarter more, as windows move on by that quarter.

Which model the evaluator is decides on the key tokens, so the protocol names it: the policy itself, or one that stays
the same while policies are compared, in the dtype of the policy. Its key tokens are kept.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from etils import epath

from policylong.devices import hosts
from policylong.errors import UserError
from policylong.evaluation import documents
from policylong.evaluation.policy import load_policy
from policylong.evaluation.position_loss import documents_name
from policylong.evaluation.results import Options, Result, check_lengths
from policylong.model.stored import open_model
from policylong.model.tokenizer import beginning
from policylong.screening.long_gap import short_nlls
from policylong.storage.checksums import sha256_of_texts
from policylong.storage.mending import whole_or_gone
from policylong.storage.workdir import read_json, write_json

_LEAST_GAP, _MOST_LOSS = 2.0, 2.0  # nats


def names() -> tuple[str, ...]:
  """Its one task."""
  return ("longppl",)


def claims(task: str) -> bool:
  """Whether it is this."""
  return task in names()


def run(policy, tasks: Sequence[str], options: Options, directory: epath.Path) -> dict[str, dict[str, Result]]:
  """LongPPL, and the share of tokens that are key tokens ("longppl/key_tokens", per cent).

  Raises:
    UserError: bad lengths, no documents of such a length, or an evaluator with other tokens.
  """
  check_lengths(options.lengths, policy.window, policy.name)
  results: dict[str, dict[str, Result]] = {"longppl": {}, "longppl/key_tokens": {}}
  for length in options.lengths:
    if length < 2 * options.short_window:
      raise UserError(f"longppl at length {length} compares with a short context of {options.short_window} tokens: "
                      f"give lengths of at least {2 * options.short_window}, or a shorter short_window")
    rows = documents.read(policy.tokenizer, options, length)
    nll = documents.nlls(policy.token_nlls, rows, directory / "nlls", f"loss at {length}")
    key, evaluator = _key_tokens(policy, options, rows, nll, directory)
    protocol = (f"LongPPL, {documents_name(options)}, short context {options.short_window} tokens, key tokens by "
                f"{evaluator}")
    value = float(np.exp(np.mean(nll[key], dtype=np.float64))) if key.any() else None
    for name, metric, number in (("longppl", "perplexity of key tokens", value),
                                 ("longppl/key_tokens", "% of tokens", 100 * float(key[:, 1:].mean()))):
      results[name][str(length)] = Result(metric, number, len(rows), 0, protocol)
  return results


def key_tokens(long_nll: np.ndarray, short_nll: np.ndarray) -> np.ndarray:
  """bool, of the shape of both: LSD above 2 nats and LCL below 2 nats. NaN is never a key token."""
  return (short_nll - long_nll > _LEAST_GAP) & (long_nll < _MOST_LOSS)


def _key_tokens(policy, options: Options, rows: list[np.ndarray], nll: np.ndarray, directory: epath.Path
                ) -> tuple[np.ndarray, str]:
  """bool[rows, T] and the evaluator's name and dtype; from its folder where they are there already."""
  # A keys_dir is a run's, whose evaluator is always its base model.
  parent = epath.Path(options.keys_dir) if options.keys_dir else (
      directory / "key_tokens" / _evaluator_key(options.evaluator, policy.dtype))
  digest = hashlib.sha256(np.stack(rows).astype("<i4").tobytes()).hexdigest()[:32]
  folder = parent / f"{options.short_window}-{digest}"
  marker = folder / "DONE.json"
  if hosts.is_first():
    whole_or_gone(marker, read_json)
  if not hosts.agreed(marker.exists()):
    evaluator, whole = policy, nll
    if options.evaluator:
      evaluator = load_policy(options.evaluator, dtype=policy.dtype)
      if evaluator.tokenizer.backend_tokenizer.to_str() != policy.tokenizer.backend_tokenizer.to_str():
        raise UserError(f"the evaluator {options.evaluator} has another tokenizer than {policy.name}: LongPPL needs a "
                        "model with the same tokens")
      check_lengths([len(rows[0])], evaluator.window, evaluator.name)
      whole = documents.nlls(evaluator.token_nlls, rows, folder / "long", "evaluator, long")
    begun = len(beginning(evaluator.tokenizer))
    short = documents.nlls(lambda group: short_nlls(evaluator.token_nlls, group, options.short_window, begun), rows,
                           folder / "short", "evaluator, short")
    places = [np.flatnonzero(row).tolist() for row in key_tokens(whole, short)]
    if hosts.is_first():
      write_json(marker, {"evaluator": f"{evaluator.name} in {evaluator.dtype}", "key_tokens": places})
    hosts.barrier("key tokens")
  found = read_json(marker)
  key = np.zeros(nll.shape, bool)
  for row, places in zip(key, found["key_tokens"]):
    row[places] = True
  return key, found["evaluator"]


def _evaluator_key(evaluator: str | None, dtype: str) -> str:
  """A folder's name for an evaluator, by content and dtype; the policy itself is whose the folder above is. Collective.
  """
  if evaluator is None:
    return "own"
  key = bytes(8)
  if hosts.is_first():
    key = bytes.fromhex(sha256_of_texts(json.dumps([open_model(evaluator).identity(), dtype], sort_keys=True))[:16])
  return bytes(hosts.agreed(np.frombuffer(key, np.uint8)).tolist()).hex()
