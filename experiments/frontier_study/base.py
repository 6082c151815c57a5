"""The study's base model: the small study's, which has learnt the language of this world, but no hard dependency.

  python -m experiments.frontier_study.base --workdir=runs/frontier_study/base

Its result is committed in experiments/frontier_study/base/. Hardware: one CPU core, about ten minutes with other work
beside it. Killed at any instant and started again, it goes on.

Why a further one: to the small study's base the words of harder sources were new, and it lost up to 20 nats on them.
On sequences of nothing but true sources its first steps learnt these words (2.6 nats a token to 1.6 in sixteen steps at
1e-4) at the cost of trust in what it had read: of the true sources it verified 70% before and 33% after. On its own
pretraining's text such steps took nothing away. So the language is learnt here, within 512 tokens.

What it reads: the small study's documents; entries of every difficulty; letters behind entries, where a value is told
whose source, if it is there, is an easy one (EASIEST); and real text. A hard source never stands before its letter.
"""

import argparse
import itertools
import json
import logging
import pathlib
from collections.abc import Iterator

import jax
import numpy as np

from configs import demo
from experiments.frontier_study.world import DIFFICULTIES, FrontierWorld
from experiments.small_study import base as small
from experiments.small_study import corpora
from experiments.small_study.world import World, training_documents
from policylong import config as config_lib
from policylong import loop, paths
from policylong.devices import hosts
from policylong.errors import UserError, run_command
from policylong.model import hf
from policylong.model.stored import open_model
from policylong.storage.workdir import write_atomically

PATH = pathlib.Path("experiments/frontier_study/base")
# Places of the small study's base model's world, none of which it has seen.
WORLD = corpora.BASE_WORLD + 7
# Sources of a greater number never stand before the letter that tells their fact.
EASIEST = 1
PLANTED, REAL = 2500, 400  # documents of each of the two worlds' kinds, and of real text


def documents(world: FrontierWorld) -> Iterator[str]:
  """Entries of every difficulty, and entries with a letter behind them, of up to 450 tokens each."""
  while True:
    yield "\n\n".join(world.bystander()[1] for _ in range(8))
    told = world.told(4)
    known = [text for (_, text), difficulty in zip(told.sources, told.difficulties) if difficulty.number <= EASIEST]
    others = [world.bystander()[1] for _ in range(4)]
    yield "\n\n".join([*world.mixed([*known, *others]), told.letter.text])


def write_corpus(path: pathlib.Path) -> None:
  """The JSONL that the model learns from."""
  real = [*corpora.speeches(held_out=False)[:8], *corpora.leads()[:REAL]]
  planted = itertools.chain(itertools.islice(training_documents(World(WORLD)), PLANTED),
                            itertools.islice(documents(FrontierWorld(WORLD + 7, DIFFICULTIES)), 2 * PLANTED))
  records = [*real, *((f"base/{i}", text) for i, text in enumerate(planted))]
  write_atomically(path, "".join(json.dumps({"id": title, "text": text}) + "\n" for title, text in records).encode())


def get_config(directory: pathlib.Path, steps: int) -> config_lib.Config:
  """The recipe: random concatenation, `steps` steps of 16 x 512 tokens."""
  config = demo.get_config()
  config.update({"rounds": 1, "method": "standard"})
  config.model.update({"path": str(small.PATH), "sha256": ""})
  config.corpus.update({
      "sources": ({"name": "base", "kind": "jsonl", "path": str(directory / "base.jsonl"), "id_field": "id",
                   "text_field": "text", "split": ""},), "root_sources": (), "cache_dir": str(directory / "cache")})
  config.synthesis.sequence_length = small.LENGTH
  config.training.update({"steps_per_round": steps, "batch_size": 16, "accumulation": 4, "peak_learning_rate": 5e-4,
                          "warmup_fraction": 0.1, "compute_dtype": "float32", "remat": "none", "checkpoint_every": 20})
  config.eval.tasks = ()
  config.mesh.update({"data": 1, "fsdp": 1, "simulated_devices": 1})
  return config_lib.parse(config.to_dict())


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=paths.local, required=True)
  parser.add_argument("--steps", type=int, default=90)
  parser.add_argument("--out", type=paths.local, default=PATH, help="where the model goes, an HF directory")
  arguments = parser.parse_args()
  logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
  logging.getLogger("policylong").setLevel(logging.INFO)
  if arguments.out.exists():
    raise UserError(f"--out is {arguments.out}, which is there already: remove it, or name another folder")
  if not (arguments.workdir / "base.jsonl").exists():
    write_corpus(arguments.workdir / "base.jsonl")
  config = get_config(arguments.workdir, arguments.steps)
  with hosts.joined(None, None, None, config.mesh.simulated_devices):
    loop.run(config, arguments.workdir / "run")
    trained = open_model(arguments.workdir / "run")
    weights = jax.tree.map(lambda x: np.asarray(x, jax.numpy.bfloat16), trained.load(None, None))
    hf.export_hf(weights, small.MODEL, trained.tokenizer, arguments.out)


if __name__ == "__main__":
  run_command(main)
