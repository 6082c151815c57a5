"""What a plain install leaves out is told in one sentence, with the extra that brings it."""

import logging
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
