"""The op written as its formula, with the whole [T, V] logit matrix in memory."""

import jax
import jax.numpy as jnp


def token_likelihood(hidden: jax.Array, output_matrix: jax.Array, targets: jax.Array) -> tuple:
  """(nll, entropy, lse), each float32 [T], from hidden [T, D], output_matrix [V, D], targets [T]."""
  logits = jnp.einsum("td,vd->tv", hidden, output_matrix, preferred_element_type=jnp.float32,
                      precision=jax.lax.Precision.HIGHEST)
  log_probs = jax.nn.log_softmax(logits, axis=-1)
  entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
  nll = -jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0]
  return nll, entropy, jax.nn.logsumexp(logits, axis=-1)
