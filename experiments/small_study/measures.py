"""Everything that is measured of a trained cell, as {name: number}."""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.small_study import tasks
from experiments.small_study.corpora import speeches
from policylong.evaluation.policy import Policy
from policylong.evaluation.position_loss import buckets
from policylong.model.stored import open_model
from policylong.model.tokenizer import encode
from policylong.screening.long_gap import short_nlls

SHORT_WINDOW = 512


def of_policy(policy: Policy, lengths: Sequence[int], prompts: int, documents: int) -> dict[str, float]:
  """Tasks and losses of a model that reads max(lengths) tokens; `documents` held-out speeches, `prompts` a task.

  loss/A-B: nats a token at positions A to B of held-out speeches. gap/L: how much less is lost on the tokens from
  SHORT_WINDOW to L with all that precedes them than with SHORT_WINDOW tokens (nats a token).
  """
  numbers = tasks.measure(policy, lengths, prompts)
  longest = max(lengths)
  rows = [tokens for _, text in speeches(held_out=True)
          if len(tokens := encode(policy.tokenizer, text)[0][:longest]) == longest][:documents]
  nlls = np.stack(policy.token_nlls(rows))
  short = np.stack(short_nlls(policy.token_nlls, rows, SHORT_WINDOW))
  for low, high in buckets(longest):
    numbers[f"loss/{low}-{high - 1}"] = float(nlls[:, low:high].mean(dtype=np.float64))
  for length in lengths:
    if length > SHORT_WINDOW:
      numbers[f"gap/{length}"] = float(np.nanmean((short - nlls)[:, SHORT_WINDOW:length], dtype=np.float64))
  return numbers


def open_for_length(path: pathlib.Path, length: int, mesh: jax.sharding.Mesh, rope_theta: float) -> Policy:
  """The model in an HF directory or a run, made to read `length` tokens whether it was trained to or not."""
  stored = open_model(path)
  config = stored.config.with_rope(theta=rope_theta, yarn_factor=None).trained_on(length)
  return Policy(stored.load(jnp.float32, mesh), config, stored.tokenizer, name=stored.name,
                end_tokens=sorted(stored.end_tokens), mesh=mesh, dtype="bfloat16", batch_tokens=4096)
