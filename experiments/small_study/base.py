"""The study's base model: 5.5M parameters, pretrained on 512 tokens of context by our own trainer.

  python -m experiments.small_study.base --workdir=runs/small_study/base

Its result belongs into experiments/small_study/base/ and is not there yet, so nothing in this folder has been run to
its end. Hardware: 2 CPU cores, 1.3 to 1.7 s a step. Killed at any instant and started again, it goes on.

The model is Qwen3-shaped. It first learns to copy, from drills alone (`world.drills`); then half of its text is of the
planted world's language (world.py: places that are used for nothing else), so that it may learn within 512 tokens to
look a fact up, and the rest is speeches and encyclopaedia leads. RoPE's theta is that of a long context from the
start, so that no method has to change it.

Why drills: without any, 700 steps did not teach the model to look a value up (3.9 nats, a guess); nor did 500 steps
with drills a part of the text; nor 900 with lists that all had 60 words, which it copied by their distance (0.5 nats).
Continued on drills alone, the model of those 500 steps began to copy within 100. The two stages as they stand here
have not been run to their end, so that they suffice is a guess.
"""

import argparse
import json
import logging
import pathlib

import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from configs import demo
from experiments.small_study import corpora
from policylong import config as config_lib
from policylong import hosts, loop
from policylong.errors import UserError, run_command
from policylong.model import hf
from policylong.model.qwen import ModelConfig, init_params
from policylong.model.tokenizer import transformers  # as it keeps it quiet
from policylong.stored import open_model

PATH = pathlib.Path("experiments/small_study/base")
VOCABULARY, LENGTH = 4096, 512
# Documents of the two stages: 4.5M tokens that are read once, and with the real text 5.9M that are read twice.
DRILLS, PLANTED = 36_000, 24_000
MODEL = ModelConfig(family="qwen3", vocab_size=VOCABULARY, embed_dim=256, mlp_dim=704, num_layers=6, num_heads=4,
                    num_kv_heads=2, head_dim=64, norm_eps=1e-6, rope_theta=1e5, yarn=None, max_positions=LENGTH,
                    tied=True)


def train_tokenizer(path: pathlib.Path) -> transformers.PreTrainedTokenizerFast:
  """A byte-level BPE of the texts of a JSONL corpus."""
  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<end>"], show_progress=False,
                                initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
  with open(path, encoding="utf-8") as file:
    backend.train_from_iterator((json.loads(line)["text"] for line in file), trainer)
  return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>",
                                              clean_up_tokenization_spaces=False)


def get_config(directory: pathlib.Path, stage: str, steps: int) -> config_lib.Config:
  """The recipe of a stage: random concatenation, `steps` steps of 16 x 512 tokens, from the model in `directory`."""
  config = demo.get_config()
  config.update({"rounds": 1, "method": "standard"})
  config.model.update({"path": str(directory / f"{stage}-start"), "sha256": ""})
  config.corpus.update({
      "sources": ({"name": stage, "kind": "jsonl", "path": str(directory / f"{stage}.jsonl"), "id_field": "id",
                   "text_field": "text", "split": ""},), "root_sources": (), "cache_dir": str(directory / "cache")})
  config.synthesis.sequence_length = LENGTH
  config.training.update({"steps_per_round": steps, "batch_size": 16, "accumulation": 2, "peak_learning_rate": 2e-3,
                          "warmup_fraction": 0.05, "compute_dtype": "bfloat16", "remat": "all_but_products",
                          "checkpoint_every": 100})
  config.eval.tasks = ()
  config.mesh.update({"data": 2, "fsdp": 1, "simulated_devices": 2})
  return config_lib.parse(config.to_dict())


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--drill_steps", type=int, default=600)
  parser.add_argument("--steps", type=int, default=1500, help="of the second stage")
  parser.add_argument("--out", type=pathlib.Path, default=PATH, help="where the model goes, an HF directory")
  arguments = parser.parse_args()
  logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
  logging.getLogger("policylong").setLevel(logging.INFO)
  if arguments.out.exists():
    raise UserError(f"--out is {arguments.out}, which is there already: remove it, or name another folder")
  directory = arguments.workdir
  stages = {"drills": arguments.drill_steps, "text": arguments.steps}
  configs = [get_config(directory, stage, steps) for stage, steps in stages.items()]
  with hosts.joined(None, None, None, configs[0].mesh.simulated_devices):
    if not (directory / "drills-start").exists():
      corpora.write_drills(directory / "drills.jsonl", DRILLS)
      corpora.write_base_corpus(directory / "text.jsonl", PLANTED)
      start = init_params(MODEL, jax.random.key(0), np.float32)
      hf.export_hf(start, MODEL, train_tokenizer(directory / "text.jsonl"), directory / "drills-start")
    for config, result in zip(configs, (directory / "text-start", arguments.out)):
      if not result.exists():
        stage = directory / f"{config.corpus.sources[0].name}-run"
        loop.run(config, stage)
        trained = open_model(stage)
        # As small as it is committed, from the first stage on.
        hf.export_hf(jax.tree.map(lambda x: np.asarray(x, jax.numpy.bfloat16), trained.load(None, None)), MODEL,
                     trained.tokenizer, result)


if __name__ == "__main__":
  run_command(main)
