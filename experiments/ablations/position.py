"""Where a meta-chunk stands among its negatives, in NExtLong (its paper: head best, then tail, then random).

  python -m experiments.grid --grid=experiments/ablations/position.py --workdir=runs/ablations/position

On the small study's model and planted corpus, with its measures (experiments/small_study).
"""

from experiments.small_study.small import SIZE

SEEDS = (0, 1, 2)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  for position in ("head", "tail", "random"):
    yield position, {"method": "nextlong", "method_options.nextlong_position": position, **SIZE.once()}
