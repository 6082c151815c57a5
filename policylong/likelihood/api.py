"""Likelihood of tokens under an output matrix: one op, several implementations.

Letters: T tokens, D model, V vocabulary.
"""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from policylong.errors import UserError
from policylong.likelihood import reference

IMPLEMENTATIONS = {"reference": reference.token_likelihood}


class Likelihood(NamedTuple):
  """What a prediction says, in nats: of the target, of itself, and its log-partition."""
  nll: Float[Array, "..."]
  entropy: Float[Array, "..."]
  lse: Float[Array, "..."]


def token_likelihood(hidden: Float[Array, "*tokens D"], output_matrix: Float[Array, "V D"],
                     targets: Int[Array, "*tokens"], *, implementation: str | None = None) -> Likelihood:
  """nll of each target, entropy of each prediction, and logsumexp of the logits."""
  implementation = implementation or "reference"
  if implementation not in IMPLEMENTATIONS:
    raise UserError(f"likelihood implementation {implementation!r} does not exist: "
                    f"use one of {', '.join(IMPLEMENTATIONS)}")
  D = hidden.shape[-1]
  values = IMPLEMENTATIONS[implementation](hidden.reshape(-1, D), output_matrix, targets.reshape(-1))
  return jax.tree.map(lambda x: x.reshape(targets.shape), Likelihood(*values))
