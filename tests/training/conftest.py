"""Sequences on disk and trainers that are closed again."""

import dataclasses

import numpy as np
import pytest
from tiny_training import LENGTH, TINY, mesh_of, whole_config, write_sequences

from policylong.storage.workdir import Workdir
from policylong.training.train import Trainer


@pytest.fixture
def sequences(tmp_path) -> list:
  """Ten sequences that can be learnt: each repeats a block of eight random tokens."""
  block = np.random.default_rng(0).integers(0, TINY.vocab_size, (10, 8))
  return write_sequences(tmp_path / "sequences", np.tile(block, (1, LENGTH // 8)))


# (rounds, recipe) -> the compiled step: compiling takes most of a test's time
COMPILED = {}


@pytest.fixture
def make_trainer(tmp_path):
  """A function that opens a trainer on a folder; all are closed at the end."""
  trainers = []

  def make(folder="run", **changes):
    config = whole_config(**changes)
    trainer = Trainer(config.training, TINY, mesh_of(), Workdir(tmp_path / folder), length=LENGTH,
                      rounds=config.rounds, seed=config.seed)
    trainers.append(trainer)
    key = config.rounds, dataclasses.replace(config.training, keep_checkpoints=1, checkpoint_every=1)
    if key not in COMPILED:
      COMPILED[key] = trainer._compile()
    trainer._compiled = COMPILED[key]
    return trainer

  yield make
  for trainer in trainers:
    trainer.close()
