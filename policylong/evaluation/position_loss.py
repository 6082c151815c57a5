"""The loss of held-out text by position: does the policy use what stands further back?

A policy that uses a long context loses less on later tokens. Buckets of positions are octaves: 1-255, 256-511,
512-1023, ... (token 0 is predicted by nothing).
"""

import itertools
from collections.abc import Sequence

import numpy as np
from etils import epath

from policylong.evaluation import documents
from policylong.evaluation.results import Options, Result, check_lengths

_FIRST = 256


def names() -> tuple[str, ...]:
  """Its one task."""
  return ("position_loss",)


def claims(task: str) -> bool:
  """Whether it is this."""
  return task in names()


def run(policy, tasks: Sequence[str], options: Options, directory: epath.Path) -> dict[str, dict[str, Result]]:
  """Mean loss of all tokens ("position_loss") and of those of each bucket ("position_loss/256-511"), nats a token.

  Raises:
    UserError: bad lengths, or no documents of such a length.
  """
  check_lengths(options.lengths, policy.window, policy.name)
  results: dict[str, dict[str, Result]] = {}
  for length in sorted(options.lengths):
    rows = documents.read(policy.tokenizer, options, length)
    nll = documents.nlls(policy.token_nlls, rows, directory / "nlls", f"loss at {length}")
    protocol = f"loss by position, {documents_name(options)}"
    parts = {"position_loss": nll[:, 1:]}
    parts |= {f"position_loss/{low}-{high - 1}": nll[:, low:high] for low, high in buckets(length)}
    for name, values in parts.items():
      value = float(np.mean(values, dtype=np.float64))
      results.setdefault(name, {})[str(length)] = Result("nats a token", value, len(rows), 0, protocol)
  return results


def buckets(length: int) -> list[tuple[int, int]]:
  """[low, high) of positions: octaves that cover 1 .. length - 1."""
  edges = [1]
  while edges[-1] < length:
    edges.append(min(length, _FIRST if len(edges) == 1 else 2 * edges[-1]))
  return list(itertools.pairwise(edges))


def documents_name(options: Options) -> str:
  """Where the documents come from, as the table says it."""
  return epath.Path(options.documents.path).name
