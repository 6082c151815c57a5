"""Every part of the study once, too small to say anything; three and a half minutes on 2 CPU cores.

  python -m experiments.small_study --size=quick
"""

from experiments.small_study.study import Size

SIZE = Size("quick", letters=60, speeches=2, leads=200, length=1024, steps=6, batch=2, roots=24, rounds=2, prompts=4,
            documents=2)
SEEDS = (0,)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  return SIZE.cells(("standard", "entropylong", "policylong"))
