"""How many negatives a positive should bring: the small study's model and corpus, screened as the project now does.

  python -m experiments.small_study --size=negatives

Every cell trains on as many tokens and screens within the same budget, by entropy and loss; a round asks for as many
roots as fill its sequences, up to a third of the letters. "policylong" has one negative a positive, "negatives=fit" as
many as fit into the sequence of a root, as NExtLong's and PolicyLong's papers have it.
"""

from ml_collections import ConfigDict

from experiments.small_study.small import SIZE as SMALL

SIZE = SMALL.renamed("negatives")
SEEDS = (0, 1, 2)
prepare, measure = SIZE.prepare, SIZE.measure


def get_config() -> ConfigDict:
  config = SIZE.get_config()
  config.screening.update({
      "roots_per_round": SIZE.letters // SIZE.rounds, "roots_per_shard": 5, "evidence": "entropy_and_loss",
      "loss_margin_from_control": 0.02, "budget": 4.0})
  config.synthesis.negatives_per_positive = 1  # the project's
  return config


def cells():
  yield "policylong", {}
  for name, count in (("0", 0), ("2", 2), ("4", 4), ("fit", None)):
    yield f"negatives={name}", {"synthesis.negatives_per_positive": count}
