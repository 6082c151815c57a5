"""Where the reference values and the small checkpoints are."""

import json
import pathlib
import sys

import pytest

TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "reference"), str(TESTS / "model")]


@pytest.fixture(scope="session")
def models() -> dict:
  """case -> config.json fields, tensor names and shapes, as transformers has them."""
  return json.loads((TESTS / "reference" / "models.json").read_text())


@pytest.fixture(scope="session")
def references() -> dict:
  """case -> transformers' greedy continuations and log-likelihoods."""
  return json.loads((TESTS / "reference" / "generation.json").read_text())
