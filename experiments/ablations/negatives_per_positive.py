"""How many hard negatives there are for a positive.

  python -m experiments.grid --grid=experiments/ablations/negatives_per_positive.py --workdir=runs/ablations/count

On the small study's model and planted corpus, with its measures (experiments/small_study).
"""

from experiments.small_study.small import SIZE

SEEDS = (0, 1, 2)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  for count in (2, 4, 8, 16):
    yield f"negatives={count}", {"screening.negatives_per_positive": count}
