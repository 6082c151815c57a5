"""Reads a working directory for the page. What is missing or damaged is remembered, never raised.

What has no checksum, as earlier versions wrote it, is shown as it is.

Columns are read one by one and roots in batches, so that a round of 100K roots does not have to fit in memory.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from policylong.config import POLICY_METHODS
from policylong.errors import Damaged, UserError
from policylong.storage import lines, tables
from policylong.storage.workdir import Round, Workdir, read_json

ENTROPY_BIN = 0.25  # nats
ENTROPY_BINS = 64  # up to 16 nats: log V of any vocabulary below 8.8 million


@dataclasses.dataclass
class RoundData:
  """One round's files. `summary` is DONE.json, screened.json of an unfinished round, or {}."""
  index: int
  folder: Round
  finished: bool
  summary: dict
  notes: list[str]
  screened: bool = True  # whether the method asks the policy; a round that was not screened has sequences alone
  budgeted: bool = False  # whether screening had a budget, within which a row may end before the root's last anchor
  _read: dict = dataclasses.field(default_factory=dict, repr=False)

  def columns(self, name: str, columns: Sequence[str], doc_ids: Sequence[str] | None = None) -> dict | None:
    """{column: np.ndarray} of a table, all rows or those of some roots; None where it cannot be read.

    String and list columns come as arrays of Python objects.
    """
    if not self._has(name):
      return None
    key = (name, tuple(columns))
    if doc_ids is not None:
      return read_columns(self.folder.table(name), columns, self.notes, doc_ids)
    if key not in self._read:
      self._read[key] = read_columns(self.folder.table(name), columns, self.notes)
    return self._read[key]

  def rows(self, name: str) -> int | None:
    """How many rows a table has; None where it cannot be read."""
    if not self._has(name):
      return None
    return _use(self.folder.table(name), (), self.notes, lambda file: file.metadata.num_rows)

  def _has(self, name: str) -> bool:
    """Whether a table should be there, and is worth a note if it is not."""
    return self.screened or name == "sequences"

  @functools.cached_property
  def entropy_histogram(self) -> np.ndarray:
    """int64[ENTROPY_BINS]: tokens by entropy, in bins of ENTROPY_BIN nats; the last one takes all above."""
    counts = np.zeros(ENTROPY_BINS, np.int64)

    def add(file):
      for batch in file.iter_batches(batch_size=256, columns=["entropy"]):
        values = batch.column(0).flatten().to_numpy(zero_copy_only=False)
        bins = (values[np.isfinite(values)] / ENTROPY_BIN).astype(np.int64)
        counts[:] += np.bincount(np.clip(bins, 0, ENTROPY_BINS - 1), minlength=ENTROPY_BINS)
    if self._has("roots"):
      _use(self.folder.table("roots"), ("entropy",), self.notes, add)
    return counts

  @functools.cached_property
  def pairs(self) -> dict[str, dict[str, np.ndarray]]:
    """Verdicts by where the chunk came from: {"own" | "other" | "control": {column: array}}; {} if absent."""
    names = ("kind", "rank", "entropy_before", "entropy_after", "nll_before", "nll_after", "gain", "accepted")
    columns = self.columns("verdicts", names)
    if columns is None:
      return {}
    control = columns["kind"] == "control"
    own = ~control & (columns["rank"] >= 0)
    return {group: {name: columns[name][mask] for name in names[2:]}
            for group, mask in (("own", own), ("other", ~control & ~own), ("control", control))}

  @functools.cached_property
  def verified_pairs(self) -> int | None:
    """Scored pairs of an anchor and a chunk retrieved for its root; None where the tables do not tell.

    A large round's table is without what an anchor rejected of other anchors' chunks. Without a budget every anchor of
    a root was verified with every chunk retrieved for it, and then both are counted by root.
    """
    if not self.pairs:
      return None
    kept = len(self.pairs["own"]["accepted"]) + len(self.pairs["other"]["accepted"])
    if not self.pairs["other"]["accepted"].all() or kept == (self.summary.get("verified") or {}).get("retrieved"):
      return kept  # the table is whole
    if self.budgeted:
      return None

    def chunks_of_roots(file):
      table = file.read(["doc_id", "chunk_id", "kind"])
      found = table.filter(pc.equal(table["kind"], "retrieved")).group_by("doc_id").aggregate([
          ("chunk_id", "count_distinct")])
      return dict(zip(found["doc_id"].to_pylist(), found["chunk_id_count_distinct"].to_pylist()))

    anchors = self.columns("anchors", ("doc_id",))
    chunks = _use(self.folder.table("verdicts"), ("doc_id", "chunk_id", "kind"), self.notes, chunks_of_roots)
    if anchors is None or chunks is None:
      return None
    return sum(chunks.get(doc_id, 0) for doc_id in anchors["doc_id"])


@dataclasses.dataclass
class Evaluation:
  """Benchmarks of one policy: of the base model (after == 0) or after a round. results: {task: {length: row}}."""
  after: int
  results: dict[str, dict[str, dict]]

  @property
  def name(self) -> str:
    """As the page calls this policy."""
    return f"after round {self.after}" if self.after else "base model"

  def value(self, task: str, length: str) -> float | None:
    """One number; None where there is none."""
    value = self.results.get(task, {}).get(length, {}).get("value")
    return value if isinstance(value, int | float) and math.isfinite(value) else None


@dataclasses.dataclass
class Run:
  """Everything the page is made from."""
  directory: str
  config: dict
  corpus: dict
  metrics: list[dict]
  rounds: list[RoundData]
  final: dict
  notes: list[str]
  evaluations: list[Evaluation]

  def setting(self, name: str, default=None):
    """A config value by its dotted name; `default` where the config lacks it."""
    value = self.config
    for part in name.split("."):
      if not isinstance(value, dict) or part not in value:
        return default
      value = value[part]
    return value

  @functools.cached_property
  def final_offpolicy(self) -> dict | None:
    """The last round's dependencies as the final policy sees them; None where they are not there."""
    path = Workdir(self.directory).directory / "offpolicy.parquet"
    return read_columns(path, ("gain_then", "gain_now", "rejected"), self.notes) if path.exists() else None

  @property
  def screened(self) -> bool:
    """Whether the method asks the policy."""
    return self.setting("method", "policylong") in POLICY_METHODS

  def epsilon(self, round_: RoundData) -> float | None:
    """The gain a chunk had to exceed in this round."""
    value = round_.summary.get("epsilon", self.setting("screening.epsilon"))
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def read_run(workdir: Workdir) -> Run:
  """Opens a working directory.

  Raises:
    UserError: there is no such directory.
  """
  if not workdir.directory.is_dir():
    raise UserError(f"--workdir is {workdir.directory}, which is not a directory; "
                    "wanted the working directory of a run")
  notes: list[str] = []
  config = _json(workdir.directory / "config.json", notes, "config.json")
  corpus = _json(workdir.corpus_json, notes, "corpus.json")
  final = _json(workdir.final_json, [], "final.json")
  parent = workdir.round(1).directory.parent
  found = sorted(int(path.name) for path in parent.iterdir() if path.name.isdigit()) if parent.exists() else []
  screened = config.get("method", "policylong") in POLICY_METHODS
  screening = config.get("screening")
  budgeted = isinstance(screening, dict) and screening.get("budget") is not None
  rounds = [_round(workdir.round(index), screened, budgeted) for index in found if index]
  metrics = _metrics(workdir.metrics, notes, any(round_.finished for round_ in rounds) or not rounds)
  evaluations = [evaluation for index in found if (evaluation := _evaluation(workdir.round(index), notes))]
  if not rounds:
    notes.append("There is no round in rounds/ yet.")
  return Run(str(workdir.directory), config, corpus, metrics, rounds, final, notes, evaluations)


def read_columns(path, columns: Sequence[str], notes: list[str], doc_ids: Sequence[str] | None = None) -> dict | None:
  """{column: np.ndarray} of a Parquet file, all rows or those of some roots; None, and a note, if it cannot be read."""
  def gather(file):
    wanted = None if doc_ids is None else pa.array(doc_ids, pa.string())
    names = list(columns) if wanted is None or "doc_id" in columns else [*columns, "doc_id"]
    batches = [batch if wanted is None else batch.filter(pc.is_in(batch.column("doc_id"), wanted))
               for batch in file.iter_batches(columns=names)]
    table = pa.Table.from_batches(batches, pa.schema([file.schema_arrow.field(name) for name in names]))
    return {column: _array(table.column(column)) for column in columns}
  return _use(path, columns, notes, gather)


def _use(path, columns, notes, action):
  """`action(ParquetFile)`; None, and a note, where the file or a column of it is missing or damaged."""
  note = None
  try:
    with path.open("rb") as stream:
      tables.check(path, stream, checked=False)
      file = pq.ParquetFile(stream)
      missing = [column for column in columns if column not in file.schema_arrow.names]
      if not missing:
        return action(file)
      note = f"{path.name} has no column {', '.join(missing)}."
  except FileNotFoundError:
    note = f"{path.name} is missing."
  except Damaged as error:
    note = f"{path.name} is damaged: {error.reason}."
  except (pa.ArrowException, OSError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    note = f"{path.name} cannot be read ({reason.rstrip('.')})."
  if note not in notes:
    notes.append(note)
  return None


def _round(folder: Round, screened: bool, budgeted: bool) -> RoundData:
  notes: list[str] = []
  finished = folder.done
  path = folder.done_path if finished else folder.screened_path
  summary = _json(path, notes, path.name) if path.exists() else {}
  return RoundData(folder.index, folder, finished, summary, notes, screened, budgeted)


def _evaluation(folder: Round, notes) -> Evaluation | None:
  path = folder.evaluation / "results.json"
  if not path.exists():
    return None
  held = _json(path, notes, f"rounds/{folder.index}/evaluation/results.json")
  good = {task: {length: row for length, row in lengths.items() if isinstance(row, dict)}
          for task, lengths in held.items() if isinstance(lengths, dict)}
  return Evaluation(folder.index, good) if good else None


def _json(path, notes, name) -> dict:
  if not path.exists():
    notes.append(f"{name} is missing.")
    return {}
  try:
    return read_json(path, checked=False)
  except Damaged as error:
    notes.append(f"{name} is damaged: {error.reason}.")
  except UserError as error:
    notes.append(f"{error}.")
  return {}


def _metrics(path, notes, expected: bool) -> list[dict]:
  if not path.exists():
    if expected:
      notes.append("metrics.jsonl is missing: there is no training loss to draw.")
    return []
  found, bad = lines.read(path)
  rows = []
  for _, row in found:
    try:
      rows.append({**row, "step": int(row["step"]), "loss": float(row["loss"])})
    except (ValueError, TypeError, KeyError):
      bad += 1
  if bad:
    notes.append(f"metrics.jsonl has {bad} line{'s' * (bad > 1)} damaged or cut off, and left out.")
  # A run that was killed and resumed writes some steps twice; the later line is the one that counts.
  return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


def _array(column: pa.ChunkedArray) -> np.ndarray:
  if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
    result = np.empty(len(column), object)
    for row, values in enumerate(column.to_pylist()):  # one by one: lists of equal length would become a matrix
      result[row] = values
    return result
  if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
    return np.array(column.to_pylist(), object)
  return column.to_numpy()
