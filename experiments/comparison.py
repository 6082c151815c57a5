"""The paper's comparison, small: every method on the small study's corpus, from its model, with equal tokens.

  python -m experiments.grid --grid=experiments/comparison.py --workdir=runs/comparison

PolicyLong has its tokens in three rounds, each screened by its own policy; EntropyLong screens as many roots once, with
the base model; the others do not ask a model. Measured as in experiments/small_study, whose base model is needed and
whose size "small" has the same runs.
Hardware: 2 CPU cores, about four minutes a run.
"""

from experiments.small_study.small import SIZE
from policylong.config import CORPUS_METHODS

SEEDS = (0, 1, 2)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  return SIZE.cells(CORPUS_METHODS)
