"""What a person gets wrong is told in one sentence with a non-zero exit, before anything expensive."""

import json
import subprocess
import sys

import pytest

from policylong import config as config_lib
from policylong import loop
from policylong.errors import UserError
from policylong.screening.retrieve import Retriever
from policylong.synthesis.filling import Filling
from tests.small_run import make_small_run, small_config, write_talks
from tests.test_resume import REPOSITORY, run_main


@pytest.fixture(scope="module")
def folder(tmp_path_factory, material):
  folder = tmp_path_factory.mktemp("small")
  make_small_run(folder, material)
  return folder


@pytest.fixture
def config(folder, tmp_path):
  """The small config on the 8 simulated devices, with a cache of its own."""
  values = small_config(folder)
  values.mesh.update({"data": 2, "fsdp": 1, "context": 4})
  values.corpus.cache_dir = str(tmp_path / "cache")
  return values


def refusal(values, workdir):
  """The sentence that a run of this config ends with."""
  with pytest.raises(UserError) as caught:
    loop.run(config_lib.parse(values), workdir)
  sentence = str(caught.value)
  assert "\n" not in sentence
  return sentence


def _talks(config, folder, lines):
  path = folder / "bad.jsonl"
  path.write_bytes(b"\n".join(lines) + b"\n")
  (source,) = (dict(s) for s in config.corpus.sources)
  config.corpus.sources = ({**source, "path": str(path)},)


def test_a_missing_model_is_named(config, tmp_path):
  config.model.path = str(tmp_path / "nowhere")
  assert "nowhere" in refusal(config, tmp_path / "run")


def test_a_wrong_hash_is_told_with_both(config, tmp_path):
  config.model.sha256 = "0" * 64
  sentence = refusal(config, tmp_path / "run")
  assert "0" * 64 in sentence and str(config.model.path) in sentence


def test_a_truncated_weight_file_is_named(config, folder, tmp_path):
  import shutil
  shutil.copytree(folder / "model", tmp_path / "model")
  weights = tmp_path / "model" / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-100])
  config.model.path = str(tmp_path / "model")
  assert "model.safetensors" in refusal(config, tmp_path / "run")


def test_an_unknown_architecture_is_named(config, folder, tmp_path):
  import shutil
  shutil.copytree(folder / "model", tmp_path / "model")
  described = json.loads((tmp_path / "model" / "config.json").read_text())
  (tmp_path / "model" / "config.json").write_text(json.dumps({**described, "model_type": "mamba"}))
  config.model.path = str(tmp_path / "model")
  assert "mamba" in refusal(config, tmp_path / "run")


def test_a_mesh_that_does_not_match_the_devices_is_told_with_both_numbers(config, tmp_path):
  config.mesh.update({"data": 1, "context": 2})
  sentence = refusal(config, tmp_path / "run")
  assert "2 devices" in sentence and "8" in sentence


def test_more_leaves_than_chunks_is_told_with_both_numbers(config, tmp_path):
  config.retrieval.index = "scann"
  config.retrieval.leaves = 100_000
  sentence = refusal(config, tmp_path / "run")
  assert "100000" in sentence.replace(",", "") and "leaves" in sentence


def test_a_corpus_without_a_single_good_record_is_refused(config, tmp_path):
  _talks(config, tmp_path, [b"not json", b'{"id": 1}', b'{"id": 2, "text": "\xff"}'])
  sentence = refusal(config, tmp_path / "run")
  assert "the corpus is empty" in sentence and "1 not JSON, 1 text missing, 1 invalid UTF-8" in sentence


def test_too_few_documents_for_the_rounds_is_told_with_both_numbers_before_the_first_round(config, tmp_path):
  config.rounds = 5
  sentence = refusal(config, tmp_path / "run")
  assert "60" in sentence and "24" in sentence
  assert not (tmp_path / "run" / "rounds").exists()


def test_a_corpus_where_no_root_has_an_anchor_says_so(config, tmp_path):
  config.screening.alpha = 50.0
  sentence = refusal(config, tmp_path / "run")
  assert "12 roots" in sentence and "alpha = 50" in sentence


def test_a_corpus_that_is_not_the_one_the_run_began_with_is_refused(config, folder, tmp_path):
  config.screening.alpha = 50.0
  _talks(config, tmp_path, (folder / "talks.jsonl").read_bytes().splitlines())
  assert "12 roots" in refusal(config, tmp_path / "run")
  with open(tmp_path / "bad.jsonl", "ab") as file:
    file.write(b'{"id": "new", "text": "A text that was not there."}\n')
  sentence = refusal(config, tmp_path / "run")
  assert "began with the corpus" in sentence and "choose another --workdir" in sentence


def test_where_no_random_chunk_is_left_for_the_control_it_is_said(config, tmp_path, monkeypatch):
  monkeypatch.setattr(Retriever, "_control", lambda *_: [])
  sentence = refusal(config, tmp_path / "run")
  assert "screening.epsilon_from_control needs some" in sentence and "larger corpus" in sentence


def test_a_corpus_where_nothing_is_accepted_says_so_with_the_best_gain(config, tmp_path):
  config.screening.epsilon, config.screening.epsilon_from_control = 0.999, None
  sentence = refusal(config, tmp_path / "run")
  assert "none passes" in sentence and "epsilon = 0.999" in sentence


def test_a_task_that_does_not_exist_and_a_length_above_the_window_are_told_before_the_first_round(config, tmp_path):
  config.eval.tasks = ("position_los",)
  assert "there is no task 'position_los'; did you mean position_loss?" in refusal(config, tmp_path / "a")
  config.eval.tasks = ("helmet",)
  assert "eval.tasks has helmet, which runs from a checkout of its own" in refusal(config, tmp_path / "c")
  config.eval.tasks, config.eval.lengths = ("position_loss",), (1024,)
  assert "length 1024 is asked for, and the window" in refusal(config, tmp_path / "b")
  assert not (tmp_path / "a" / "rounds").exists() and not (tmp_path / "b" / "rounds").exists()


def test_bad_records_and_documents_longer_than_the_window_are_counted_and_do_not_stop_a_run(config, tmp_path):
  write_talks(tmp_path / "good.jsonl")
  good = (tmp_path / "good.jsonl").read_bytes().splitlines()
  _talks(config, tmp_path, [b"{", b'"text"', b'{"id": "x"}', b'{"id": "y", "text": "\xff\xfe"}', good[0], *good])
  page = loop.run(config_lib.parse(config), tmp_path / "run")
  bad = json.loads((tmp_path / "run" / "corpus.json").read_text())["bad_records"]
  counts = {reason: value["count"] if isinstance(value, dict) else value for reason, value in bad.items()}
  assert counts == {"not JSON": 1, "not a JSON object": 1, "text missing": 1, "invalid UTF-8": 1, "duplicate id": 1}
  text = page.read_text()
  assert all(reason in text for reason in counts)
  # every talk is longer than the 64 tokens of a root: one window of each is read
  import pyarrow.parquet as pq
  roots = pq.read_table(tmp_path / "run" / "rounds" / "1" / "roots.parquet").to_pylist()
  assert 2 < len(roots) < 12 and all(61 <= len(root["tokens"]) <= 64 for root in roots)


def test_where_fewer_sequences_filled_than_was_reckoned_more_roots_are_screened(config, tmp_path, monkeypatch):
  add = Filling.add

  def too_many(self, root, positives):
    add(self, root, positives)
    self.sequences += bool(positives)
  monkeypatch.setattr(Filling, "add", too_many)
  config.rounds, config.eval.tasks, config.screening.budget = 1, (), None
  loop.run(config_lib.parse(config), tmp_path / "run")
  folder = tmp_path / "run" / "rounds" / "1"
  judged, done = (json.loads((folder / name).read_text()) for name in ("judged.json", "DONE.json"))
  assert judged["asked"] > 8 and judged["shards"] == done["shards"]
  assert done["sequences"] == 8 and done["epochs"] == 1.0


@pytest.mark.parametrize("arguments, words", [
    (["--config=configs/none.py", "--workdir=x"], "none.py"),
    (["--workdir=x"], "--config is missing"),
    (["--config=configs/demo.py"], "--workdir is missing"),
    (["--config=configs/demo.py", "--workdir=x", "--config.screening.alhpa=1"], "alhpa"),
    (["--config=configs/demo.py", "--workdir=x", "--rounds=3"], "rounds"),
    (["--config=configs/demo.py", "--workdir=x", "--config.screening.top_k=many"], "top_k"),
])
def test_bad_usage_of_main_exits_2_with_one_sentence(arguments, words):
  result = subprocess.run([sys.executable, "-m", "policylong.main", *arguments], capture_output=True, text=True,
                          cwd=REPOSITORY)
  assert result.returncode == 2, result.stderr
  assert len(result.stderr.strip().splitlines()) == 1 and words in result.stderr


def test_a_contradiction_in_the_config_exits_1_with_one_sentence(folder, tmp_path):
  result = run_main(folder / "small.py", tmp_path / "run", synthesis__sequence_length=32)
  assert result.returncode == 1 and not (tmp_path / "run").exists()
  assert result.stderr.strip().splitlines()[-1].startswith("error: synthesis.sequence_length is 32")
  assert "Traceback" not in result.stderr


def test_the_command_line_takes_none_and_numbers_where_a_field_may_be_none(folder, tmp_path):
  changes = {"screening__epsilon": 0.3, "screening__epsilon_from_control": None, "training__longfilter_share": 0.5}
  result = run_main(folder / "small.py", tmp_path / "run", **changes, rounds=0)  # screening and training are fine
  assert result.returncode == 1 and result.stderr.strip() == "error: rounds is 0; it must be at least 1"
  result = run_main(folder / "small.py", tmp_path / "run", screening__epsilon="much")
  assert result.returncode == 1 and "screening.epsilon is 'much'; it must be of type float" in result.stderr


@pytest.mark.parametrize("module", ["main", "score", "convert", "index", "report", "material", "evaluate", "status"])
def test_every_command_has_help(module):
  result = subprocess.run([sys.executable, "-m", f"policylong.{module}", "--help"], capture_output=True, text=True,
                          cwd=REPOSITORY)
  assert result.returncode == 0 and ("usage:" in result.stdout or "--config" in result.stdout)
