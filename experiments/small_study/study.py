"""What the sizes of the study have in common: the config that all cells change, and the cells.

The corpus is letters (the roots), entries with their look-alikes, and some real text (corpora.py). Every cell starts
from the same base model and reads the same number of tokens.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import demo
from experiments.small_study import base, corpora, measures, truth
from experiments.study import check_base
from policylong import config as config_lib
from policylong.config import CORPUS_METHODS
from policylong.devices.mesh import make_mesh

DIRECTORY = pathlib.Path("runs/small_study")
# RoPE's theta for the longer context, ten times the base model's. With its own an answer at 4096 tokens costs the base
# model 6 nats (needle) and 12 (tracking), with this one 1.3 and 8; and ten steps of training on its own theta left
# nothing that it would accept (results/small/findings.md).
ROPE_THETA = 1e7


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is done.

  letters, speeches, leads: documents of the corpus. steps: of training, in all rounds together, each of `batch`
  sequences of `length` tokens. roots: screened in all rounds together. rounds: of PolicyLong. prompts: of a task at
  each length; documents: held-out speeches.
  """
  name: str
  letters: int
  speeches: int
  leads: int
  length: int
  steps: int
  batch: int
  roots: int
  rounds: int
  prompts: int
  documents: int

  def renamed(self, name: str) -> "Size":
    """The same under another name, for results of their own."""
    return dataclasses.replace(self, name=name)

  @property
  def corpus(self) -> pathlib.Path:
    """Where the corpus lies."""
    return DIRECTORY / f"corpus-{self.letters}-{self.speeches}-{self.leads}"

  @property
  def lengths(self) -> tuple[int, ...]:
    """Octaves from the base model's length to `length`."""
    return tuple(base.LENGTH << i for i in range((self.length // base.LENGTH).bit_length()))

  def prepare(self) -> None:
    """Writes the corpus if it is not there.

    Raises:
      UserError: the base model is not there.
    """
    check_base(base.FOLDER)
    if not (self.corpus / "truth.json").exists():
      corpora.write_corpus(self.corpus, self.letters, self.speeches, self.leads)

  def get_config(self) -> ConfigDict:
    """PolicyLong at this size, with the paper's epsilon."""
    config = demo.get_config()
    config.rounds = self.rounds
    config.model.update({"path": str(base.PATH), "sha256": "", "rope_theta": ROPE_THETA})
    config.corpus.update({
        "sources": corpora.sources(self.corpus),
        # An entry is a chunk, and so is a letter.
        "root_sources": ("letters",), "chunk_chars": 2048, "cache_dir": str(DIRECTORY / "cache")})
    # By spelling, since names are invented: results/small/findings.md has what it finds beside MiniLM.
    config.retrieval.update({"embedder": "hashed", "embedder_path": "", "embedder_sha256": "", "index": "exact"})
    config.screening.update({
        # A root with a chunk in front of it is no longer than what the base model was trained on.
        "roots_per_round": self.roots // self.rounds, "root_tokens": 384, "min_root_tokens": 128,
        "max_chunk_tokens": 112,
        # The head of a letter names its places, which nothing can predict.
        "skip_tokens": 64, "alpha": 1.0, "max_anchors_per_root": 8, "query_window": 8, "top_k": 3,
        # A sentence of an entry is repeated by the letter, and is no copy of it.
        "near_copy_ngram": 32, "control_chunks": 2, "epsilon": 0.4, "epsilon_from_control": None,
        # By entropy alone, as in the runs whose outcomes are kept.
        "evidence": "entropy", "loss_margin_from_control": None,
        "bucket_multiple": 64, "tokens_per_batch": 4096, "roots_per_shard": 20})
    # As many negatives as fit, as in the runs whose outcomes are kept.
    config.synthesis.update({"sequence_length": self.length, "negatives_per_positive": None})
    config.training.update({
        "steps_per_round": self.steps // self.rounds, "batch_size": self.batch, "accumulation": self.batch // 2,
        "peak_learning_rate": 3e-4, "warmup_fraction": 0.2, "remat": "all_but_products", "checkpoint_every": 1000})
    config.method_options.quest_least_score = 1.0
    config.eval.tasks = ()
    config.mesh.update({"data": 2, "fsdp": 1, "simulated_devices": 2})
    return config

  def once(self) -> dict:
    """The changes of a method that has all of its steps in one round."""
    return {"rounds": 1, "training.steps_per_round": self.steps, "screening.roots_per_round": self.roots}

  def cells(self, names: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    """The cells of these names, in their order.

    A method's name: that method; ProLong with attention that stays inside a document, as in its paper. "offline":
    PolicyLong's sequences, all of them chosen by the base model in one round (the frontier study's "offline" keeps
    PolicyLong's rounds). "negatives=none" and the others with a field in their name, as in ablations.py: PolicyLong
    with that changed. Without negatives it is to EntropyLong what PolicyLong is to "offline".
    """
    cells = {method: {"method": method, **({} if method == "policylong" else self.once())} for method in CORPUS_METHODS}
    cells["prolong"]["training.document_masking"] = True
    cells |= {"offline": self.once(), "negatives=none": {"screening.negatives": "none"},
              "control_margin=0.1": {"screening.control_margin": 0.1},
              "epsilon_from_control=0.01": {"screening.epsilon": None, "screening.epsilon_from_control": 0.01}}
    return ((name, cells[name]) for name in names)

  def measure(self, workdir: pathlib.Path) -> dict[str, float]:
    """Of a finished run: what its last policy can do, and what its screening did."""
    return self.measure_model(workdir) | truth.measure(workdir, self.corpus)

  def measure_model(self, path: pathlib.Path) -> dict[str, float]:
    """Of a run or of the base model: tasks and losses, with the study's RoPE."""
    mesh = make_mesh(config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1))
    return measures.of_policy(measures.open_for_length(path, self.length, mesh, ROPE_THETA), self.lengths, self.prompts,
                              self.documents)
