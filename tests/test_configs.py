"""Every field has one place with a comment; a user's config is what differs; --print_config shows what results."""

import dataclasses
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import typing

import pytest

from policylong import config as config_lib
from policylong import paper
from policylong.commands import printed_config
from tests.small_run import make_small_run
from tests.test_resume import REPOSITORY

CONFIGS = [f"{path.stem}{argument}" for path in sorted((REPOSITORY / "configs").glob("*.py"))
           for argument in ("", *{"sft": (":paper",), "qwen3b_128k": (":runlocal", ":v5e:8x8")}.get(path.stem, ()))]


def command(module, *arguments, folder=REPOSITORY):
  """A command of the package, as it is started where the package is installed and the repository is elsewhere."""
  environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
  return subprocess.run([sys.executable, "-m", f"policylong.{module}", *arguments], capture_output=True, text=True,
                        cwd=folder, env=environment | {"PYTHONPATH": str(REPOSITORY)}, timeout=600)


def fields(kind, prefix=""):
  """The names of all fields, e.g. "screening.alpha"; a source of documents is one."""
  for name, hint in typing.get_type_hints(kind).items():
    if dataclasses.is_dataclass(hint) and hint is not config_lib.Source:
      yield from fields(hint, f"{prefix}{name}.")
    else:
      yield prefix + name


def get_config(name, folder=REPOSITORY / "configs"):
  """What the config file gives, as nested dictionaries."""
  stem, _, argument = name.partition(":")
  module = importlib.machinery.SourceFileLoader(stem, str(folder / f"{stem}.py")).load_module()
  return module.get_config(*[argument] if argument else []).to_dict()


@pytest.mark.parametrize("setting, kind", [(paper.config, config_lib.Config),
                                           (paper.tuning_config, config_lib.FineTuning)])
def test_every_field_stands_in_the_one_file_with_a_comment(setting, kind):
  config_lib.parse(setting(), kind)
  explained = printed_config.comments()
  assert [field for field in fields(kind) if not explained.get(field)] == []


def test_no_field_has_two_comments():
  source = (REPOSITORY / "policylong" / "paper.py").read_text()
  comments = re.findall(r"(?:^ +# .*\n)+(?= +\"\w+\": )", source, flags=re.MULTILINE)
  groups = {"eval", "mesh"}  # a group may have one beside those of its fields
  assert len(comments) == len({*fields(config_lib.Config), *fields(config_lib.FineTuning), *groups})


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_printed_is_a_config_file_that_gives_the_same(name, tmp_path):
  kind = config_lib.FineTuning if name.startswith("sft") else config_lib.Config
  stem, _, argument = name.partition(":")
  module = "sft" if name.startswith("sft") else "main"
  result = command(module, f"--config={REPOSITORY / 'configs' / stem}.py" + (f":{argument}" if argument else ""),
                   "--print_config", "--config.seed=7", folder=tmp_path)
  assert result.returncode == 0, result.stderr
  (tmp_path / "printed.py").write_text(result.stdout)
  wanted = get_config(name)
  assert config_lib.parse(get_config("printed", tmp_path), kind) == config_lib.parse({**wanted, "seed": 7}, kind)
  assert "# Every random choice follows from it.\n      # The paper's setting: 0\n      'seed': 7,\n" in result.stdout
  assert max(map(len, result.stdout.splitlines())) <= 120


def test_what_is_printed_says_what_a_field_means_and_what_differs():
  result = command("main", "--config=configs/demo.py", "--print_config", "--config.screening.epsilon=0.3",
                   "--config.screening.epsilon_from_control=None")
  assert ("          # Anchor: entropy > mean + alpha * std of its root (E).\n"
          "          # The paper's setting: 2.0\n"
          "          'alpha': 1.0,\n") in result.stdout
  assert ("(E). None: from control.\n          # The paper's setting: 0.4\n          'epsilon': optional(0.3),\n"
          in result.stdout)
  assert "passes.\n          'epsilon_from_control': optional(),\n" in result.stdout
  assert "is a near-copy, never a candidate.\n          'near_copy_ngram': 13,\n" in result.stdout


@pytest.mark.parametrize("lines, words", [
    ('config.screening.alhpa = 1.0', ["screening.alhpa is not a config field", "did you mean screening.alpha?"]),
    ('config.training.update({"step_per_round": 2})', ["did you mean training.steps_per_round?"]),
    ('config.screning.alpha = 1.0', ["mine.py, line 4", '"screening" instead of "screning"']),
    ('config.rounds = "three"', ["mine.py, line 4", "rounds", "three", "int"]),
    ('config.rounds = three', ["mine.py, line 4", "'three' is not defined"]),
    ('config.rounds = ', ["mine.py, line 4", "invalid syntax"]),
    ('import nowhere', ["mine.py, line 4", "nowhere"]),
    ('open("nowhere.txt")', ["mine.py, line 4", "nowhere.txt"]),
    ('config = config.to_dict()', ["mine.py", "must return a ConfigDict"]),
])
def test_a_mistake_in_a_config_file_is_told_in_a_sentence_with_its_line(lines, words, tmp_path):
  (tmp_path / "mine.py").write_text(
      f"from policylong import paper\ndef get_config():\n  config = paper.config()\n  {lines}\n  return config\n")
  result = command("main", "--config=mine.py", "--workdir=run", folder=tmp_path)
  assert result.returncode in (1, 2) and len(result.stderr.strip().splitlines()) == 1, result.stderr
  for word in words:
    assert word in result.stderr


def readme_config() -> str:
  """The whole config of a user that README shows."""
  (block,) = [block for block in re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
              if "def get_config" in block]
  return block


def test_readmes_config_is_whole_and_of_fifteen_lines(tmp_path):
  (tmp_path / "mine.py").write_text(readme_config())
  assert len(readme_config().splitlines()) <= 15
  result = command("main", "--config=mine.py", "--print_config", folder=tmp_path)
  assert result.returncode == 0, result.stderr
  assert "'path': 'models/Qwen2.5-0.5B'" in result.stdout
  assert "# The paper's setting: 131072\n          'sequence_length': 32768," in result.stdout


@pytest.mark.slow
def test_readmes_config_runs_as_it_is_but_for_its_sizes(tmp_path, material):
  make_small_run(tmp_path, material)
  (tmp_path / "models").mkdir()
  (tmp_path / "data").mkdir()
  (tmp_path / "model").rename(tmp_path / "models" / "Qwen2.5-0.5B")
  (tmp_path / "talks.jsonl").rename(tmp_path / "data" / "talks.jsonl")
  (tmp_path / "material").symlink_to(material)
  (tmp_path / "mine.py").write_text(readme_config())
  sizes = {"rounds": 1, "corpus.chunk_chars": 400, "retrieval.embedder_batch": 8, "screening.roots_per_round": 6,
           "screening.root_tokens": 64, "screening.min_root_tokens": 32, "screening.max_anchors_per_root": 4,
           "screening.top_k": 2, "screening.max_chunk_tokens": 64, "screening.tokens_per_batch": 512,
           "screening.epsilon_from_control": 0.25, "synthesis.sequence_length": 256, "training.steps_per_round": 1}
  result = command("main", "--config=mine.py", "--workdir=run", *(f"--config.{k}={v}" for k, v in sizes.items()),
                   folder=tmp_path)
  assert result.returncode == 0, result.stderr[-3000:]
  remembered = json.loads((tmp_path / "run" / "config.json").read_text())
  assert remembered["model"]["path"] == "models/Qwen2.5-0.5B" and remembered["mesh"]["fsdp"] == -1
  assert (tmp_path / "run" / "rounds" / "1" / "DONE.json").exists()
  assert pathlib.Path(tmp_path / "run" / "report" / "index.html").exists()
