"""The study whose results are committed, in results/small/; 39 runs, three hours on 2 CPU cores.

  python -m experiments.small_study --size=small
"""

from experiments.small_study.study import Size
from policylong.config import CORPUS_METHODS

SIZE = Size("small", letters=400, speeches=8, leads=1500, length=4096, steps=30, batch=4, roots=120, rounds=3,
            prompts=24, documents=8)
SEEDS = (0, 1, 2)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  return SIZE.cells((*CORPUS_METHODS, "offline", "negatives=none", "epsilon_from_control=0.01", "control_margin=0.1"))
