"""PolicyLong: a language model chooses its own long training data, round after round."""

import os

__version__ = "0.1.0"

# XLA's CPU compiler takes vectors of 256 bits unless it is asked for more; with 512 the exponentials of attention take
# half the time and a training step five sixths. JAX reads this once, when it looks for its devices.
if "xla_cpu_prefer_vector_width" not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_prefer_vector_width=512"
