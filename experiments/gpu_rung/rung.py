"""What the sizes of the rung have in common: the config that all cells change, the cells, and what is measured.

Roots, contexts and held-out text are real (corpora.py). Every cell starts from SmolLM2-135M and reads the same number
of tokens.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from configs import demo
from policylong import config as config_lib
from policylong.devices.mesh import make_mesh
from policylong.errors import UserError
from policylong.evaluation.benchmarks import evaluate
from policylong.evaluation.policy import Policy
from policylong.evaluation.results import Options
from policylong.model.stored import open_model
from policylong.storage.workdir import write_json

MODEL = "material/smollm2.gguf"
# The base model's is 1e5, for 8192 tokens. Its loss, nats a token, on 12 held-out documents at positions 8192-12287 and
# 12288-16383: with 1e5 2.97 and 5.80, with 2.5e5 2.65 and 2.78, with 5e5 2.75 and 2.87, with 1e6 2.94 and 3.09; before
# 8192 2.5e5 costs it 0.03.
ROPE_THETA = 2.5e5


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is done.

  corpus: a folder of corpora.py's. length: tokens of a sequence. rounds: of PolicyLong. steps: of training, in all
  rounds together, each of `batch` sequences in `accumulation` parts. roots: screened in all rounds together.
  root_tokens: of a root at most. lengths: of RULER's prompts, `prompts` a task. tasks: of RULER. documents: held-out
  ones of `length` tokens, for LongPPL (with a short context of short_window tokens) and the loss by position.
  simulated_devices: 0 for the real ones.
  """
  corpus: pathlib.Path
  length: int
  rounds: int
  steps: int
  batch: int
  accumulation: int
  roots: int
  root_tokens: int
  anchors: int
  top_k: int
  tokens_per_batch: int
  lengths: tuple[int, ...]
  tasks: tuple[str, ...]
  prompts: int
  documents: int
  short_window: int
  simulated_devices: int

  def prepare(self) -> None:
    """Raises a UserError where the corpus or the model is not there."""
    if not (self.corpus / "packages.json").exists():
      raise UserError(f"{self.corpus} holds no corpus: make it by python -m experiments.gpu_rung.corpora, with network")
    if not pathlib.Path(MODEL).exists():
      raise UserError(f"{MODEL} is not there: run `make material` first, and start from the project's folder")

  def get_config(self) -> ConfigDict:
    """PolicyLong at this size: the demo's thresholds, epsilon at 1% of random contexts."""
    config = demo.get_config()
    config.rounds = self.rounds
    config.model.rope_theta = ROPE_THETA
    config.corpus.update({
        "sources": tuple({"name": name, "kind": "jsonl", "path": str(self.corpus / f"{name}.jsonl"), "id_field": "id",
                          "text_field": "text", "split": ""} for name in ("documents", "pages")),
        "root_sources": ("documents",), "cache_dir": str(self.corpus.parent / "cache")})
    config.retrieval.update({"embedder_max_tokens": 256, "embedder_batch": 128, "index": "exact"})
    config.screening.update({
        "roots_per_round": self.roots // self.rounds, "roots_per_shard": 16, "root_tokens": self.root_tokens,
        "min_root_tokens": self.root_tokens // 2, "max_anchors_per_root": self.anchors, "top_k": self.top_k,
        "control_chunks": 4, "epsilon": None, "epsilon_from_control": 0.01, "max_chunk_tokens": 512,
        # As in the first two runs (results/roots_256).
        "skip_tokens": 16, "evidence": "entropy", "loss_margin_from_control": None,
        # Few shapes: on a GPU a program takes longer to compile than to score a round.
        "bucket_multiple": 512, "tokens_per_batch": self.tokens_per_batch})
    config.synthesis.update({"sequence_length": self.length, "negatives_per_positive": 4})
    config.training.update({
        "steps_per_round": self.steps // self.rounds, "batch_size": self.batch, "accumulation": self.accumulation,
        "peak_learning_rate": 1e-4, "warmup_fraction": 0.1, "remat": "all_but_products", "checkpoint_every": 1000})
    config.eval.tasks = ()
    config.mesh.update({"data": 1, "fsdp": 1, "simulated_devices": self.simulated_devices})
    return config

  def cells(self) -> Iterator[tuple[str, dict]]:
    """PolicyLong; "offline", the same run with all contexts chosen by the base model; three that have one round."""
    once = {"rounds": 1, "training.steps_per_round": self.steps, "screening.roots_per_round": self.roots}
    yield "policylong", {}
    yield "offline", {"max_staleness": self.rounds - 1}
    for method in ("entropylong", "nextlong", "standard"):
      yield method, {"method": method, **once}

  def measure(self, workdir: pathlib.Path) -> dict[str, float]:
    """Of a finished run, by its last policy; the base model's once, in base.json of the grid's folder.

    ruler/TASK/L and their mean ruler/L by the helmet protocol, 0 to 100; longppl/L on the base model's key tokens;
    position_loss/A-B/L in nats a token.
    """
    directory = workdir.parent.parent
    keys = directory / "runs" / "key_tokens"
    if not (directory / "base.json").exists() or not keys.exists():
      write_json(directory / "base.json", self._numbers(pathlib.Path(MODEL), directory / "runs" / "base", keys))
    return self._numbers(workdir, workdir / "measured", keys)

  def _numbers(self, model: pathlib.Path, directory: pathlib.Path, keys: pathlib.Path) -> dict[str, float]:
    policy = self._policy(model)
    held_out = config_lib.Source("held-out", "jsonl", str(self.corpus / "held_out.jsonl"), "id", "text", "")
    options = Options(self.lengths, self.prompts, "helmet", seed=42, apply_chat_template=False, helmet_dir=None,
                      data_dir=None, include_path=None, documents=held_out, short_window=self.short_window,
                      keys_dir=str(keys))
    found = evaluate(policy, self.tasks, options, epath.Path(directory))
    found |= evaluate(policy, ("longppl", "position_loss"), dataclasses.replace(
        options, lengths=(self.length,), samples=self.documents), epath.Path(directory))
    return {f"{task}/{length}": result.value for task, lengths in found.items() for length, result in lengths.items()
            if result.value is not None}

  def _policy(self, path: pathlib.Path) -> Policy:
    """The model in a file or of a run, made to read `length` tokens whether it was trained to or not."""
    stored = open_model(path)
    mesh = make_mesh(config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1))
    config = stored.config.with_rope(theta=ROPE_THETA, yarn_factor=None).trained_on(self.length)
    return Policy(stored.load(jnp.float32, mesh), config, stored.tokenizer, name=stored.name,
                  end_tokens=sorted(stored.end_tokens), mesh=mesh, dtype="bfloat16",
                  batch_tokens=min(self.tokens_per_batch, 8192))
