"""A data set on the hub, streamed from a server that answers as it does, at the commit that was first seen."""

import json
import os
import pathlib
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policylong import config as config_lib
from tests.hub_stand_in import serving

OLD, NEW = "c" * 40, "d" * 40
PROGRAM = """
import dataclasses, json, sys
from policylong import config as config_lib
from policylong.corpus.store import open_corpus
from policylong.corpus.streamed import pinned
from policylong.errors import UserError
path, split, field, cache, record = json.loads(sys.argv[1])
try:
  source = config_lib.Source("web", "hub", path, "id", field, split)
  corpus = open_corpus(config_lib.Corpus((pinned(source, record or None),), (), 200, cache, None))
  texts = [(corpus.document(i).id, corpus.document(i).text) for i in range(corpus.num_documents)]
  print(json.dumps([texts, corpus.bad_records]))
except UserError as error:
  print(json.dumps(f"error: {error}"))
"""


@pytest.fixture
def world(tmp_path):
  for commit in (OLD, NEW):
    folder = tmp_path / "hub" / "datasets" / "org" / "set" / commit
    (folder / "data").mkdir(parents=True)
    rows = [{"id": i, "text": f"{commit[0]} text {i}", "content": {"text": f"inner {i}"}} for i in range(5)]
    pq.write_table(pa.Table.from_pylist([*rows, {"id": 9, "text": " "}]), folder / "data" / "train-00000.parquet")
    pq.write_table(pa.Table.from_pylist([{**row, "id": row["id"] + 5} for row in rows]),
                   folder / "data" / "train-00001.parquet")
  (folder.parent / "main").symlink_to(OLD)
  with serving(tmp_path / "hub") as (address, asked):
    yield address, asked, tmp_path


def read(world, path, split="train", field="text", record="", cache="cache", address=None):
  environment = {**os.environ, "HF_ENDPOINT": address or world[0], "HF_HOME": str(world[2] / "home")}
  arguments = json.dumps([path, split, field, str(world[2] / cache), record and str(world[2] / record)])
  said = subprocess.run([sys.executable, "-c", PROGRAM, arguments], capture_output=True, text=True, env=environment,
                        cwd=pathlib.Path(__file__).parents[2], timeout=200)
  assert said.returncode == 0, said.stderr
  return json.loads(said.stdout.splitlines()[-1])


def test_a_data_set_is_streamed_and_stays_at_its_commit(world):
  pytest.importorskip("datasets")
  wanted = [[f"web/{i}", f"c text {i % 5}"] for i in range(10)]
  assert read(world, "hf://org/set", record="hub.json") == [wanted, {"empty text": 1}]
  main = world[2] / "hub" / "datasets" / "org" / "set" / "main"
  main.unlink()
  main.symlink_to(NEW)
  world[1].clear()
  # With what was recorded, the corpus is there already and the hub is not asked; without, it is the new commit's.
  assert read(world, "hf://org/set", record="hub.json", address="http://127.0.0.1:9") == [wanted, {"empty text": 1}]
  texts, _ = read(world, "hf://org/set", field="content.text")
  assert texts[0] == ["web/0", "inner 0"] and len(texts) == 10 and any(NEW in asked for asked in world[1])


def test_what_cannot_be_streamed_is_one_sentence(world):
  pytest.importorskip("datasets")
  for path, split, address, wanted in (
      ("hf://org/none", "train", None, "is not on the hub"), ("hf://org/set@none", "train", None, "no such revision"),
      (f"hf://org/set@{OLD}", "nope", None, "cannot be read with split 'nope'"),
      (f"hf://org/set@{OLD}", "train", "http://127.0.0.1:9", "out of reach")):
    said = read(world, path, split, address=address)
    assert said.startswith("error: ") and wanted in said and "\n" not in said, said


@pytest.mark.parametrize(("kind", "path"), [("hub", "org/set"), ("jsonl", "hf://org/set"), ("parquet", "hf://org/set")])
def test_the_path_of_kind_hub_begins_with_hf(kind, path):
  with pytest.raises(config_lib.ConfigError, match="hf://ORG/NAME is the path of kind hub"):
    config_lib.Source("web", kind, path, "id", "text", "train")
