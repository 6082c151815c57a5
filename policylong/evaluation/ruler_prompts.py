"""RULER's prompt sets: generated once for a tokenizer, task, length, seed and count, then read from disk.

  <ruler_dir>/prompts/<task>-<length>-<count>-<seed>-<version>-<tokenizer's hash>/
    prompts.jsonl   as the package's generator wrote it
    DONE.json       what it was made for, and its sha256; the folder appears whole
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import tempfile
import time
from typing import Any

from policylong.errors import UserError
from policylong.evaluation.ruler_package import Package
from policylong.material import RULER_VERSION
from policylong.storage.workdir import new_directory, read_json

log = logging.getLogger(__name__)


class PromptSets:
  """The sets of one tokenizer below `directory`, of one seed and count.

  Args:
    tokenizer: a transformers fast tokenizer.
    count: prompts in a set.
  """

  def __init__(self, package: Package, tokenizer, directory: pathlib.Path, *, seed: int, count: int):
    self._package, self._tokenizer, self._directory = package, tokenizer, directory
    self._key: dict[str, Any] = {"seed": seed, "count": count, "version": RULER_VERSION,
                                 "tokenizer": tokenizer_hash(tokenizer)}

  def path(self, task: str, length: int) -> pathlib.Path:
    """The folder of a set."""
    key = self._key
    return self._directory / f"{task}-{length}-{key['count']}-{key['seed']}-{key['version']}-{key['tokenizer'][:16]}"

  def make(self, wanted: list[tuple[str, int]]) -> None:
    """Generates the sets (task, length) that are not there, several at a time.

    Raises:
      UserError: a generator fails.
    """
    missing = [(task, length) for task, length in wanted if not self.path(task, length).exists()]
    if not missing:
      return
    log.info("RULER: generating %d prompt sets of %d prompts", len(missing), self._key["count"])
    with tempfile.TemporaryDirectory() as temporary, \
         concurrent.futures.ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1)) as pool:
      tokenizer = pathlib.Path(temporary) / "tokenizer"
      self._tokenizer.save_pretrained(tokenizer)
      waiting = [pool.submit(self._make, task, length, tokenizer) for task, length in missing]
      try:
        for done in concurrent.futures.as_completed(waiting):
          done.result()
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise

  def _make(self, task: str, length: int, tokenizer: pathlib.Path) -> None:
    start = time.monotonic()
    with new_directory(self.path(task, length)) as folder, tempfile.TemporaryDirectory() as temporary:
      made = self._package.generate(task, tokenizer=tokenizer, length=length, seed=self._key["seed"],
                                    count=self._key["count"], directory=pathlib.Path(temporary))
      data = made.read_bytes()
      records = _records(data)
      if any(not all(record["outputs"]) or not record["outputs"] for record in records):
        raise UserError(f"RULER's {task} has prompts without an answer at {length} tokens: ask for a longer length")
      (folder / "prompts.jsonl").write_bytes(data)
      # The folder appears whole, and the marker is known in advance: neither a rename nor a checksum is wanted of it.
      (folder / "DONE.json").write_text(json.dumps(self._marker(task, length, data), indent=2) + "\n")
    log.info("RULER: %s, %d tokens: %d prompts in %.0f s", task, length, len(records), time.monotonic() - start)

  def read(self, task: str, length: int) -> list[dict]:
    """The set's records: index, input (the prompt, the answer prefix included), outputs, length.

    Raises:
      UserError: the set is not whole.
    """
    folder = self.path(task, length)
    again = "remove this folder and start the same command again"
    if not (folder / "DONE.json").exists():
      raise UserError(f"the prompt set {folder} was interrupted, it has no DONE.json: {again}")
    try:
      data = (folder / "prompts.jsonl").read_bytes()
    except OSError as error:
      raise UserError(f"the prompt set {folder} cannot be read ({error.strerror}): {again}") from error
    if read_json(folder / "DONE.json", checked=False) != self._marker(task, length, data):
      raise UserError(f"the prompt set {folder} is not what its DONE.json says: {again}")
    return _records(data)

  def _marker(self, task: str, length: int, data: bytes) -> dict:
    return {**self._key, "task": task, "length": length, "sha256": hashlib.sha256(data).hexdigest()}


def tokenizer_hash(tokenizer) -> str:
  """sha256 of everything that decides on a text's tokens."""
  return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def _records(data: bytes) -> list[dict]:
  return [json.loads(line) for line in data.decode().splitlines()]
