"""Epsilon, the least gain (EntropyLong found 0.4 best of 0.2 to 0.8), fixed or set from the control each round.

  python -m experiments.grid --grid=experiments/ablations/epsilon.py --workdir=runs/ablations/epsilon

On the small study's model and planted corpus, with its measures (experiments/small_study).
"""

from experiments.small_study.small import SIZE

SEEDS = (0, 1, 2)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  for epsilon in (0.2, 0.4, 0.6, 0.8):
    yield f"epsilon={epsilon}", {"screening.epsilon": epsilon}
  for share in (0.005, 0.02):
    yield f"control={share}", {"screening.epsilon": None, "screening.epsilon_from_control": share}
  yield "margin=0.1", {"screening.control_margin": 0.1}
