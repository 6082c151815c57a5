"""Hidden states and an output matrix in; negative log-likelihood, entropy and log-partition out."""

from policylong.likelihood.api import Likelihood, token_likelihood

__all__ = ["Likelihood", "token_likelihood"]
