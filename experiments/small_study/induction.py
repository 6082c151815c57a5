"""Fresh weights that can already look up what followed the same token before.

Looking up is what attention is for and what the study asks of its models, but the two heads that do it together (an
induction circuit, Olsson et al. 2022, arXiv 2209.11895) learn nothing before both are there, and in the minutes that
the base model has they did not appear (base.py). So they are put into the first two layers, and training starts there;
every weight is trained, as ever.

Layer 0, a head of each group of query heads: attends to the token before, by its biases and RoPE alone, and writes what
that token is into directions of its own. Layer 1, the same heads: the query is what this token is, the key what came
before that one, so it attends behind the earlier places of the same token, and writes what stands there.
"""

import jax
import numpy as np

from policylong.model import rope
from policylong.model.qwen import ModelConfig, Params, init_params

# The attention logit by which the token before is ahead of its neighbours.
_AHEAD = 6.0
# RoPE turns what is compared: only pairs that turn by less than this (radians) within the context take part.
_TURN = 0.5
# Tried on lists of random words told again, before any training: with these the model says the word that comes next in
# 53 to 81% of the places of lists of 7 to 100 words. The embedding is the ordinary one times _EMBEDDING, since what is
# looked up must stand out in the logits.
_EMBEDDING, _BEFORE, _COMPARED, _COPIED = 3.0, 0.1, 3.0, 0.8


def init_with_induction(config: ModelConfig, key: jax.Array) -> Params:
  """`init_params` in float32, the circuit put in. The model must have biases at q and k, and no norm there."""
  params = jax.tree.map(np.array, init_params(config, key, np.float32))
  layers, size = params["layers"], config.embed_dim
  params["embedding"] *= _EMBEDDING
  groups, half = config.num_kv_heads, config.head_dim // 2
  # The key serves twice; the committed base model came of it so.
  basis, _ = np.linalg.qr(np.asarray(jax.random.normal(key, (size, size)), np.float64))
  turns = rope.frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
  slow = np.flatnonzero(turns * config.max_positions < _TURN)
  compared = np.concatenate([slow, slow + half])
  width = len(compared)
  strength = np.sqrt(_AHEAD * np.sqrt(config.head_dim) / np.sum(1 - np.cos(turns)))
  for group in range(groups):
    head = group * config.num_heads // groups
    token, before = np.split(basis[:, 2 * width * group:2 * width * (group + 1)], 2, axis=1)
    copied = basis[:, config.head_dim * group:config.head_dim * (group + 1)]

    layers["q"][0, :, head], layers["k"][0, :, group] = 0, 0
    layers["q_bias"][0, head] = strength * np.concatenate([np.cos(turns), -np.sin(turns)])
    layers["k_bias"][0, group] = strength * np.concatenate([np.ones(half), np.zeros(half)])
    layers["v"][0, :, group, :width] = token
    layers["out"][0, head, :width] = _BEFORE * before.T

    layers["q"][1, :, head], layers["k"][1, :, group] = 0, 0
    layers["q"][1, :, head, compared], layers["k"][1, :, group, compared] = _COMPARED * token.T, _COMPARED * before.T
    layers["v"][1, :, group] = copied
    layers["out"][1, head] = _COPIED * copied.T
  return params
