"""The study whose results are committed, in results/small/.

  python -m experiments.frontier_study --size=small
"""

from experiments.frontier_study.study import Size

SIZE = Size("small", letters=600, leads=200, steps=18, batch=4, roots=480, held_out=48, prompts=16)
SEEDS = (0,)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  return SIZE.cells(("policylong", "offline", "standard", "one_refresh", "entropylong", "nextlong"))
