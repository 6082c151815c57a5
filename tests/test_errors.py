"""What is not installed, or older than tested, is told in one sentence that says what to do."""

import importlib.metadata
import logging
import pathlib
import re
import sys

import pytest

from policylong import config, errors
from policylong.corpus import sources
from policylong.errors import UserError
from policylong.evaluation import lm_eval_tasks, ruler_package
from policylong.storage.workdir import Workdir
from policylong.training import metrics


def prepared_folder(tmp_path):
  return sources.source_files(config.Source("web", "tfds", str(tmp_path), "id", "text", "train"))


@pytest.mark.parametrize("module, extra, act", [
    ("tensorflow_datasets", "tfds", prepared_folder),
    ("lm_eval", "evaluation", lambda _: lm_eval_tasks.check_installed()),
    ("wonderwords", "evaluation", ruler_package.Package)])
def test_the_sentence_names_the_module_and_the_extra(monkeypatch, tmp_path, module, extra, act):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(UserError, match=rf"^.* needs {module}, which .*: pip install -e '\.\[{extra}\]' in [^\n]*$"):
    act(tmp_path)


def test_a_module_whose_own_import_is_missing(monkeypatch, tmp_path):
  (tmp_path / "half_installed.py").write_text("import not_there_at_all")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(UserError, match="a thing needs not_there_at_all, "):
    errors.optional_import("half_installed", "evaluation", "a thing")


def test_a_mistake_in_a_module_that_is_there_is_no_missing_package(monkeypatch, tmp_path):
  (tmp_path / "broken.py").write_text("from math import no_such_name")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ImportError, match="no_such_name"):
    errors.optional_import("broken", "evaluation", "a thing")


def test_without_tensorboard_metrics_are_written_all_the_same_and_it_is_said_once(monkeypatch, tmp_path, caplog):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  metrics._say_once.cache_clear()
  workdir = Workdir(tmp_path)
  with caplog.at_level(logging.INFO, "policylong"):
    for after in (0, 1):
      with metrics.MetricsLog(workdir, after) as log:
        log.write({"step": after + 1, "loss": 2.5})
    metrics.write_scalars(workdir, 2, {"evaluation/x": 1.0})
  assert workdir.metrics.read_text() == '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.5}\n'
  assert [record.message.count("'.[tensorboard]'") for record in caplog.records] == [1]
  assert not workdir.tensorboard.exists()


@pytest.mark.parametrize("version, said", [
    ("0.11.2", True), ("0.9.0.1", True), ("0.12.0", False), ("0.12.0.1", False), ("0.13.0.dev20261201", False),
    ("1.0.0", False)])
def test_an_older_jax_is_told_once_at_the_start_and_the_command_runs(monkeypatch, capsys, version, said):
  monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
  errors.run_command(lambda: print("ran"))
  output = capsys.readouterr()
  assert output.out == "ran\n"
  assert [line.startswith(f"note: JAX {version} ") for line in output.err.splitlines()] == [True] * said


def test_the_oldest_jax_is_the_lower_bound_of_setup():
  setup = (pathlib.Path(__file__).parents[1] / "setup.py").read_text()
  assert re.search(r'"jax>=([\d.]+)"', setup).group(1) == ".".join(map(str, errors.OLDEST_JAX))
