"""The comparison of PLAN.md, whose results go to results/small/: a run takes two to four minutes of one CPU core.

  python -m experiments.frontier_study --size=small
"""

from experiments.frontier_study.study import Size

SIZE = Size("small", letters=800, mixed=1500, leads=200, steps=36, batch=4, roots=720, held_out=64, prompts=16)
SEEDS = (0, 1, 2, 3, 4)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  return SIZE.cells(("policylong", "offline", "one_refresh", "entropylong", "nextlong", "quest", "standard",
                     "policylong_equal_compute", "offline_equal_compute", "entropylong_equal_compute",
                     "policylong_epsilon=0.3", "offline_epsilon=0.3",
                     "negatives_per_positive=0", "negatives_per_positive=2", "negatives_per_positive=4",
                     "evidence=entropy", "budget=4.0", "budget=None", "rounds=1", "rounds=2", "rounds=4", "rounds=9"))
