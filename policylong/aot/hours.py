"""How long a whole run takes on a slice, by arithmetic on what is estimated of its programs."""

import dataclasses
from collections.abc import Mapping

from policylong.config import POLICY_METHODS

# Anchors of a root that are reckoned with: 2.3% of its tokens lie two standard deviations above a mean.
ANCHORS = 35


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

  A round is taken to need as many roots as it reads sequences: as many negatives come as fit, and all roots have
  positives. A method that does not ask the policy screens none.

  Args:
    config: of the run.
    programs: program -> what `policylong.aot` found of it; of train, score and verify `tokens` a step and
      `estimated_step_seconds` are read.
    budget: tokens scored for each trained on, at most; None: every row of every root.
  """
  rate = {name: values["tokens"] / values["estimated_step_seconds"] * 3600 for name, values in programs.items()}
  training, screening = config.training, config.screening
  sequences = config.rounds * training.steps_per_round * training.batch_size
  trained = sequences * config.synthesis.sequence_length
  roots = sequences if config.method in POLICY_METHODS else 0
  scan, rows = roots * screening.root_tokens, roots * (
      min(ANCHORS, screening.max_anchors_per_root) * screening.top_k + screening.control_chunks)
  scored = scan + rows * (screening.root_tokens + screening.max_chunk_tokens)
  if budget is not None:
    scored = min(scored, budget * trained)
  return Hours(trained / rate["train"], scan / rate["score"], (scored - scan) / rate["verify"], scored / trained)
