"""The stored references of tests/reference, and small checkpoints written from their seeds."""

import json
import pathlib
import sys

import numpy as np
import pytest

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
sys.path.insert(0, str(REFERENCE))


@pytest.fixture(scope="session")
def models() -> dict:
  """case -> config.json fields, tensor names and shapes, as transformers has them."""
  return json.loads((REFERENCE / "models.json").read_text())


@pytest.fixture(scope="session")
def logits() -> dict:
  """case -> transformers' logits, float32."""
  with np.load(REFERENCE / "logits.npz") as stored:
    return dict(stored)


@pytest.fixture(scope="session")
def smollm2() -> dict:
  """Texts with token ids, the stored logit columns, and tokenizer cases."""
  return json.loads((REFERENCE / "smollm2.json").read_text())
