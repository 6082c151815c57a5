"""NVIDIA's RULER package as it is: its tasks, its generators as programs, its metrics.

The package is unpacked and not installed: what it declares to need (an API client, an evaluation service) is for
serving models, and its generators and metrics use none of it. Its files are read where they lie. Two things are done
around them, and nothing is changed in them:

  * its generators split essays into sentences with nltk, whose data they expect to be downloaded: NLTK_DATA names a
    copy that was fetched with the package;
  * its scoring program reads arguments and downloads when it is imported, so its function that cleans a prediction is
    compiled alone, out of that file.
"""

import ast
import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Sequence

import yaml

from policylong import errors
from policylong.errors import UserError
from policylong.material import fetch_ruler

# All tasks, in the order of RULER's tables.
TASKS = ("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
         "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2")
# What its generators import of packages that the rest of this project does not need.
_NEEDED = ("wonderwords", "nltk", "tenacity", "scipy", "yaml")
# A generator that computes for so long and says nothing has no prompt that fits: some of them then try for ever
# (seconds of its own, so that a busy machine does not count; and more for longer prompts).
_PATIENCE, _TOKENS_A_SECOND = 60, 200


@dataclasses.dataclass(frozen=True)
class Task:
  """One task as the package describes it.

  kind: the generator's name. arguments: of the generator. new_tokens: what may be answered, tokens.
  template: the generator's prompt, the answer prefix included. prefix_head: the words that the prefix starts with.
  metric: its name in the package.
  """
  name: str
  kind: str
  arguments: dict
  new_tokens: int
  template: str
  prefix_head: str
  metric: str


def check_installed() -> None:
  """Raises a UserError where something that RULER's generators import is not installed."""
  errors.check_installed(_NEEDED, "evaluation", "RULER's generator")


class Package:
  """The unpacked package in `directory`, fetched if it is not there.

  Raises:
    UserError: it cannot be fetched, or something that its generators import is not installed.
  """

  def __init__(self, directory: str | os.PathLike):
    self.directory = pathlib.Path(directory).absolute()
    check_installed()
    fetch_ruler(self.directory)
    self._code = self.directory / "long_context_eval"

  @functools.cached_property
  def tasks(self) -> dict[str, Task]:
    """All 13."""
    described = yaml.safe_load((self._code / "synthetic.yaml").read_text())
    kinds = _module(self._code / "data" / "synthetic" / "constants.py").TASKS
    result = {}
    for name in TASKS:
      kind = described[name]["task"]
      prefix = kinds[kind]["answer_prefix"]
      result[name] = Task(name, kind, described[name]["args"], kinds[kind]["tokens_to_generate"],
                          kinds[kind]["template"] + prefix, prefix.partition("{")[0],
                          self._metrics[kind]["metric_fn"].__name__)
    return result

  @functools.cached_property
  def _metrics(self) -> dict:
    return _module(self._code / "eval" / "synthetic" / "constants.py").TASKS

  @functools.cached_property
  def _clean(self):
    return _function(self._code / "eval" / "evaluate.py", "postprocess_pred", {"re": re})

  def score(self, task: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The package's own score of a task, 0 to 100."""
    kind = self.tasks[task].kind
    cleaned = [self._clean(prediction, self._metrics[kind]) for prediction in predictions]
    return float(self._metrics[kind]["metric_fn"](cleaned, references))

  def generate(self, task: str, *, tokenizer: pathlib.Path, length: int, seed: int, count: int,
               directory: pathlib.Path) -> pathlib.Path:
    """Runs the task's generator; returns the JSONL that it wrote below `directory`.

    Args:
      tokenizer: a directory that transformers' AutoTokenizer reads.
      length: of prompt and answer together, tokens.

    Raises:
      UserError: no prompt of the task is so short.
    """
    described = self.tasks[task]
    command = [sys.executable, str(self._code / "data" / "synthetic" / f"{described.kind}.py"),
               "--save_dir", str(directory), "--save_name", task, "--subset", "validation",
               "--tokenizer_path", str(tokenizer), "--tokenizer_type", "hf", "--max_seq_length", str(length),
               "--tokens_to_generate", str(described.new_tokens), "--num_samples", str(count),
               "--random_seed", str(seed), "--template", described.template]
    for name, value in described.arguments.items():
      command += [f"--{name}", str(value)]
    modules = os.pathsep.join([str(self.directory), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": modules, "NLTK_DATA": str(self.directory / "nltk_data"),
                   "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile() as said:
      code = _run(command, environment, said, _PATIENCE + length / _TOKENS_A_SECOND)
      said.seek(0)
      last = (said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    made = directory / task / "validation.jsonl"
    if code is None:
      raise UserError(f"RULER's generator finds no prompt of {task} in {length} tokens: ask for a longer length")
    if code or not made.exists():
      raise UserError(f"RULER's generator of {task} failed at length {length} ({last}): a longer length may do")
    return made


def _run(command: list[str], environment: dict, said, patience: float) -> int | None:
  """The exit code of a program, or None if it was ended: it had computed for `patience` seconds and said nothing."""
  process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
  size, since = 0, 0.0
  try:
    while process.poll() is None:
      time.sleep(0.05)
      if (now := os.fstat(said.fileno()).st_size) != size:
        size, since = now, _cpu_seconds(process.pid)
      elif _cpu_seconds(process.pid) - since > patience:
        return None
    return process.returncode
  finally:
    process.kill()
    process.wait()


def _cpu_seconds(pid: int) -> float:
  """What a process of ours has computed so far; it may have ended, but was not waited for."""
  fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _module(path: pathlib.Path) -> types.ModuleType:
  """A file of constants and pure functions, as a module that nobody else sees."""
  spec = importlib.util.spec_from_file_location(f"ruler_{path.parent.parent.name}_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _function(path: pathlib.Path, name: str, names: dict):
  """One function of a file, compiled without running the rest of it."""
  (found,) = (node for node in ast.parse(path.read_text()).body
              if isinstance(node, ast.FunctionDef) and node.name == name)
  names = dict(names)
  exec(compile(ast.Module([found], []), str(path), "exec"), names)
  return names[name]
