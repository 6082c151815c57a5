"""How long a whole run takes on a slice, by arithmetic on what is estimated of its programs."""

import dataclasses
from collections.abc import Mapping

from policylong.config import POLICY_METHODS
from policylong.synthesis.filling import Filling

# Anchors of a root that are reckoned with: 2.3% of its tokens lie two standard deviations above a mean.
ANCHORS = 35
# Positives of a root that are reckoned with: EntropyLong's, of its ablation roots (arXiv 2510.02330).
POSITIVES = 46


@dataclasses.dataclass(frozen=True)
class Hours:
  """Of a run: training, the scan of its roots, verification. scored: tokens scored for each token trained on."""
  train: float
  scan: float
  verify: float
  scored: float

  @property
  def together(self) -> float:
    """All of them."""
    return self.train + self.scan + self.verify


def of_run(config, programs: Mapping[str, Mapping], budget: float | None) -> Hours:
  """The hours of a run.

  A round screens as many roots as fill its sequences (`roots_of_a_round`). A method that does not ask the policy
  screens none.

  Args:
    config: of the run.
    programs: program -> what `policylong.aot` found of it; of train, score and verify `tokens` a step and
      `estimated_step_seconds` are read.
    budget: tokens scored for each trained on, at most; None: every row of every root.
  """
  rate = {name: values["tokens"] / values["estimated_step_seconds"] * 3600 for name, values in programs.items()}
  training, screening = config.training, config.screening
  trained = config.rounds * training.steps_per_round * training.batch_size * config.synthesis.sequence_length
  roots = config.rounds * roots_of_a_round(config) if config.method in POLICY_METHODS else 0
  scan, rows = roots * screening.root_tokens, roots * (
      min(ANCHORS, screening.max_anchors_per_root) * screening.top_k + screening.control_chunks)
  scored = scan + rows * (screening.root_tokens + screening.max_chunk_tokens)
  if budget is not None:
    scored = min(scored, budget * trained)
  return Hours(trained / rate["train"], scan / rate["score"], (scored - scan) / rate["verify"], scored / trained)


def roots_of_a_round(config, positives: int = POSITIVES) -> int:
  """The roots that fill a round's sequences, or the most that it may screen.

  A root fills them as `Filling` has it, which a round goes by too; but for entropylong without negatives, which it
  does not bring.

  Args:
    config: of the run.
    positives: of each root; a root is as long as it may be, and a chunk too.
  """
  training, screening, synthesis = config.training, config.screening, config.synthesis
  sequences = training.steps_per_round * training.batch_size / (training.longfilter_share or 1)
  bare = config.method == "entropylong" or screening.negatives == "none"
  filling = Filling(synthesis.sequence_length, 0, 0 if bare else synthesis.negatives_per_positive)
  roots = 0
  while filling.sequences < sequences and roots < screening.roots_per_round:
    filling.add(screening.root_tokens, positives * [screening.max_chunk_tokens])
    roots += 1
  return roots
