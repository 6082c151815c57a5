"""Random numbers by purpose: one seed in the config, no global state, the same in every process."""

import hashlib

import numpy as np


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
  """The generator of one purpose, such as ("control", round, document id), whenever and wherever it is asked."""
  digest = hashlib.sha256("/".join(map(str, [seed, *purpose])).encode()).digest()
  return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16])))
