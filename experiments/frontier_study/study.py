"""What the sizes of the study have in common: the config that all cells change, the cells, and what is measured.

Every cell starts from the same base model (base.py), which was trained on 512 tokens, and reads the same number of
tokens in sequences of 1024, or as many fewer as its screening costs.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from configs import demo
from experiments.frontier_study import base, corpora, frontier
from experiments.small_study import tasks, truth
from experiments.small_study.base import LENGTH as BASE_LENGTH
from experiments.small_study.base import MODEL
from experiments.small_study.corpora import sources
from experiments.small_study.measures import open_for_length
from experiments.study import check_base
from policylong import config as config_lib
from policylong.devices.mesh import make_mesh

DIRECTORY = pathlib.Path("runs/frontier_study")
LENGTH = 2 * BASE_LENGTH
# After each of so many equal parts of the training the frontier is measured: PolicyLong's rounds.
PARTS = 3
# Piloted (PLAN.md): the largest but one at which plain packing takes nothing away that matters.
PEAK_LEARNING_RATE = 5e-5
# A token that a screened method trains on costs 2.7 times one of the others, as 5.2 are scored for it, each at a third
# of a trained one: rounded up.
SCREENED_COST = 3


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is done.

  letters, mixed, leads: documents of the corpus. steps: of training, in all rounds together, each of `batch` sequences.
  roots: that may be screened, in all rounds together. held_out: letters by which the frontier is measured. prompts: of
  a task at each length.
  """
  name: str
  letters: int
  mixed: int
  leads: int
  steps: int
  batch: int
  roots: int
  held_out: int
  prompts: int

  @property
  def corpus(self) -> pathlib.Path:
    """Where the corpus lies."""
    return DIRECTORY / f"corpus-{self.letters}-{self.mixed}-{self.leads}"

  def prepare(self) -> None:
    """Writes the corpus if it is not there.

    Raises:
      UserError: the base model is not there.
    """
    check_base(base.FOLDER)
    if not (self.corpus / "truth.json").exists():
      corpora.write_corpus(self.corpus, self.letters, self.mixed, self.leads)

  def get_config(self) -> ConfigDict:
    """PolicyLong at this size: three rounds, the paper's epsilon, and what is surer must be likelier."""
    config = demo.get_config()
    config.rounds = PARTS
    config.model.update({"path": str(base.PATH), "sha256": ""})
    config.corpus.update({
        "sources": sources(self.corpus, corpora.SOURCES),
        "root_sources": ("letters",), "chunk_chars": 2048, "cache_dir": str(DIRECTORY / "cache")})
    # By spelling, since names are invented (small_study/results/small/findings.md).
    config.retrieval.update({"embedder": "hashed", "embedder_path": "", "embedder_sha256": "", "index": "exact"})
    config.screening.update({
        "roots_per_round": self.roots // PARTS, "roots_per_shard": 8, "root_tokens": 256, "min_root_tokens": 96,
        "max_chunk_tokens": 96,
        # The head of a letter names its places, which nothing can predict.
        "skip_tokens": 32, "alpha": 1.0, "max_anchors_per_root": 6, "top_k": 2,
        # Of 320 told values the source is among the two nearest chunks for 90%; with windows of 3, 5, 6, 8 tokens for
        # 73, 80, 53, 27%, and with 8 for none whose words are foreign: the letter's other words find other entries.
        "query_window": 4,
        # A sentence of an entry is repeated by the letter, and is no copy of it.
        "near_copy_ngram": 32, "control_chunks": 2, "epsilon": 0.4, "epsilon_from_control": None,
        "evidence": "entropy_and_loss", "loss_margin_from_control": 0.02, "budget": 8.0,
        "bucket_multiple": 64, "tokens_per_batch": 4096})
    config.synthesis.update({"sequence_length": LENGTH, "negatives_per_positive": 1})
    config.training.update({
        "steps_per_round": self.steps // PARTS, "batch_size": self.batch, "accumulation": self.batch // 2,
        "peak_learning_rate": PEAK_LEARNING_RATE, "warmup_fraction": 0.1, "remat": "none", "compute_dtype": "float32",
        "checkpoint_every": self.steps // PARTS, "keep_checkpoints": PARTS})
    config.model.scoring_dtype = "float32"
    config.method_options.quest_least_score = 1.0
    config.eval.tasks = ()
    config.mesh.update({"data": 1, "fsdp": 1, "simulated_devices": 1})
    return config

  def rounds(self, count: int) -> dict:
    """The changes of a method that has its steps in so many rounds."""
    return {"rounds": count, "training.steps_per_round": self.steps // count,
            "screening.roots_per_round": self.roots // count}

  def cells(self, names: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    """The cells of these names, in their order.

    "policylong": re-screened before each third of the training. "offline": the same run, roots and rounds, but all
    contexts are chosen by the base model. "one_refresh": the last third's are chosen by the policy after the first.
    These three are the same run until the second third begins. Other methods by their names. NAME_equal_compute: with
    so many fewer steps that training and screening together cost no more than the steps of the others. FIELD=VALUE:
    "policylong" with that changed.
    """
    cells = {"policylong": {}, "offline": {"max_staleness": PARTS - 1}, "one_refresh": {"max_staleness": 1}}
    cells |= {method: {"method": method, **self.rounds(1)}
              for method in ("entropylong", "nextlong", "quest", "standard")}
    cells |= {f"{name}_epsilon=0.3": {**cells[name], "screening.epsilon": 0.3} for name in ("policylong", "offline")}
    fewer = dataclasses.replace(self, steps=self.steps // SCREENED_COST, roots=self.roots // SCREENED_COST)
    cells |= {f"{name}_equal_compute": {
        **cells[name], **fewer.rounds(1 if name == "entropylong" else PARTS),
        "training.checkpoint_every": fewer.steps // PARTS} for name in ("policylong", "offline", "entropylong")}
    cells |= {f"{field}={value}": {f"{group}.{field}": value} for group, field, values in (
        ("synthesis", "negatives_per_positive", (0, 2, 4)), ("screening", "evidence", ("entropy",)),
        ("screening", "budget", (4.0, None))) for value in values}
    cells |= {f"rounds={count}": self.rounds(count) for count in (1, 2, 4, 9)}
    return ((name, cells[name]) for name in names)

  def measure(self, workdir: pathlib.Path) -> dict[str, float]:
    """Of a finished run: its frontier after each part, the tasks of its last policy, and what its screening did.

    stepN/NAME: `frontier.Reading.numbers` of the checkpoint of step N; the last one's also without a step.
    """
    numbers, found = {}, {}
    for step in sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()):
      found = self._frontier(workdir / "checkpoints" / str(step))
      numbers |= {f"step{step}/{name}": value for name, value in found.items()}
    return (numbers | found | self._tasks(workdir) | truth.measure(workdir, self.corpus)
            | frontier.chosen(workdir, self.corpus))

  def measure_model(self, path: pathlib.Path) -> dict[str, float]:
    """Of the base model: what `measure` tells of a run's last policy."""
    return self._frontier(path) | self._tasks(path)

  def _tasks(self, path: pathlib.Path) -> dict[str, float]:
    policy = open_for_length(path, LENGTH, one_device(), MODEL.rope_theta)
    return tasks.measure(policy, (BASE_LENGTH, LENGTH), self.prompts)

  def _frontier(self, path: pathlib.Path) -> dict[str, float]:
    return frontier.read(path, self.held_out, LENGTH, one_device()).numbers()


def one_device() -> jax.sharding.Mesh:
  """What everything is measured on."""
  return make_mesh(config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1))
