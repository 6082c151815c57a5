"""The RULER package that `make material` fetches, reference values, the policy's tokenizer, options."""

import json
import pathlib
import sys

import pytest

from policylong.evaluation.results import Options
from policylong.evaluation.ruler_package import Package
from policylong.model.tokenizer import load_tokenizer

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


@pytest.fixture(scope="session")
def package(material) -> Package:
  if not (material / "ruler" / "DONE").exists():
    pytest.fail(f"{material}/ruler is missing or incomplete: run `make material`")
  return Package(material / "ruler")


@pytest.fixture(scope="session")
def tokenizer(material):
  return load_tokenizer(material / "smollm2.gguf")


@pytest.fixture
def ruler_dir(package, tmp_path) -> pathlib.Path:
  """A folder with the package, and no prompt set yet."""
  folder = tmp_path / "ruler"
  folder.mkdir()
  for name in ("long_context_eval", "nltk_data", "DONE"):
    (folder / name).symlink_to(package.directory / name)
  return folder


@pytest.fixture
def options(ruler_dir):
  """Makes Options; what is not given is the command's default."""
  def make(**given) -> Options:
    return Options(**{"lengths": (1024,), "samples": 2, "protocol": "nvidia", "seed": 42,
                      "apply_chat_template": False, "helmet_dir": None, "data_dir": None, "include_path": None,
                      "ruler_dir": str(ruler_dir), **given})
  return make
