"""K, the chunks retrieved for an anchor (the paper: 32).

  python -m experiments.grid --grid=experiments/ablations/top_k.py --workdir=runs/ablations/top_k

On the small study's model and planted corpus, with its measures (experiments/small_study).
"""

from experiments.small_study.small import SIZE

SEEDS = (0, 1, 2)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  for k in (1, 2, 4, 8):
    yield f"k={k}", {"screening.top_k": k}
