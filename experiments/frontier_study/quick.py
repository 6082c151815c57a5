"""Every part of the study once, too small to say anything.

  python -m experiments.frontier_study --size=quick
"""

from experiments.frontier_study.study import Size

SIZE = Size("quick", letters=60, mixed=110, leads=20, steps=6, batch=2, roots=48, held_out=6, prompts=2)
SEEDS = (0,)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  return SIZE.cells(("standard", "policylong", "offline"))
