"""The number of rounds, with the same steps and roots in all (the paper: 4), and a schedule that restarts.

  python -m experiments.grid --grid=experiments/ablations/rounds.py --workdir=runs/ablations/rounds

On the small study's model and planted corpus, with its measures (experiments/small_study).
"""

from experiments.small_study.small import SIZE

SEEDS = (0, 1, 2)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  for rounds in (1, 2, 3, 5):
    changes = {"rounds": rounds, "training.steps_per_round": SIZE.steps // rounds,
               "screening.roots_per_round": SIZE.roots // rounds}
    yield f"rounds={rounds}", changes
    if rounds > 1:
      yield f"rounds={rounds}+restart", changes | {"training.schedule": "round"}
