"""Hidden states and an output matrix in; negative log-likelihood, entropy and log-partition out."""

from policylong.likelihood.api import (
  IMPLEMENTATIONS,
  Likelihood,
  next_token_loss,
  sharded_token_likelihood,
  token_likelihood,
)

__all__ = ["IMPLEMENTATIONS", "Likelihood", "next_token_loss", "sharded_token_likelihood",
           "token_likelihood"]
