"""The rows of a shard: chunks in front of roots, what each would score, and which are scored."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from policylong import config as config_lib
from policylong.padding import bucket
from policylong.records import Anchor
from policylong.screening import budget
from policylong.screening.ledger import Plan
from policylong.screening.promise import FEATURES, features, token_rarity
from policylong.screening.readings import Proposal
from policylong.screening.verify import Pair
from policylong.synthesis.filling import Filling

# A row is a chunk in front of a root. anchors: how many of the root's it reads, from the first on; tokens: of both, up
# to the last of these; padded: the length it is scored in; within: the anchors that it needs to read (`features`).
# probe: of a root whose rows are all scored; chosen: by the rule of the budget; control rows are scored always.
ROWS = pa.schema([
    ("doc_id", pa.string()), ("chunk_id", pa.string()), ("control", pa.bool_()), ("root_tokens", pa.int64()),
    ("chunk_tokens", pa.int64()), ("tokens", pa.int64()), ("padded", pa.int64()), ("anchors", pa.int64()),
    ("within", pa.int64()),
    ("probe", pa.bool_()), ("chosen", pa.bool_()), ("scored", pa.bool_()), ("promise", pa.float64()),
    ("features", pa.list_(pa.float32(), len(FEATURES)))])


def choose_rows(config: config_lib.Screening, roots: pa.Table, anchors: Sequence[Anchor], pairs: Sequence[Pair],
                proposals: Sequence[Proposal], plan: Plan | None, filling: Filling) -> pa.Table:
  """The `ROWS` of a shard.

  Args:
    config: of the screening.
    roots: of the shard, `readings.ROOTS`.
    anchors: of these roots.
    pairs, proposals: see `readings.pairs`.
    plan: None scores every row.
    filling: tells what a root and its positives give to training.
  """
  count = len(pairs)
  control = np.array([not own for _, own in proposals], bool)
  anchors_of = np.array([len(pair.positions) for pair in pairs], np.int64)
  within = anchors_of
  columns: dict = {
      "doc_id": [doc_id for (doc_id, _), _ in proposals], "chunk_id": [chunk_id for (_, chunk_id), _ in proposals],
      "control": control, "root_tokens": np.array([len(pair.root) for pair in pairs], np.int64),
      "chunk_tokens": np.array([len(pair.chunk) for pair in pairs], np.int64), "anchors": anchors_of}
  probe, chosen = np.zeros(count, bool), ~control
  promise, known = np.full(count, math.nan), pa.nulls(count, ROWS.field("features").type)
  if plan is not None and count:
    numbers = dict(zip(roots["doc_id"].to_pylist(), roots["number"].to_pylist()))
    probe = np.array([budget.is_probe(numbers[doc_id], config.probe_share) for doc_id in columns["doc_id"]])
    values, within = _features(config, anchors, pairs, proposals)
    columns["anchors"] = np.where(probe, anchors_of, within)
    promise = np.where(control, math.nan, plan.promise(values))
    known = pa.FixedSizeListArray.from_arrays(values.reshape(-1), len(FEATURES))
  columns["within"] = within
  columns["tokens"] = _tokens(pairs, columns["anchors"])
  columns["padded"] = np.array([bucket(int(n), config.bucket_multiple) for n in columns["tokens"]], np.int64)
  if plan is not None and count:
    chosen = _chosen(roots, columns, _tokens(pairs, within), probe, promise, plan.rate, filling)
  return pa.table({**columns, "probe": probe, "chosen": chosen, "scored": probe | chosen | control,
                   "promise": promise, "features": known}).select(ROWS.names).cast(ROWS)


def _tokens(pairs: Sequence[Pair], anchors: np.ndarray) -> np.ndarray:
  """int64[rows]: of the chunk and of the root up to the last of so many anchors."""
  return np.array([len(pair.chunk) + 1 + pair.positions[n - 1] for pair, n in zip(pairs, anchors)], np.int64)


def _features(config: config_lib.Screening, anchors: Sequence[Anchor], pairs: Sequence[Pair],
              proposals: Sequence[Proposal]) -> tuple[np.ndarray, np.ndarray]:
  """float32[rows, F], zeros for controls, and int64[rows], the anchors that a row needs to read, all of a control's."""
  entropy: dict[str, list[float]] = {}
  for anchor in anchors:
    entropy.setdefault(anchor.doc_id, []).append(anchor.entropy)
  chunks = list({chunk_id: pair.chunk for pair, ((_, chunk_id), _) in zip(pairs, proposals)}.values())
  size = 1 + max(int(tokens.max(initial=0)) for tokens in [*chunks, *(pair.root for pair in pairs)])
  rarity = token_rarity(chunks, size)
  rows: dict[str, list[int]] = {}
  for i, ((doc_id, _), own) in enumerate(proposals):
    if own:
      rows.setdefault(doc_id, []).append(i)
  result = np.zeros((len(pairs), len(FEATURES)), np.float32)
  needs = np.array([len(pair.positions) for pair in pairs], np.int64)
  for doc_id, members in rows.items():
    pair = pairs[members[0]]
    result[members], needs[members] = features(
        pair.root, pair.positions, np.array(entropy[doc_id]), config.query_window,
        [(pairs[i].chunk, proposals[i][1]) for i in members], rarity)
  return result, needs


def _chosen(roots: pa.Table, columns: dict, shortest: np.ndarray, probe: np.ndarray, promise: np.ndarray, rate: float,
            filling: Filling) -> np.ndarray:
  """bool[rows]: the rule's choice among the retrieved rows, also for the roots of the probe.

  `shortest`: int[rows], the tokens of a row that reads no more than it needs.
  """
  control, tokens = columns["control"], columns["tokens"]
  number = {doc_id: i for i, doc_id in enumerate(roots["doc_id"].to_pylist())}
  root = np.array([number[doc_id] for doc_id in columns["doc_id"]])
  root_tokens = pc.list_value_length(roots["tokens"]).to_numpy()
  fixed = root_tokens.astype(np.float64)  # the scan
  paid = control | probe
  np.add.at(fixed, root[paid], tokens[paid])
  alone = np.zeros(len(number))
  np.maximum.at(alone, root, tokens - columns["chunk_tokens"])
  retrieved = np.flatnonzero(~control)
  rows = budget.Rows(root[retrieved], shortest[retrieved], columns["chunk_tokens"][retrieved], promise[retrieved],
                     probe[retrieved], root_tokens, fixed + alone)
  chosen = np.zeros(len(root), bool)
  chosen[retrieved] = budget.choose(rows, rate, filling)
  return chosen
