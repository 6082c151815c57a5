"""The window of a query, tokens on each side of its anchor (the paper: 16).

  python -m experiments.grid --grid=experiments/ablations/query_window.py --workdir=runs/ablations/query_window

On the small study's model and planted corpus, with its measures (experiments/small_study).
"""

from experiments.small_study.small import SIZE

SEEDS = (0, 1, 2)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  for window in (8, 16, 32):
    yield f"window={window}", {"screening.query_window": window}
