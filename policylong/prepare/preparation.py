"""The whole: stage after stage until the corpus is there. What this process does itself, between them, is small."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from policylong import config as config_lib
from policylong import paths
from policylong.corpus import store, streamed
from policylong.errors import Damaged, UserError
from policylong.prepare import benchmarks as benchmarks_lib
from policylong.prepare import duplicates, minhash, reading, signing, writing
from policylong.prepare.layout import Work
from policylong.prepare.pipeline import Stage, run_stage
from policylong.prepare.plan import FORMAT, Plan, shards_of, unit_name, units_of
from policylong.storage import lock
from policylong.storage.workdir import read_json, write_json

log = logging.getLogger(__name__)

_HUB = "hub.json"


def prepare(config: config_lib.Corpus, *, near_duplicates: float, benchmarks: Sequence[str], flags: Sequence[str]
            ) -> tuple[dict[str, Any], float | None, bool]:
  """Makes, or goes on with, what `config.prepared` names.

  Args:
    config: whose sources are read.
    near_duplicates: Jaccard similarity from which on two documents are near-duplicates; 0: none are.
    benchmarks: as benchmarks.py reads them.
    flags: of Beam's runner.

  Returns:
    The manifest; the seconds that this took, None where it was there before; whether it began with nothing.
  Raises:
    UserError: a source or benchmark cannot be read, the folder was begun otherwise or is another one's, or nothing is
      left.
  """
  start = time.monotonic()
  directory = epath.Path(paths.expand(config.prepared))
  names = benchmarks_lib.names_of(benchmarks)
  with lock.held(directory / "lock", str(directory)):
    sources = tuple(streamed.pinned(source, directory / _HUB) for source in config.sources)
    state, total = store.state(dataclasses.replace(config, sources=sources))
    table = benchmarks_lib.load(list(benchmarks))
    settings = {"chunk_chars": config.chunk_chars, "near_duplicates": near_duplicates,
                "shingle_words": minhash.SHINGLE, "bands": minhash.BANDS, "rows": minhash.ROWS,
                "benchmarks": names, "benchmark_texts": benchmarks_lib.fingerprint(table)}
    _claim(directory, {**settings, "format": FORMAT, "sources": state})
    if (directory / "DONE.json").exists():
      _remove_work(directory)  # of a kill behind the last write
      return read_json(directory / "manifest.json"), None, False
    begins = not Work(str(directory)).finished("read")
    plan = Plan(str(directory), sources, units_of(sources), config.chunk_chars, near_duplicates)
    log.info("%s of %d sources in %d units", f"{total:,} bytes", len(plan.sources), len(plan.units))
    try:
      manifest = _made(plan, table, settings, flags)
    except writing.NothingLeft:
      (directory / "settings.json").unlink()  # the next start may have other settings
      _remove_work(directory)
      raise
    _remove_work(directory)
  return manifest, time.monotonic() - start, begins


def _made(plan: Plan, table: benchmarks_lib.Table, settings: dict, flags: Sequence[str]) -> dict[str, Any]:
  """What is left to do, and the manifest. A stage of whose files one is damaged is done again, once, with a line.

  What was made of it before is what it would be now: nobody has read the damage.
  """
  again: set[str] = set()
  while True:
    try:
      signing.save_table(plan, table)
      _stages(plan, settings["benchmarks"], flags)
      return writing.finish(plan, settings)
    except Damaged as error:
      folder = epath.Path(error.path).parent
      stage = "write" if folder == epath.Path(plan.directory) else folder.name
      if stage in again or not plan.work.path(stage, "").exists():
        raise
      again.add(stage)
      log.warning("%s is damaged (%s): what stage %s has made is made again", error.path, error.reason, stage)
      plan.work.forget(stage)


def _stages(plan: Plan, benchmarks: list[str], flags: Sequence[str]) -> None:
  """Everything up to the shards; each line begins where the files of the one before are there."""
  run_stage(plan, Stage("read", reading.read, [max(1, unit.size) for unit in plan.units], "B", 7e-8), flags)
  shards = shards_of(plan)
  if not shards:
    writing.refuse_nothing(writing.summarised(plan, []))
  documents = [shard.documents for shard in shards]
  characters = [shard.characters for shard in shards]
  run_stage(plan, Stage("sign", signing.sign, documents, "documents", 8e-5), flags)
  ranges = duplicates.num_ranges(plan)
  run_stage(plan, Stage("exact", duplicates.exact, [sum(documents) // ranges] * ranges, "documents", 1e-6), flags)
  if plan.near_duplicates:
    hashes = ranges * minhash.BANDS
    run_stage(plan, Stage("candidates", duplicates.candidates, [sum(documents) // ranges] * hashes, "hashes", 2e-7),
              flags)
    parts = _once(plan, "groups", lambda: duplicates.groups(plan, hashes))
    run_stage(plan, Stage("shingles", duplicates.shingles, documents, "documents", 2e-5), flags)
    run_stage(plan, Stage("verify", duplicates.verify, [duplicates.PART] * parts, "documents", 5e-5), flags)
  _once(plan, "decided", lambda: writing.decide(plan))
  outputs = writing.outputs(plan)
  carries_file = reading.sources_whose_ids_carry_the_file(plan)
  for source, carries in zip(plan.sources, carries_file):
    if carries:
      log.info("source %s: files have ids in common: its ids carry the file", source.name)
  write = functools.partial(writing.write, carries_file=carries_file, benchmarks=benchmarks)
  run_stage(plan, Stage("write", write, [sum(characters[i] for i in output) for output in outputs], "characters", 4e-8),
            flags)


def _once(plan: Plan, step: str, function: Callable[[], Any]) -> Any:
  """What a step of this process gives, which is done once."""
  if unit_name(0) not in plan.work.finished(step):
    plan.work.finish(step, unit_name(0), {"value": function()})
  return plan.work.counts(step, unit_name(0))["value"]


def _claim(directory: epath.Path, settings: dict) -> None:
  """Makes the folder this preparation's own. One in which nothing was done yet is anybody's.

  Raises:
    UserError: it is another one's.
  """
  path = directory / "settings.json"
  if path.exists():
    found = read_json(path)
    difference = config_lib.differences(found, settings)
    if difference and not Work(str(directory)).finished("read") and not (directory / "DONE.json").exists():
      _remove_work(directory)
      difference = []
    if difference:
      raise UserError(f"{directory} was prepared, or begun, otherwise or from files that have changed since; set "
                      f"corpus.prepared to another folder, or remove this one: {'; '.join(difference)}")
    if found != settings:
      write_json(path, settings)
    return
  if directory.exists() and any(
      path.name not in ("lock", _HUB) and not path.name.startswith(".") for path in directory.iterdir()):
    raise UserError(f"corpus.prepared is {directory}, which is not empty and holds no settings.json: name another "
                    "folder")
  write_json(path, settings)


def _remove_work(directory: epath.Path) -> None:
  if (directory / "work").exists():
    (directory / "work").rmtree()
  for path in directory.iterdir():
    if path.name.startswith(".") and path.suffix == ".tmp":
      path.unlink(missing_ok=True)
