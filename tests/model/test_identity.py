"""What a model is known by: each thing that changes its answers, and nothing else."""

import hashlib
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from policylong.model.identity import changed
from policylong.model.stored import open_model
from policylong.storage import checksums

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from tests.small_chat import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory, material):
  return write_model(tmp_path_factory.mktemp("identity") / "m", material)


def _config(folder):
  values = json.loads((folder / "config.json").read_text())
  values.get("rope_parameters", values)["rope_theta"] = 5e5
  (folder / "config.json").write_text(json.dumps(values))


def _weights(folder):
  path = folder / "model.safetensors"
  tensors, stat = load_file(path), path.stat()
  tensors["model.norm.weight"] = np.nextafter(tensors["model.norm.weight"], np.float32(9))
  save_file(tensors, path, metadata={"format": "pt"})
  assert path.stat().st_size == stat.st_size  # neither size nor a time that was set back tells it


def _tokenizer(folder):
  values = json.loads((folder / "tokenizer.json").read_text())
  values["model"]["merges"] = values["model"]["merges"][:-1]
  (folder / "tokenizer.json").write_text(json.dumps(values))


def _template(folder):
  (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")


def _ends(folder):
  (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))


@pytest.mark.parametrize("change, names", [
    (_config, ["config"]), (_weights, ["weights"]), (_tokenizer, ["tokenizer"]), (_template, ["chat template"]),
    (_ends, ["end tokens"])])
def test_each_thing_that_changes_answers_changes_the_identity(model, tmp_path, change, names):
  before = open_model(model).identity()
  copy = tmp_path / "elsewhere [1]"
  shutil.copytree(model, copy)
  assert open_model(copy).identity() == before
  (copy / "README.md").write_text("says nothing")
  assert open_model(copy).identity() == before
  change(copy)
  assert changed(before, open_model(copy).identity()) == names


def test_a_config_with_a_field_more_of_a_later_version_is_the_same():
  assert changed({"config": '{"a": 1, "b": 2}'}, {"config": '{"a": 1, "c": 3}'}) == []
  assert changed({"config": '{"a": 1}'}, {"config": '{"a": 2}'}) == changed({}, {"config": "{}"}) == ["config"]


def test_all_bytes_of_files_count_in_blocks(tmp_path, monkeypatch):
  monkeypatch.setattr(checksums, "_BLOCK", 4)
  (tmp_path / "a").write_bytes(b"0123456789")
  (tmp_path / "b").write_bytes(b"")

  def block(start, data):
    return f"{start}+{len(data)}:{hashlib.sha256(data).hexdigest()} "
  wanted = block(0, b"0123") + block(4, b"4567") + block(8, b"89") + block(0, b"")
  assert checksums.sha256_of_files([tmp_path / "a", tmp_path / "b"]) == hashlib.sha256(wanted.encode()).hexdigest()
