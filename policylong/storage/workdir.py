"""Where things lie in a working directory, atomic writes, and what is finished.

Every JSON file has a checksum in it and every table one in its footer (`tables`), over what it holds and over where it
belongs: which file of which round, and of shards of which config. What lies elsewhere, or holds something else, is
`Damaged`.

The only module that knows the folder layout:

  config.json                    the exact config; a different one is refused
  origin.json                    the folder in which the run was started: the config's relative paths are below it
  base_model.json                what the model was that it began with; another one in its place is refused
  hub.json                       the commits of what is taken from the hub without one
  corpus.json                    what was read: documents, chunks, bad records
  documents.json                 what eval.documents held when the run began; other ones in their place are refused
  checkpoints/<step>/            Orbax
  rounds/<r>/*.parquet           tables for people, r = 1 .. rounds
  rounds/<r>/sequences/          array_record for training; selected/: those of them that it reads, where it chooses
  rounds/<r>/shards/             unfinished work, gone when the round is done
  rounds/<r>/judged.json         thresholds and costs of its verdicts; written behind the tables up to them
  rounds/<r>/screened.json       what is known of the round before it trains
  rounds/<r>/DONE.json           counts, hashes, policy step; written last
  rounds/<r>/evaluation/         results.json of the policy after the round, and its answers; r = 0: of the base model
  offpolicy.parquet, final.json  the last policy's view of the last round; written when the run is done
  metrics.jsonl, tensorboard/, report/index.html
  wandb.json, wandb/             the run's id on Weights & Biases, and its files; where the config names a project
  progress/<process>.json        how far each process is; gone when the run is done
  lock/                          who works in the folder; there while somebody does

and of a fine-tuning's:

  config.json, origin.json, base_model.json, checkpoints/, metrics.jsonl, tensorboard/, wandb/, progress/, lock/
                                 as above
  model/                         what the checkpoints are weights of: model.json, tokenizer/
  sequences/                     array_record: the packed conversations; held_out/: those that are not trained on
  sequences/DONE.json            counts; written last
  held_out.json                  the loss before the first step
  final.json                     the loss before and after; written when the run is done
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from policylong import config as config_lib
from policylong import oserrors, paths
from policylong.errors import Damaged, UserError

_CHECKSUM, _CONFIG, _CONFIG_SHA256 = "checksum", "config.json", "config.json.sha256"
# Of this process's working directories: it is asked for with every table.
_run_ids: dict[str, str] = {}

log = logging.getLogger(__name__)


def write_atomically(path: epath.Path, data: bytes, *, shared: bool = False) -> None:
  """Writes a file whole or not at all: a temporary beside it, then a rename over what was there.

  Args:
    path: of the file; its folder is made.
    data: what it is to hold.
    shared: whether other processes may write the same file at the same time, as `temporary_beside` has it.
  """
  path = epath.Path(path)
  temporary = temporary_beside(path, shared=shared)
  with oserrors.about(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      temporary.write_bytes(data)
      temporary.replace(path)
    except OSError:
      with contextlib.suppress(OSError):  # what it holds is no use, and its room may be
        temporary.unlink(missing_ok=True)
      raise


def temporary_beside(path: epath.Path, *, shared: bool) -> epath.Path:
  """What a file is called until it is whole: .*.tmp.

  A file of a working directory is written by one process, the holder of its lock, and has one such name, so that what
  a kill left is written over by the next start. Where others may write it at the same time (`shared`), each time has
  its own: two with one would rename each other's half, or find theirs gone. Neither pid nor host would tell them
  apart in containers.
  """
  own = f".{secrets.token_hex(4)}" if shared else ""
  return path.with_name(f".{path.name}{own}.tmp")


def check_output(path: str | os.PathLike, flag: str) -> None:
  """Whether a file or folder can be made at a path, before the work that it is to hold.

  Raises:
    UserError: it is empty, or a folder is there.
    OSError: nothing can be written there.
  """
  target = epath.Path(path)
  if not target.name or target.is_dir():
    raise UserError(f"{flag} is {f'{os.fspath(path)}, a folder' if os.fspath(path) else 'empty'}: name a file that is "
                    "to be made")
  write_atomically(probe := target.with_name(f".{target.name}.probe"), b"")
  probe.unlink()


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A local folder that is there whole or not at all: the block fills a temporary beside it, renamed at the end.

  Raises:
    UserError: `directory` is there already.
  """
  directory = pathlib.Path(directory).absolute()
  if directory.exists():
    raise UserError(f"{directory} is there already: give a directory that does not exist, or remove it")
  directory.parent.mkdir(parents=True, exist_ok=True)
  temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
  try:
    yield temporary
    temporary.chmod(0o755)  # mkdtemp's folder is the owner's alone
    os.rename(temporary, directory)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def write_json(path: epath.PathLike, value: dict) -> None:
  """JSON with sorted keys and a checksum, whole or not at all."""
  value = json.loads(json.dumps(value))  # its keys as they will be read
  write_atomically(path, _as_bytes({**value, _CHECKSUM: _checksum(path, value)}))


def read_json(path: epath.PathLike, checked: bool = True) -> dict:
  """Reads what `write_json` or `write_bare_json` wrote, without the checksum.

  Args:
    path: where it lies: under another name, or in another round or run, it is damage too.
    checked: False takes what has no checksum, which a person or an earlier version may have written.

  Raises:
    UserError: the file is missing or cannot be read.
    Damaged: it holds something else than was written.
  """
  data = _read(path)
  value = _object(path, data)
  found, beside = value.pop(_CHECKSUM, None), _beside(path)
  if found is None and beside.exists():
    if hashlib.sha256(data).hexdigest() not in read_json(beside)["files"]:
      raise Damaged(path, f"{beside.name} has the checksum of something else")
  elif found is None and checked:
    raise Damaged(path, "it has no checksum: edited by hand, or of a version before there were any")
  if found is not None and found != _checksum(path, value):
    raise Damaged(path, "its checksum is that of another content or place")
  return value


def write_bare_json(path: epath.PathLike, value: dict) -> None:
  """JSON without a checksum, for a file whose shape others rely on: it lies beside, in <name>.sha256.

  While the file is written it has the checksums of what was there and of what comes, so that a kill is no damage.
  """
  beside, last = _beside(path), []
  with contextlib.suppress(UserError):  # there is none, or what it says is of no use
    last = read_json(beside)["files"][-1:]
  data = _as_bytes(value)
  now = hashlib.sha256(data).hexdigest()
  write_json(beside, {"files": [*last, now]})
  write_atomically(path, data)
  if last:
    write_json(beside, {"files": [now]})


def _vouch(path: epath.PathLike, value: dict) -> None:
  """Writes a bare file and its checksum again where one of them is damaged, and `value` is known to be right."""
  try:
    read_json(path)
  except Damaged as error:
    log.warning("%s is damaged (%s): it is made again", error.path, error.reason)
    write_bare_json(path, value)


def place_of(path: epath.PathLike) -> str:
  """What a file of a round says it was written for: its name and the round, and of a shard the config; else "".

  Runs of several configs may come to the same tables, and then these are the same files; while a round is not over,
  its shards are those of one run.
  """
  path = epath.Path(path)
  parts = path.parts
  at = next((i for i in reversed(range(len(parts) - 2)) if parts[i] == "rounds" and parts[i + 1].isdigit()), None)
  if at is None:
    return ""
  place = "/".join(parts[at:])
  if path.parent.name != "shards":
    return place
  return f"{place} of the config {_run_id(os.fspath(path.parents[len(parts) - 1 - at])) or 'unknown'}"


def recorded_sha256(path: epath.PathLike) -> str | None:
  """What DONE.json says of a table of a finished round; None of any other file.

  Raises:
    Damaged: DONE.json is.
  """
  path = epath.Path(path)
  done = path.parent / "DONE.json"
  if path.parent.parent.name != "rounds" or not done.exists():
    return None
  return read_json(done)["files"].get(path.name)


def _beside(path: epath.PathLike) -> epath.Path:
  path = epath.Path(path)
  return path.with_name(f"{path.name}.sha256")


def _as_bytes(value: dict) -> bytes:
  return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _read(path: epath.PathLike) -> bytes:
  try:
    return epath.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def _object(path: epath.PathLike, data: bytes) -> dict:
  try:
    value = json.loads(data)
  except ValueError as error:
    raise Damaged(path, f"it cannot be read as JSON, {error}") from error
  if not isinstance(value, dict):
    raise Damaged(path, f"it is {type(value).__name__}, not an object of JSON")
  return value


def _checksum(path: epath.PathLike, value: dict) -> str:
  """16 hex digits of a value and of where it belongs."""
  told = [place_of(path) or epath.Path(path).name, value]
  return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _run_id(directory: str) -> str:
  """16 hex digits of what a working directory's config.json says; "" where that cannot be read."""
  directory = directory if "://" in directory else os.path.abspath(directory)
  if directory not in _run_ids:
    try:
      config = json.loads((epath.Path(directory) / _CONFIG).read_bytes())
      _run_ids[directory] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    except (OSError, ValueError):  # who reads the config itself will say so
      return ""
  return _run_ids[directory]


def _expanded(value):
  """Values of a config, its strings as paths: the same folder may have been written with ~ and without."""
  if isinstance(value, dict):
    return {name: _expanded(part) for name, part in value.items()}
  if isinstance(value, list):
    return [_expanded(part) for part in value]
  return paths.expand(value) if isinstance(value, str) else value


def listed(directory: epath.Path) -> list[epath.Path]:
  """What lies in a folder, by name; nothing where the folder is not there, or goes while it is looked at."""
  try:
    return sorted(directory.iterdir())
  except OSError:
    return []


# What a start writes before any work, by name.
_FIRST = (_CONFIG, _CONFIG_SHA256, "origin.json", "base_model.json", "hub.json", "corpus.json", "documents.json",
          "wandb.json", "wandb", "lock", "progress")


def _has_file(path: epath.Path) -> bool:
  """Whether it is a file, or a folder with one in it."""
  return any(map(_has_file, listed(path))) if path.is_dir() else True


class Round:
  """The folder of one round, r = 1 .. rounds, or of what comes before the first, r = 0."""

  def __init__(self, directory: epath.Path, index: int):
    self.index = index
    self.directory = directory

  @property
  def done_path(self) -> epath.Path:
    """The marker that is written last."""
    return self.directory / "DONE.json"

  @property
  def done(self) -> bool:
    """Whether the round is finished, training included."""
    return self.done_path.exists()

  def table(self, name: str) -> epath.Path:
    """A finished table of the round, e.g. "verdicts"."""
    return self.directory / f"{name}.parquet"

  def tables(self) -> list[epath.Path]:
    """All tables that are there."""
    return [path for path in listed(self.directory) if path.match("*.parquet")]

  def shard(self, stage: str, index: int) -> epath.Path:
    """The output of one stage for one shard of the round's roots."""
    return self.directory / "shards" / f"{stage}-{index:05d}.parquet"

  def shard_plan(self, group: int) -> epath.Path:
    """How the shards of a group choose the rows that they score."""
    return self.directory / "shards" / f"plan-{group:02d}.json"

  def shard_plans(self) -> list[epath.Path]:
    """Those that are there."""
    return [path for path in listed(self.directory / "shards") if path.match("plan-*.json")]

  @property
  def judged_path(self) -> epath.Path:
    """The round's thresholds and costs, written when its verdicts and positives are there."""
    return self.directory / "judged.json"

  def shards(self, stage: str) -> list[epath.Path]:
    """What one stage has finished of the round so far; nothing of a round that is done."""
    return [path for path in listed(self.directory / "shards") if path.match(f"{stage}-*.parquet")]

  @property
  def sequences(self) -> epath.Path:
    """The folder of the training sequences."""
    return self.directory / "sequences"

  @property
  def selected(self) -> epath.Path:
    """The folder of what training reads instead of these where `long_gap` chose or weighed."""
    return self.directory / "selected"

  @property
  def evaluation(self) -> epath.Path:
    """The folder of the benchmarks after the round."""
    return self.directory / "evaluation"

  @property
  def screened_path(self) -> epath.Path:
    """The round's counts up to the sequences; when it is there, only training is left."""
    return self.directory / "screened.json"

  def finish(self, summary: dict) -> None:
    """Marks the round as done with its counts and the hash of each table, and drops its shards."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self.tables()}
    write_json(self.done_path, {**summary, "files": files})
    self.drop_shards()

  def drop_shards(self) -> None:
    """Removes the unfinished work of a finished round."""
    if (self.directory / "shards").exists():
      (self.directory / "shards").rmtree()


class Workdir:
  """One run's folder."""

  def __init__(self, directory):
    self.directory = epath.Path(directory)
    self.config_json = self.directory / "config.json"
    self.origin_json = self.directory / "origin.json"
    self.base_model_json = self.directory / "base_model.json"
    self.checkpoints = self.directory / "checkpoints"
    self.metrics = self.directory / "metrics.jsonl"
    self.tensorboard = self.directory / "tensorboard"
    self.progress = self.directory / "progress"
    self.lock = self.directory / "lock"
    self.hub_json = self.directory / "hub.json"
    self.corpus_json = self.directory / "corpus.json"
    self.documents_json = self.directory / "documents.json"
    self.final_json = self.directory / "final.json"
    self.page = self.directory / "report" / "index.html"
    self.model = self.directory / "model"
    self.sequences = self.directory / "sequences"
    self.held_out_sequences = self.sequences / "held_out"
    self.sequences_json = self.sequences / "DONE.json"
    self.held_out_json = self.directory / "held_out.json"

  def round(self, index: int) -> Round:
    """The folder of round `index`, counted from 1; 0 has the base model's evaluation only."""
    return Round(self.directory / "rounds" / str(index), index)

  def claim(self, config: config_lib.Config | config_lib.FineTuning, first: bool = True) -> None:
    """Makes the folder this config's own, or checks that it already is.

    Args:
      config: of the run.
      first: False for the other processes of a run, which only check, when the first one is done.

    Raises:
      UserError: the folder belongs to another config (the difference is shown), or is not ours.
    """
    path = self.config_json
    if not first and not path.exists():
      raise UserError(f"{self.directory} has no config.json, which the first process has just written: --workdir must "
                      "be one folder that all hosts share")
    text = config_lib.to_json(config)
    if path.exists():
      held = _object(path, _read(path))
      difference = config_lib.differences(_expanded(held), _expanded(json.loads(text)))
      if not difference and (self.directory / "rounds").exists() and not path.with_name(_CONFIG_SHA256).exists():
        raise UserError(f"{self.directory} was begun by a version whose files had no checksums: end it with that "
                        "version, or choose another --workdir (its page and its checkpoints can still be read)")
      if not difference:
        if first and path.with_name(_CONFIG_SHA256).exists():
          _vouch(path, held)
        return
      if not first or self._made():
        raise UserError(f"{self.directory} belongs to another config; choose another --workdir or undo: "
                        + "; ".join(difference))
      log.warning("%s: nothing was made with its config yet, so this one takes its place: %s", self.directory,
                  "; ".join(difference))
      self._forget()
    # A kill during the very first writes leaves only these, which are ours.
    names = (self.origin_json.name, path.name, _CONFIG_SHA256)
    ours = (*names, *(f".{name}.tmp" for name in names), self.lock.name)
    if not path.exists() and any(p.name not in ours for p in listed(self.directory)):
      raise UserError(f"{self.directory} is not empty and has no config.json: choose another --workdir")
    write_json(self.origin_json, {"folder": os.getcwd()})
    _run_ids.clear()
    write_bare_json(path, json.loads(text))

  def _made(self) -> bool:
    """Whether there is any file that work was done for: more than what a start writes before it."""
    begun = () if self.sequences_json.exists() else (self.model.name, self.sequences.name)
    return any(path.name not in (*_FIRST, *begun) and not path.match(".*.tmp") and _has_file(path)
               for path in listed(self.directory))

  def _forget(self) -> None:
    """Removes what a start found of what its config named."""
    for path in (self.base_model_json, self.hub_json, self.corpus_json, self.documents_json):
      path.unlink(missing_ok=True)
    for path in (self.model, self.sequences):
      if path.exists():
        path.rmtree()

  @property
  def started_in(self) -> str:
    """The folder that the relative paths of config.json are below; of a run that did not note it, this one."""
    return read_json(self.origin_json, checked=False)["folder"] if self.origin_json.exists() else os.getcwd()

  def located[Kind](self, config: Kind) -> Kind:
    """The config with what its relative paths stand for, also where the run is gone on with in another folder."""
    return config_lib.with_paths(config, functools.partial(paths.found_from, folder=self.started_in))
