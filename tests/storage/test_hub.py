"""What is taken from a server that answers as the hub does: the right files, of the commit that was first seen."""

import json
import os
import pathlib
import subprocess
import sys

import huggingface_hub
import pytest

from policylong.errors import UserError
from policylong.storage import hub
from policylong.storage.workdir import read_json
from tests.hub_stand_in import serving

OLD, NEW = "a" * 40, "b" * 40
# As huggingface_hub reads its addresses when it is imported, what goes through it is a program of its own.
PROGRAM = """
import json, sys
from policylong.errors import UserError
from policylong.storage import hub
from policylong.storage.workdir import read_json
for path, record in json.loads(sys.argv[1]):
  try:
    print(json.dumps(hub.folder(path, record or None)))
  except UserError as error:
    print(json.dumps(f"error: {error}"))
"""


@pytest.fixture
def world(tmp_path):
  """(address, what was asked, root) of a hub with a model in two commits."""
  model = tmp_path / "hub" / "models" / "org" / "tiny.model-1"
  for commit in (OLD, NEW):
    (model / commit / "onnx").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors", "merges.txt", "pytorch_model.bin", "modeling.py",
                 "consolidated.safetensors", "onnx/model.safetensors", "weights.pkl", "README.md"):
      (model / commit / name).write_text(commit)
  (model / "main").symlink_to(NEW)
  (model / "v1").symlink_to(OLD)
  pickled = tmp_path / "hub" / "models" / "org" / "pickled" / OLD
  pickled.mkdir(parents=True)
  (pickled / "pytorch_model.bin").write_text("x")
  (pickled.parent / "main").symlink_to(OLD)
  with serving(tmp_path / "hub") as (address, asked):
    yield address, asked, tmp_path


def folders(world, *questions, address=None):
  """hub.folder of (path, record) pairs, in one process."""
  environment = {**os.environ, "HF_ENDPOINT": address or world[0], "HF_HOME": str(world[2] / "home")}
  said = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(questions)], capture_output=True, text=True,
                        env=environment, cwd=pathlib.Path(__file__).parents[2], timeout=120)
  assert said.returncode == 0, said.stderr
  return [json.loads(line) for line in said.stdout.splitlines()]


def test_only_weights_configs_and_tokenizers_are_fetched_of_the_right_commit(world):
  paths = [f"hf://org/tiny.model-1{end}" for end in ("", "@v1", f"@{OLD}")]
  for found, commit in zip(folders(world, *[(path, "") for path in paths]), (NEW, OLD, OLD), strict=True):
    names = {path.name for path in pathlib.Path(found).rglob("*")}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", "merges.txt"}
    assert (pathlib.Path(found) / "config.json").read_text() == commit
  assert not any(name in asked for asked in world[1] for name in (".bin", ".py", ".pkl", "onnx"))


def test_a_run_goes_on_with_the_commit_it_began_with_and_needs_no_hub_then(world):
  record = str(world[2] / "hub.json")
  (first,) = folders(world, ("hf://org/tiny.model-1@v1", record))
  tag = world[2] / "hub" / "models" / "org" / "tiny.model-1" / "v1"
  tag.unlink()
  tag.symlink_to(NEW)
  assert folders(world, ("hf://org/tiny.model-1@v1", record)) == [first] and OLD in first
  assert read_json(record) == {"hf://org/tiny.model-1@v1": OLD}
  assert folders(world, ("hf://org/tiny.model-1@v1", record), address="http://127.0.0.1:9") == [first]
  (moved,) = folders(world, ("hf://org/tiny.model-1@v1", ""))
  assert NEW in moved


def test_where_the_hub_is_out_of_reach_what_was_fetched_of_a_branch_is_taken(world):
  (fetched,) = folders(world, ("hf://org/tiny.model-1", ""))
  assert folders(world, ("hf://org/tiny.model-1", ""), address="http://127.0.0.1:9") == [fetched]
  (said,) = folders(world, ("hf://org/tiny.model-1@v1", ""), address="http://127.0.0.1:9")  # which was not
  assert "cannot be had from the hub" in said
  (world[2] / "hub" / "models" / "org" / "tiny.model-1").rename(world[2] / "gone")
  (said,) = folders(world, ("hf://org/tiny.model-1", ""))  # the hub is there, and says that it is not
  assert "is not on the hub" in said


def test_what_cannot_be_had_is_one_sentence(world):
  names = ("org/none", "org/tiny.model-1@none", "tiny", "org/pickled")
  said = folders(world, *[(f"hf://{name}", "") for name in names])
  for sentence, wanted in zip(said, ("is not on the hub", "no such revision", "names nothing on the hub",
                                     "has no safetensors"), strict=True):
    assert sentence.startswith("error: hf://") and wanted in sentence and "\n" not in sentence
  (said,) = folders(world, ("hf://org/tiny.model-1", ""), address="http://127.0.0.1:9")
  assert "cannot be had from the hub" in said and "name its folder" in said


def test_other_paths_are_left_alone_and_commits_ask_nobody(monkeypatch):
  monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("asked"))
  for path in ("models/x", "/abs/x.gguf", "~/x", f"hf://org/name@{OLD}", f"hf://org/name:subset@{OLD}"):
    assert hub.pin(path) == path
  assert hub.folder("models/x") == "models/x"
  assert hub.parse("hf://a.b/c-d_e:sub.set@refs/pr/1") == ("a.b/c-d_e", "sub.set", "refs/pr/1")
  for path in ("hf://", "hf://a", "hf://a/b/c", "hf://a/b@", "hf://a/../b", "hf://a/b c"):
    with pytest.raises(UserError, match="names nothing on the hub"):
      hub.parse(path)
