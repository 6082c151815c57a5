"""Benchmarks inside a run: what they are asked of stays the same from round to round."""

import pytest

from policylong import config as config_lib
from policylong.errors import UserError
from policylong.evaluation.in_loop import RoundEvaluation
from policylong.model.qwen import ModelConfig
from policylong.storage.workdir import Workdir, write_bare_json, write_json
from tests.small_run import small_config, write_talks

MODEL = ModelConfig(family="llama", vocab_size=49152, embed_dim=32, mlp_dim=64, num_layers=2, num_heads=4,
                    num_kv_heads=2, head_dim=8, norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, max_positions=512,
                    tied=True)


@pytest.mark.parametrize("pattern", ["talks.jsonl", "*.jsonl"])
def test_documents_that_changed_between_rounds_are_refused(tmp_path, pattern):
  values = small_config(tmp_path)
  values.eval.documents.path = str(tmp_path / pattern)
  config, workdir = config_lib.parse(values), Workdir(tmp_path / "run")
  write_talks(tmp_path / "talks.jsonl", 4)
  for _ in range(2):
    RoundEvaluation(config, MODEL, workdir)
  write_talks(tmp_path / "talks.jsonl", 5)
  with pytest.raises(UserError, match=r"began with other eval\.documents than .* put the files back"):
    RoundEvaluation(config, MODEL, workdir)
  write_talks(tmp_path / "talks.jsonl", 4)
  RoundEvaluation(config, MODEL, workdir)


@pytest.mark.parametrize("name", ["DONE.json", "results.json", "results.json.sha256", "key_tokens/64-ab/DONE.json"])
def test_benchmarks_of_which_something_is_damaged_are_not_done(tmp_path, caplog, name):
  write_talks(tmp_path / "talks.jsonl", 4)
  workdir = Workdir(tmp_path / "run")
  evaluation = RoundEvaluation(config_lib.parse(small_config(tmp_path)), MODEL, workdir)
  folder = workdir.round(0).evaluation
  assert not evaluation.done(0)
  for each in ("DONE.json", "key_tokens/64-ab/DONE.json"):
    write_json(folder / each, {"round": 0})
  write_bare_json(folder / "results.json", {"longppl": {}})
  assert evaluation.done(0) and not evaluation.done(1)
  (folder / name).write_bytes((folder / name).read_bytes()[:-4])
  assert not evaluation.done(0) and f"{name.split('/')[-1]} is damaged" in caplog.text
