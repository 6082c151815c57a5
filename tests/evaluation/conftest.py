"""The RULER package that `make material` fetches, the policy's tokenizer, options."""

import pathlib

import pytest

from policylong.evaluation.results import Options
from policylong.evaluation.ruler_package import Package
from policylong.model.tokenizer import load_tokenizer


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
