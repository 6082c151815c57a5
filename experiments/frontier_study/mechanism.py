"""Does the frontier move? One seed of each policy, small; the first question of PLAN.md, in results/mechanism/.

  python -m experiments.frontier_study --size=mechanism
"""

from experiments.frontier_study.study import Size

SIZE = Size("mechanism", letters=300, leads=100, steps=12, batch=4, roots=240, held_out=32, prompts=8)
SEEDS = (0,)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  return SIZE.cells(("policylong", "query_window=8", "standard", "offline", "one_refresh", "entropylong", "nextlong"))
