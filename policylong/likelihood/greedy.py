"""Whether tokens are the most likely ones, beside their nll: for a few positions, with all logits of these at hand.

Letters: T tokens, D model, V vocabulary.
"""

import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Bool, Float, Int

from policylong.likelihood.streaming import logits_of, map_tokens

# Rows of logits held at a time: of 150,000 float32 each they are 37 MB.
_BLOCK = 64


def greedy_likelihood(hidden: Float[Array, "*tokens D"], output_matrix: Float[Array, "V D"],
                      targets: Int[Array, "*tokens"]) -> tuple[Float[Array, "*tokens"], Bool[Array, "*tokens"]]:
  """nll of each target in nats, float32, and whether greedy decoding would choose it (of equal logits the first).

  Args:
    hidden: final hidden states, after the last norm.
    output_matrix: one row a token of the vocabulary.
    targets: rows of the matrix, 0 .. V - 1.
  """
  def block(arrays):
    states, wanted = arrays
    logits = logits_of(states, output_matrix)
    picked = jnp.take_along_axis(logits, wanted[:, None], axis=1)[:, 0]
    return logsumexp(logits, axis=-1) - picked, jnp.argmax(logits, axis=-1) == wanted
  nll, greedy = map_tokens(block, (hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)), _BLOCK)
  return nll.reshape(targets.shape), greedy.reshape(targets.shape)
