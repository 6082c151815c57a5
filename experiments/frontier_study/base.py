"""The study's base model: the small study's, which has learnt the language of this world, but no hard dependency.

  python -m experiments.frontier_study.base --workdir=runs/frontier_study/base

Its result is committed in experiments/frontier_study/base/. Hardware: one CPU core, 14 minutes with other work beside
it. Killed at any instant and started again, it goes on.

Why a further one: to the small study's base the words of harder sources were new, and it lost up to 20 nats on them.
On sequences of nothing but true sources its first steps learnt these words (2.6 nats a token to 1.6 in sixteen steps at
1e-4) at the cost of trust in what it had read: of the true sources it verified 70% before and 33% after. On its own
pretraining's text such steps took nothing away. So the language is learnt here, within 512 tokens.

What it reads: the small study's documents; entries of every difficulty; letters behind entries, where a value is told
whose source, if it is there, is an easy one (EASIEST); and real text. A hard source never stands before its letter.
"""

import itertools
import pathlib
from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments import study
from experiments.frontier_study.world import DIFFICULTIES, FrontierWorld
from experiments.small_study import base as small
from experiments.small_study import corpora
from experiments.small_study.world import World, training_documents
from policylong.errors import run_command

FOLDER = pathlib.Path("experiments/frontier_study")
PATH = FOLDER / "base"
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


def prepare(directory: pathlib.Path) -> None:
  """The JSONL that the model learns from."""
  if (directory / "base.jsonl").exists():
    return
  real = [*corpora.speeches(held_out=False)[:8], *corpora.leads()[:REAL]]
  planted = itertools.chain(itertools.islice(training_documents(World(WORLD)), PLANTED),
                            itertools.islice(documents(FrontierWorld(WORLD + 7, DIFFICULTIES)), 2 * PLANTED))
  corpora.write_documents(directory / "base.jsonl", [*real, *((f"base/{i}", text) for i, text in enumerate(planted))])


def get_config(directory: pathlib.Path, steps: int) -> ConfigDict:
  """The small study's recipe from where that ended, milder: `steps` steps of 16 x 512 tokens, on one core."""
  config = small.get_config(directory, steps)
  config.model.path = str(small.PATH)
  config.training.update({"accumulation": 4, "peak_learning_rate": 5e-4, "warmup_fraction": 0.1,
                          "compute_dtype": "float32", "remat": "none", "checkpoint_every": 20})
  config.mesh.update({"data": 1, "simulated_devices": 1})
  return config


if __name__ == "__main__":
  run_command(lambda: study.make_base(__doc__, FOLDER, 90, prepare, get_config, small.MODEL))
