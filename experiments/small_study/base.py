"""The study's base model: 5.5M parameters, pretrained on 512 tokens of context by our own trainer.

  python -m experiments.small_study.base --workdir=runs/small_study/base

Its result is committed in experiments/small_study/base/. Hardware: 2 CPU cores, 43 minutes with tests beside it. Killed
at any instant and started again, it goes on.

The model is Qwen2-shaped. Half of its text is of the planted world's language (world.py: places that are used for
nothing else), so that it may learn within 512 tokens to look a fact up, and the rest is speeches and encyclopaedia
leads.

Its weights start with the circuit that looks things up (induction.py), because at this size it did not come by itself
(Qwen3-shaped, as wide and deep): not in 700 steps of such text (second mentions of a value cost 3.9 nats, a guess),
nor in 400 steps of nothing but lists of random words told again and again (3.3M tokens; 5.9 nats a word, a guess), nor
where its second half, copying, was in the weights (400 steps of 2048 tokens; lists of 40 words at a guess).
"""

import json
import pathlib

import jax
from ml_collections import ConfigDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from configs import demo
from experiments import study
from experiments.small_study import corpora
from experiments.small_study.induction import init_with_induction
from policylong.errors import run_command
from policylong.model import hf
from policylong.model.qwen import ModelConfig
from policylong.model.tokenizer import transformers  # as it keeps it quiet

FOLDER = pathlib.Path("experiments/small_study")
PATH = FOLDER / "base"
VOCABULARY, LENGTH = 4096, 512
PLANTED = 24_000  # documents: with the real text 5.9M tokens
MODEL = ModelConfig(family="qwen2", vocab_size=VOCABULARY, embed_dim=256, mlp_dim=704, num_layers=6, num_heads=4,
                    num_kv_heads=2, head_dim=64, norm_eps=1e-6, rope_theta=1e6, rope_scaling=None, max_positions=LENGTH,
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


def get_config(directory: pathlib.Path, steps: int) -> ConfigDict:
  """The recipe: random concatenation, `steps` steps of 16 x 512 tokens."""
  config = demo.get_config()
  config.update({"rounds": 1, "method": "standard"})
  config.model.update({"path": str(directory / "start"), "sha256": ""})
  config.corpus.update({
      "sources": ({"name": "base", "kind": "jsonl", "path": str(directory / "base.jsonl"), "id_field": "id",
                   "text_field": "text", "split": ""},), "root_sources": (), "cache_dir": str(directory / "cache")})
  config.synthesis.sequence_length = LENGTH
  config.training.update({"steps_per_round": steps, "batch_size": 16, "accumulation": 2, "peak_learning_rate": 2e-3,
                          "warmup_fraction": 0.05, "compute_dtype": "bfloat16", "remat": "all_but_products",
                          "checkpoint_every": 100})
  config.eval.tasks = ()
  config.mesh.update({"data": 2, "fsdp": 1, "simulated_devices": 2})
  return config


def prepare(directory: pathlib.Path) -> None:
  """The text, a tokenizer of it, and the weights that the training starts from."""
  if not (directory / "start").exists():
    corpora.write_base_corpus(directory / "base.jsonl", PLANTED)
    start = init_with_induction(MODEL, jax.random.key(0))
    hf.export_hf(start, MODEL, train_tokenizer(directory / "base.jsonl"), directory / "start")


if __name__ == "__main__":
  run_command(lambda: study.make_base(__doc__, FOLDER, 1500, prepare, get_config, MODEL))
