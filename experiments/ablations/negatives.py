"""The rule of hard negatives: similar to the positives (the paper), rejected candidates, both, none.

  python -m experiments.grid --grid=experiments/ablations/negatives.py --workdir=runs/ablations/negatives

On the small study's model and planted corpus, with its measures (experiments/small_study).
"""

from experiments.small_study.small import SIZE

SEEDS = (0, 1, 2)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  for rule in ("positives", "rejected", "both", "none"):
    yield rule, {"screening.negatives": rule}
