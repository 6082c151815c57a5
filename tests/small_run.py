"""A whole run small enough for tests: a random two-layer policy with SmolLM2's tokenizer, hashed n-grams.

As a program it is `policylong.main` that may kill itself:

  python -m tests.small_run KILL ...flags of policylong.main...

KILL "scan:2" sends SIGKILL to the process at the second call of that stage's last write; "" never does. "scan:2:TERM"
sends SIGTERM, and "scan:2:FAIL" makes the call fail.
"""

import os
import pathlib
import signal
import sys

import jax
import numpy as np

from configs import demo

_CONFIG = '''
import pathlib
from tests.small_run import small_config

def get_config():
  return small_config(pathlib.Path({folder!r}))
'''


def small_config(folder: pathlib.Path):
  """The demo's config over a small policy and corpus in `folder`."""
  config = demo.get_config()
  config.model.path, config.model.sha256 = str(folder / "model"), ""
  config.corpus.sources = ({"name": "talks", "kind": "jsonl", "path": str(folder / "talks.jsonl"), "id_field": "id",
                            "text_field": "text", "split": ""},)
  config.corpus.root_sources, config.corpus.cache_dir = (), str(folder / "cache")
  config.corpus.chunk_chars = 400
  config.retrieval.embedder, config.retrieval.embedder_path, config.retrieval.embedder_sha256 = "hashed", "", ""
  config.retrieval.index = "exact"
  config.screening.update({
      # More roots than a round needs, and fewer rows than they have.
      "roots_per_round": 12, "roots_per_shard": 1, "budget": 5.0, "probe_share": 0.25, "root_tokens": 64,
      "min_root_tokens": 32, "skip_tokens": 16, "max_anchors_per_root": 4,
      "max_chunk_tokens": 64, "tokens_per_batch": 512, "control_chunks": 3, "epsilon_from_control": 0.25,
      # A random policy: nothing makes a token likelier.
      "evidence": "entropy", "loss_margin_from_control": None})
  config.synthesis.update({"sequence_length": 256, "negatives_per_positive": 1})
  config.training.update({"steps_per_round": 4, "batch_size": 2, "checkpoint_every": 2, "peak_learning_rate": 1e-2,
                          "compute_dtype": "float32"})
  config.model.scoring_dtype = "float32"
  config.mesh.update({"fsdp": 1, "simulated_devices": 0})
  config.eval.update({"tasks": ("position_loss", "longppl"), "lengths": (256,), "samples": 2, "short_window": 64})
  config.eval.documents.update({"kind": "jsonl", "path": str(folder / "talks.jsonl"), "id_field": "id",
                                "text_field": "text"})
  return config


def make_small_run(folder: pathlib.Path, material: pathlib.Path) -> pathlib.Path:
  """Writes the policy, the corpus and the config file into `folder`; returns the config file's path."""
  from policylong.model import hf
  from policylong.model.qwen import ModelConfig, init_params
  from policylong.model.tokenizer import load_tokenizer

  tokenizer = load_tokenizer(material / "smollm2.gguf")
  model = ModelConfig(family="llama", vocab_size=len(tokenizer), embed_dim=32, mlp_dim=64, num_layers=2, num_heads=4,
                      num_kv_heads=2, head_dim=8, norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, max_positions=512,
                      tied=True)
  params = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, init_params(model, jax.random.key(0), np.float32))
  hf.export_hf(params, model, tokenizer, folder / "model")
  write_talks(folder / "talks.jsonl")
  path = folder / "small.py"
  path.write_text(_CONFIG.format(folder=str(folder)))
  return path


def write_talks(path: pathlib.Path, count: int = 24) -> None:
  """Documents of invented words; each repeats its own topic words, so that retrieval has something to find."""
  import json
  rng = np.random.default_rng(0)
  syllables = ["ba", "ke", "li", "mo", "nu", "ra", "si", "to", "vu", "ze"]
  words = ["".join(rng.choice(syllables, 3)) for _ in range(400)]
  with open(path, "w") as file:
    for i in range(count):
      topic = rng.choice(words, 40)
      paragraphs = [" ".join(rng.choice(topic, 40)) + "." for _ in range(6)]
      file.write(json.dumps({"id": f"talk{i}", "text": "\n\n".join(paragraphs)}) + "\n")


def _die_at(kill: str) -> None:
  """Wraps the functions that finish a stage's piece of work, so that one of their calls kills the process."""
  from policylong import loop
  from policylong.evaluation import results
  from policylong.screening import screen
  from policylong.storage import tables, workdir
  from policylong.synthesis import storage
  from policylong.training.metrics import MetricsLog

  stage, call, *how = kill.split(":")
  calls = iter(range(1, 1 << 30))

  def strike():
    if how == ["FAIL"]:
      raise ValueError("this call fails")
    os.kill(os.getpid(), signal.SIGTERM if how == ["TERM"] else signal.SIGKILL)

  def dying(function, applies, before):
    def wrapper(*arguments, **keywords):
      mine = applies(*arguments) and next(calls) == int(call)
      if mine and before:
        strike()
      result = function(*arguments, **keywords)
      if mine and not before:
        strike()
      return result
    return wrapper

  def named(name):
    return lambda path, *_: str(path.name).startswith(name)

  if stage in ("scan", "candidates", "verify", "verdicts", "negatives", "offpolicy", "gaps"):
    tables.write = dying(tables.write, named(stage), before=True)
  elif stage in ("plan", "judged"):
    screen.write_json = dying(screen.write_json, named(stage), before=True)
  elif stage == "between":  # the round is trained; its marker is not there yet, or just is
    workdir.write_json = dying(workdir.write_json, named("DONE"), before=int(call) == 1)
  elif stage == "final":  # the run is done, and its page is not written again yet
    loop.write_json = dying(loop.write_json, named("final"), before=False)
  elif stage == "evaluation":  # one benchmark's results are there, or not yet
    results.write_bare_json = dying(results.write_bare_json, named("results"), before=True)
  elif stage == "synthesis":
    storage._Shard.write = dying(storage._Shard.write, lambda *_: True, before=False)
  elif stage == "training":
    MetricsLog.write = dying(MetricsLog.write, lambda *_: True, before=False)
  elif stage in ("rename", "progress"):  # a temporary is written, the rename has not happened
    replace = type(workdir.epath.Path("/")).replace
    type(workdir.epath.Path("/")).replace = dying(
        replace, lambda path, *_: (path.parent.name == "progress") == (stage == "progress"), before=True)
  else:
    raise ValueError(stage)


if __name__ == "__main__":
  kill = sys.argv.pop(1)
  if kill:
    _die_at(kill)
  from policylong import main
  from policylong.commands import config_flags
  from policylong.errors import run_command
  from policylong.retrieval import rows
  from policylong.synthesis import together
  rows.SHARD_ROWS = 16  # several files of vectors even of so few chunks, so that every process has some
  together.GROUP_ROOTS = 2  # several groups even of so few roots
  config_flags.parse(main.__doc__, required=("config", "workdir"))
  run_command(main.main)
