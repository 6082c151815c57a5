"""Alpha, the threshold of anchors in standard deviations (EntropyLong found 2.0 best of 1.5, 2.0, 2.5).

  python -m experiments.grid --grid=experiments/ablations/alpha.py --workdir=runs/ablations/alpha

On the small study's model and planted corpus, with its measures (experiments/small_study).
"""

from experiments.small_study.small import SIZE

SEEDS = (0, 1, 2)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  for alpha in (0.5, 1.0, 1.5, 2.0, 2.5):
    yield f"alpha={alpha}", {"screening.alpha": alpha}
