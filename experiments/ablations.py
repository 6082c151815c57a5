"""What each choice of the method is worth: one thing changed at a time, on the small study's model and corpus.

  python -m experiments.grid --grid=experiments/ablations.py --workdir=runs/ablations

"center" is PolicyLong as the small study has it; what a cell changes is in its name. The papers' own values: alpha 2.0,
epsilon 0.4 (EntropyLong found both best), K 32, a query window of 16, 4 rounds, negatives similar to the positives, a
meta-chunk at the head of its negatives (NExtLong). Measured as in experiments/small_study, whose base model is needed.
"""

from experiments.small_study.small import SIZE

SEEDS = (0, 1, 2)
prepare, get_config, measure = SIZE.prepare, SIZE.get_config, SIZE.measure


def cells():
  yield "center", {}
  for field, values in {"alpha": (0.5, 1.5, 2.0, 2.5), "epsilon": (0.2, 0.6, 0.8), "top_k": (1, 2, 4, 8),
                        "query_window": (4, 16), "negatives": ("rejected", "both", "none"),
                        "control_margin": (0.1,)}.items():
    for value in values:
      yield f"{field}={value}", {f"screening.{field}": value}
  for count in (0, 1, 2, 4):  # the center has as many as fit
    yield f"negatives_per_positive={count}", {"synthesis.negatives_per_positive": count}
  for share in (0.005, 0.02):  # epsilon from the control, each round
    yield f"epsilon_from_control={share}", {"screening.epsilon": None, "screening.epsilon_from_control": share}
  for rounds in (1, 2, 5):
    yield f"rounds={rounds}", {"rounds": rounds, "training.steps_per_round": SIZE.steps // rounds,
                               "screening.roots_per_round": SIZE.roots // rounds}
  yield "schedule=round", {"training.schedule": "round"}
  yield "max_staleness=1", {"max_staleness": 1}
  yield "longce", {"training.longce": True}
  yield "longfilter=0.5", {"training.longfilter_share": 0.5}
  for position in ("head", "tail", "random"):
    yield f"nextlong_position={position}", {
        "method": "nextlong", "method_options.nextlong_position": position, **SIZE.once()}
