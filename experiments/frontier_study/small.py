"""The comparison of PLAN.md, whose results go to results/small/; an estimated seven minutes a run on 2 CPU cores.

  python -m experiments.frontier_study --size=small

Not run yet. The three seeds are the plan's first ones; their spread says how many there must be.
"""

from experiments.frontier_study.study import Size

SIZE = Size("small", letters=800, leads=200, steps=36, batch=4, roots=720, held_out=64, prompts=16)
SEEDS = (0, 1, 2)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  return SIZE.cells(("policylong", "offline", "one_refresh", "entropylong", "nextlong", "quest", "standard"))
