"""Paths as people write them: ~, brackets, wildcards, URLs, links; and the commands that take them."""

import argparse
import contextlib
import importlib
import json
import os
import pathlib
import sys
import types

import jax
import numpy as np
import pytest
from etils import epath

from configs import demo
from policylong import config as config_lib
from policylong import convert, paths
from policylong.commands import config_flags
from policylong.corpus.sources import find_files
from policylong.corpus.store import open_corpus
from policylong.devices import mesh
from policylong.errors import UserError
from policylong.model import stored
from policylong.sft import tuning
from policylong.storage.workdir import Workdir
from policylong.synthesis import storage
from tests.small_chat import conversation, small_tuning, write_chats, write_model
from tests.small_run import make_small_run

REPOSITORY = pathlib.Path(__file__).parents[1]
ODD = "run [1] {a} u\u0308*? 100% @2 #'"


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  (tmp_path / "home").mkdir()
  return tmp_path / "home"


@pytest.mark.parametrize("written, meant", [
    ("~/runs/a", "{home}/runs/a"), ("~", "{home}"), ("runs/~a", "runs/~a"), ("/a/~", "/a/~"), ("", ""),
    ("gs://bucket/~/a", "gs://bucket/~/a"), ("hf://org/name", "hf://org/name"), ("~/a b[1]/ü", "{home}/a b[1]/ü")])
def test_a_leading_tilde_is_the_home_folder_and_nothing_else_changes(home, written, meant):
  assert paths.expand(written) == meant.format(home=home)


def test_every_path_of_a_config_is_expanded_and_the_same_folder_written_otherwise_is_the_same_config(home):
  values = demo.get_config().to_dict()
  values["model"]["path"], values["corpus"]["cache_dir"] = "~/m", "~/cache"
  values["eval"]["ruler_dir"], values["eval"]["documents"]["path"] = "~/ruler", "~/d.jsonl"
  values["retrieval"]["embedder_path"] = "~/e"
  values["corpus"]["sources"] = tuple({**source, "path": "~/s"} for source in values["corpus"]["sources"])
  config = config_lib.parse(values)
  found = (config.model.path, config.corpus.cache_dir, config.eval.ruler_dir, config.eval.documents.path,
           config.retrieval.embedder_path, config.corpus.sources[0].path)
  assert found == tuple(f"{home}/{name}" for name in ("m", "cache", "ruler", "d.jsonl", "e", "s"))
  workdir = Workdir(home / "run")
  workdir.claim(config)
  written = json.loads(workdir.config_json.read_text())
  written["model"]["path"] = "~/m"  # as a version wrote it that did not expand
  workdir.config_json.write_text(json.dumps(written))
  workdir.claim(config)


@pytest.mark.parametrize("arguments", [["--config=~/c.py:a"], ["--config", "~/c.py:a"]])
def test_a_config_file_may_lie_at_home(home, arguments):
  assert config_flags._with_home(arguments)[-1].removeprefix("--config=") == f"{home}/c.py:a"


class Parsed(Exception):
  """In the place of a command's work: the parser of its command line."""


# What commands take besides paths, numbers and choices.
NO_PATHS = {"query", "tasks", "instruction", "embedder_sha256", "coordinator_address", "cell"}


def options(parser):
  """(dest, type) of each option that takes a value of any kind; of all sub-commands."""
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for inner in action.choices.values():
        yield from options(inner)
    elif action.nargs != 0 and not action.choices:
      yield action.dest, action.type or str


def doors():
  """The modules that are commands, and their sources."""
  for path in (*sorted((REPOSITORY / "policylong").rglob("*.py")), REPOSITORY / "experiments" / "grid.py"):
    if 'if __name__ == "__main__":' in (text := path.read_text()):
      yield ".".join(path.relative_to(REPOSITORY).with_suffix("").parts), text


def test_every_path_that_a_command_takes_may_begin_at_home_and_is_never_empty(home, monkeypatch):
  def parsed(parser, *_):
    raise Parsed(parser)
  monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
  found = set()
  for module, text in doors():
    if "config_flags.parse(" in text:
      continue  # the next test
    with pytest.raises(Parsed) as raised:
      importlib.import_module(module).main()
    for name, kind in options(raised.value.args[0]):
      try:
        value = kind("~/x [1]")
      except (ValueError, argparse.ArgumentTypeError):
        continue  # a number
      if name in NO_PATHS:
        assert value == "~/x [1]"
        continue
      assert os.fspath(value) == f"{home}/x [1]", f"--{name} of {module}"
      with pytest.raises(argparse.ArgumentTypeError, match="it is empty"):
        kind("")
      found.add((module.removesuffix(".__main__").rpartition(".")[-1], name))
  assert found >= {("status", "workdir"), ("report", "workdir"), ("grid", "workdir"), ("index", "queries"),
                   ("score", "input"), ("convert", "output"), ("evaluate", "documents"), ("material", "directory")}


def test_so_may_those_of_the_commands_that_take_a_config(home, monkeypatch):
  from absl import flags

  from policylong.commands import run
  from policylong.devices import hosts
  names = set()
  for module, text in doors():
    if "config_flags.parse(" in text:
      importlib.import_module(module)
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    names |= {flag.name for flag in defined if module.startswith("policylong.") and flag.flag_type() in (
        "string", "multi string", "config object")}
  # --config: above; --json and --benchmark by `paths.local`, --base_model where it is used, with tests of their own.
  assert names == {"workdir", "config", "json", "benchmark", "base_model"} | {"topology", "coordinator_address"}
  monkeypatch.setattr(hosts, "joined", lambda *_: contextlib.nullcontext())
  monkeypatch.setattr(run, "_WORKDIR", types.SimpleNamespace(value="~/runs/x"))
  for name in ("_COORDINATOR", "_PROCESSES", "_PROCESS"):
    monkeypatch.setattr(run, name, types.SimpleNamespace(value=None))
  with run.started(demo_config().mesh) as workdir:
    assert workdir == f"{home}/runs/x"
  monkeypatch.setattr(run, "_WORKDIR", types.SimpleNamespace(value=""))
  with pytest.raises(UserError, match="--workdir is empty"), run.started(demo_config().mesh):
    pass


def demo_config():
  return config_lib.parse(demo.get_config().to_dict())


def test_what_is_there_as_it_is_written_is_no_pattern(tmp_path):
  for folder in ("data1", "data[1]", "b*"):
    (tmp_path / folder).mkdir()
    for name in ("x[1].jsonl", "x1.jsonl", "y.jsonl"):
      (tmp_path / folder / name).touch()

  def found(pattern):
    return [path.removeprefix(f"{tmp_path}/") for path in paths.matching(f"{tmp_path}/{pattern}")]
  assert found("data[1]/*.jsonl") == ["data[1]/x1.jsonl", "data[1]/x[1].jsonl", "data[1]/y.jsonl"]
  assert found("data[1]/x[1].jsonl") == ["data[1]/x[1].jsonl"]
  assert found("data?/y.jsonl") == ["data1/y.jsonl"]
  assert found("b*/**/y*") == ["b*/y.jsonl"]
  assert found("data1/x[1]*") == ["data1/x1.jsonl"]  # as the shell has it
  assert found("data1/x[1]?jsonl") == ["data1/x1.jsonl"] and found("data1/[z]*") == []
  assert found("data[1]/x[[]1*") == ["data[1]/x[1].jsonl"]
  assert paths.fixed_part(f"{tmp_path}/data[1]/*/z*.gz") == f"{tmp_path}/data[1]"
  assert paths.fixed_part("data/*/z*.gz") == "data" and paths.fixed_part("*.gz") == ""
  assert [name for _, name in find_files(f"{tmp_path}/data[1]/*.jsonl", "jsonl", "f")] == [
      "x1.jsonl", "x[1].jsonl", "y.jsonl"]


def test_a_folder_is_searched_by_its_own_name_and_not_by_what_that_matches(tmp_path):
  (tmp_path / "run[1]").mkdir()
  (tmp_path / "run1").mkdir()
  (tmp_path / "run[1]" / "part-0").touch()
  (tmp_path / "run1" / "part-1").touch()
  assert [path.name for path in epath.Path(tmp_path / "run[1]").glob("part-*")] == ["part-0"]
  assert [path.name for path in epath.Path(tmp_path / "run1").glob("p*")] == ["part-1"]


def test_sequences_and_a_rounds_tables_are_found_below_an_odd_name(tmp_path):
  folder = tmp_path / ODD
  rows = [np.arange(4, dtype=np.int32), np.arange(4, 8, dtype=np.int32)]
  assert storage.write_records(rows, folder) == 2
  np.testing.assert_array_equal(storage.read_tokens(storage.sequence_paths(folder)), rows)
  assert storage.write_records(rows[:1], folder) == 1  # removes what was there
  assert len(storage.read_tokens(storage.sequence_paths(folder))) == 1


def test_there_and_back_from_home_and_another_folder(home, tmp_path, material, monkeypatch, capsys):
  """Orbax writes and reads below brackets; relative names, a trailing slash and a link are as good as any."""
  write_model(home / "m", material)
  monkeypatch.chdir(tmp_path)

  def run(*arguments):
    monkeypatch.setattr(sys, "argv", ["convert", *arguments])
    convert.main()
    assert "by at most 0\n" in capsys.readouterr().out
  run("hf-to-orbax", "--model=~/m/", f"--output=~/{ODD}")
  os.symlink(home / ODD, tmp_path / "link")
  run("orbax-to-hf", "--model=link", "--output=hf [2]/")
  assert (tmp_path / "hf [2]" / "model.safetensors").exists() and not (tmp_path / "~").exists()


def one_device(sizes):
  return mesh.make_mesh(sizes, jax.devices()[:1])


@pytest.fixture(scope="module")
def done(tmp_path_factory, material):
  """A finished run below an odd name, begun in `folder` with relative paths; its folder."""
  from policylong import loop
  folder = tmp_path_factory.mktemp("done")
  make_small_run(folder, material)
  sys.path.insert(0, str(folder))
  with pytest.MonkeyPatch.context() as patched:
    patched.chdir(folder)
    patched.setattr(loop, "make_mesh", one_device)
    values = __import__("small").get_config()
    values.model.path, values.corpus.cache_dir, values.rounds = "model", "cache", 1
    values.corpus.sources = ({**values.corpus.sources[0], "path": "talks.jsonl"},)
    values.eval.tasks = ()
    loop.run(config_lib.parse(values), ODD)
  return folder


def test_a_run_below_an_odd_name_is_whole_and_is_opened_from_anywhere(done, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = stored.open_model(done / ODD)
  assert found.name.endswith("(step 4)")
  os.symlink(done / ODD / "checkpoints" / "4", tmp_path / "newest")
  linked = stored.open_model("newest")
  params, again = (model.load(np.float32, None) for model in (found, linked))
  assert np.isfinite(params["embedding"]).all()
  np.testing.assert_array_equal(params["embedding"], again["embedding"])
  assert found.identity() == linked.identity()


def test_a_runs_relative_paths_are_below_the_folder_in_which_it_was_begun(done, tmp_path, monkeypatch, capsys):
  from policylong.report import __main__ as report
  (tmp_path / "talks.jsonl").write_text("another file of that name")
  monkeypatch.chdir(tmp_path)
  workdir = Workdir(done / ODD)
  config = config_lib.parse(json.loads(workdir.config_json.read_text()))
  found = workdir.located(config)
  assert found.model.path == f"{done}/model" and found.corpus.sources[0].path == f"{done}/talks.jsonl"
  assert found.corpus.cache_dir == f"{done}/cache" and found.retrieval.embedder_path == ""
  assert found.eval == config.eval and config_lib.with_paths(found, str.upper).model.path == f"{done}/model".upper()
  text = report._chunk_text(workdir)
  assert not capsys.readouterr().err and not (tmp_path / "cache").exists()  # nothing is read again for it
  corpus = open_corpus(found.corpus)
  assert text(corpus.chunk(0).id) == corpus.chunk_text(0)
  monkeypatch.chdir(done)
  assert workdir.located(config) == config


def test_a_base_model_that_moved_is_asked_for_and_taken_and_another_is_refused(done, tmp_path, monkeypatch, capsys):
  (done / "model").rename(done / "moved")
  try:
    with pytest.raises(UserError, match=r"started from model, which is not there any more .* --base_model=PATH"):
      stored.open_model(done / ODD)
    monkeypatch.setattr(sys, "argv", ["convert", "orbax-to-hf", f"--model={done / ODD}", f"--output={tmp_path / 'hf'}",
                                      f"--base_model={done / 'moved'}"])
    convert.main()
    assert "by at most 0\n" in capsys.readouterr().out
    write_chats(tmp_path / "chats.jsonl", map(conversation, range(20)))
    values = small_tuning(done / ODD, tmp_path / "chats.jsonl")
    monkeypatch.setattr(tuning, "Trainer", None)
    with pytest.raises(TypeError, match="not callable"):  # all before training is done
      tuning.run(config_lib.parse(values, config_lib.FineTuning), tmp_path / "tuned", str(done / "moved"))
    assert (tmp_path / "tuned" / "sequences" / "DONE.json").exists()
    with pytest.raises(UserError, match=r"--base_model is .*gone, which is not there"):
      stored.open_model(done / ODD, base_model=str(done / "gone"))
    with pytest.raises(UserError, match="is no run, which started from one"):
      stored.open_model(done / "moved", base_model=str(done / "moved"))
    config = json.loads((done / "moved" / "config.json").read_text())
    for group in (config, config.get("rope_parameters", {})):
      group.update({"rope_theta": 77.0} if "rope_theta" in group else {})
    (tmp_path / "other").mkdir()
    for path in (done / "moved").iterdir():
      (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"began with another model than lies in .*other \(not the same config\)"):
      stored.open_model(done / ODD, base_model=str(tmp_path / "other"))
  finally:
    (done / "moved").rename(done / "model")


def test_a_run_whose_base_model_changed_is_not_gone_on_with(done, monkeypatch):
  from policylong import loop
  monkeypatch.chdir(done)
  monkeypatch.setattr(loop, "make_mesh", one_device)
  workdir = Workdir(ODD)
  config = config_lib.parse(json.loads(workdir.config_json.read_text()))
  pathlib.Path(ODD, "final.json").unlink()
  weights = done / "model" / "model.safetensors"
  held = weights.read_bytes()
  weights.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
  try:
    with pytest.raises(UserError, match=r"began with the model in model, whose weights changed since"):
      loop.run(config, ODD)
  finally:
    weights.write_bytes(held)
