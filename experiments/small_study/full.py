"""The study with every method, longer training and four seeds: an estimated nine hours on 2 CPU cores, not run.

  python -m experiments.small_study --size=full
"""

from experiments.small_study.study import Size
from policylong.config import CORPUS_METHODS

SIZE = Size("full", letters=800, speeches=16, leads=3000, length=4096, steps=60, batch=4, roots=240, rounds=4,
            prompts=48, documents=16)
SEEDS = (0, 1, 2, 3)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  return SIZE.cells((*CORPUS_METHODS, "offline", "negatives=none", "epsilon_from_control=0.01", "control_margin=0.1"))
