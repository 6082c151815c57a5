"""The paper's comparison, small: every method on the demo's corpus, with the same model, steps and seeds.

  python -m experiments.grid --grid=experiments/comparison.py --workdir=runs/comparison

Every method reads the same number of tokens. PolicyLong has them in two rounds, each screened by its own policy;
EntropyLong screens as many roots once, with the base model. Hardware: 2 CPU cores; a cell takes a few minutes.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import demo
from policylong.config import METHODS

SEEDS = (0, 1, 2)


def get_config() -> ConfigDict:
  config = demo.get_config()
  # Of 2,500 leads and 138 speeches few share a rare phrase.
  config.method_options.quest_least_score = 2.0
  return config


def cells() -> Iterator[tuple[str, dict]]:
  """Each method once."""
  base = get_config()
  for method in METHODS:
    once = {"rounds": 1, "training.steps_per_round": base.rounds * base.training.steps_per_round,
            "screening.roots_per_round": base.rounds * base.screening.roots_per_round}
    # Its paper trains with attention that stays inside a document; the others with attention to everything before.
    masked = {"training.document_masking": True} if method == "prolong" else {}
    yield method, {"method": method, **({} if method == "policylong" else once), **masked}
