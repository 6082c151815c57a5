"""HELMET as its authors published it: a checkout with its data, run by its own eval.py with our model put in."""

import contextlib
import functools
import importlib
import inspect
import json
import logging
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import yaml

from policylong.errors import UserError
from policylong.evaluation.policy import cut_middle
from policylong.evaluation.shared_work import number_of
from policylong.storage.checksums import sha256_of_files, sha256_of_texts

# What a checkout must hold, and the columns of a config that list one entry a data set.
_MODULES = ("eval", "arguments", "data", "model_utils", "utils")
_COLUMNS = ("datasets", "test_files", "demo_files", "input_max_length", "generation_max_length")


class Checkout:
  """The folder of HELMET; nothing in it is changed."""

  def __init__(self, directory: str | os.PathLike):
    """Raises a UserError where this is not a checkout of HELMET."""
    self.directory = pathlib.Path(directory).absolute()
    missing = [name for name in (*(f"{module}.py" for module in _MODULES), "configs")
               if not (self.directory / name).exists()]
    if missing:
      raise UserError(f"--helmet_dir is {directory}, which has no {missing[0]}: it must be a checkout of "
                      "github.com/princeton-nlp/HELMET with its data")

  def rows(self, config: str) -> list[dict[str, str]]:
    """The data sets of configs/<config>.yaml, as text by column; none where there is no such file."""
    path = self.directory / "configs" / f"{config}.yaml"
    if not path.exists():
      return []
    fields = yaml.safe_load(path.read_text())
    if not isinstance(fields, dict) or any(column not in fields for column in _COLUMNS):
      raise UserError(f"{path} has not the fields {', '.join(_COLUMNS)} of HELMET's configs: restore it from HELMET")
    columns = [str(fields[column]).split(",") for column in _COLUMNS]
    count = len(columns[0])
    columns = [column * count if len(column) == 1 else column for column in columns]  # as HELMET itself does
    if any(len(column) != count for column in columns):
      raise UserError(f"{path} lists {count} data sets and "
                      f"{', '.join(f'{len(each)} {name}' for name, each in zip(_COLUMNS[1:], columns[1:]))}: restore "
                      "it from HELMET")
    return [{"config": config, **dict(zip(_COLUMNS, row))} for row in zip(*columns)]

  def code_sha256(self) -> str:
    """Of all Python files beside eval.py."""
    return sha256_of_files(sorted(self.directory.glob("*.py")))

  @functools.cache  # noqa: B019 (a checkout lives as long as the command)
  def _files_sha256(self, names: tuple[str, ...]) -> str:
    return sha256_of_files([self.directory / name for name in names])

  def row_sha256(self, row: dict[str, str]) -> str:
    """Of what a row asks: its fields, its config file and its data files, which are read once each."""
    names = (f"configs/{row['config']}.yaml", *(row[name] for name in ("test_files", "demo_files") if row[name]))
    return sha256_of_texts(json.dumps(row, sort_keys=True), self._files_sha256(names))

  def check_data(self, rows: Sequence[dict[str, str]]) -> None:
    """Raises a UserError where a data file is missing."""
    for row in rows:
      for name in (row["test_files"], row["demo_files"]):
        if name and not (self.directory / name).exists():
          raise UserError(f"{self.directory} has no {name}, which configs/{row['config']}.yaml names: fetch HELMET's "
                          "data with its scripts/download_data.sh")

  def run(self, policy, row: dict[str, str], output: pathlib.Path, *, samples: int | None, chat: bool) -> None:
    """Runs HELMET's eval.py on one data set; its files are written to `output`.

    Args:
      policy: our model.
      row: of `rows`.
      output: an empty folder.
      samples: how many at most; None for as many as the config says.
      chat: whether the config's chat template setting holds; a base model is never given one.

    Raises:
      UserError: a package that HELMET imports is missing, or HELMET could not run the data set.
    """
    arguments = [f"--config={self.directory / 'configs' / row['config']}.yaml", "--model_name_or_path=policylong",
                 f"--output_dir={output}", "--num_workers=0", *(f"--{column}={row[column]}" for column in _COLUMNS)]
    arguments += [] if samples is None else [f"--max_test_samples={samples}"]
    arguments += [] if chat else ["--use_chat_template=False"]
    with self._imported(arguments) as evaluation, _errors(evaluation.__name__) as errors:
      evaluation.load_LLM = lambda given: _model(sys.modules["model_utils"], policy, given)
      try:
        evaluation.main()
      except SystemExit as error:
        raise UserError(f"the eval.py of {self.directory} does not know our arguments ({' '.join(arguments)}): use "
                        "HELMET's released version") from error
    if not list(output.glob("*.score")):
      reason = errors[0] if errors else "it wrote no score and did not say why"
      raise UserError(f"HELMET could not run {row['datasets']} of configs/{row['config']}.yaml ({reason}): see what "
                      f"it said above; its packages are in {self.directory / 'requirements.txt'}, datasets<4 among "
                      "them")

  @contextlib.contextmanager
  def _imported(self, arguments: Sequence[str]) -> Iterator[Any]:
    """HELMET's eval.py with its arguments, in its folder; what it imports and sets is gone afterwards."""
    own = {path.stem for path in self.directory.glob("*.py")}
    hidden = {name: sys.modules.pop(name) for name in own if name in sys.modules}
    path, argv, folder = list(sys.path), sys.argv, os.getcwd()
    sys.path.insert(0, str(self.directory))
    sys.argv = ["eval.py", *arguments]
    os.chdir(self.directory)
    try:
      try:
        evaluation = importlib.import_module("eval")
      except ImportError as error:
        raise UserError(f"HELMET in {self.directory} cannot be imported ({error}): install the packages of its "
                        "requirements.txt beside policylong, datasets<4 among them") from error
      yield evaluation
    finally:
      os.chdir(folder)
      sys.path[:], sys.argv = path, argv
      for name in own:
        sys.modules.pop(name, None)
      sys.modules.update(hidden)


def _model(model_utils: Any, policy, arguments: Any):
  """`policy` as one of HELMET's models: prompts are made and cut by HELMET's own code for local models."""

  class Model(model_utils.HFModel):
    """Answers HELMET's prepared inputs."""

    def __init__(self):
      names = inspect.signature(model_utils.LLM.__init__).parameters
      known = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
      known |= {"model_name": policy.name, "max_length": arguments.input_max_length}
      model_utils.LLM.__init__(self, **known)
      self.tokenizer = policy.tokenizer

    def prepare_inputs(self, test_item, data):
      before = test_item.get("context")
      inputs = super().prepare_inputs(test_item, data)
      inputs["truncated"] = test_item.get("context") != before
      return inputs

    def generate(self, inputs=None, prompt=None, **kwargs):
      return self.generate_batch([inputs])[0]

    def generate_batch(self, inputs=None, prompt=None, **kwargs):
      # HELMET cuts a context by as many tokens as are too many and reads the prompt anew, without counting again:
      # Qwen's ".\n\n", one token, may be two then. So a prompt may be longer than HELMET's length, and than the window.
      room = policy.window - int(self.generation_max_length)
      whole = [np.asarray(each["input_ids"])[0].tolist() for each in inputs]
      prompts = [cut_middle(tokens, room) for tokens in whole]
      written = policy.generate(prompts, int(self.generation_max_length), stop=tuple(self.stops or ()),
                                temperature=self.temperature if self.do_sample else 0.0, seed=int(arguments.seed),
                                numbers=[number_of(tokens) for tokens in whole])
      return [{"output": generation.text, "input_len": len(tokens), "output_len": len(generation.tokens),
               "input_text": self.tokenizer.decode(tokens[-500:]),
               "truncated": bool(each["truncated"]) or len(all_tokens) > room}
              for each, all_tokens, tokens, generation in zip(inputs, whole, prompts, written, strict=True)]

  return Model()


@contextlib.contextmanager
def _errors(logger: str) -> Iterator[list[str]]:
  """The exceptions that HELMET logs and goes on after."""
  found: list[str] = []

  class Listener(logging.Handler):

    def emit(self, record):
      if record.exc_info and record.exc_info[1]:
        error = record.exc_info[1]
        found.append(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")

  listener = Listener(logging.ERROR)
  logging.getLogger(logger).addHandler(listener)
  try:
    yield found
  finally:
    logging.getLogger(logger).removeHandler(listener)
