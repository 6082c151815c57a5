"""The sequences of a screened round, made by all processes together.

The roots that have positives are dealt out in groups, which follow from the round's tables alone: the files are the
same with any number of processes. Of a round:

  sequences/part-00000.array_record ...   the sequences that the roots of group 0, ... fill; a group that fills none has
                                          no file. The last part holds those of the roots that all groups left over,
                                          joined in their order
  shards/spans-00000.parquet ...          the spans of the sequences of group 0, ..., which end in sequences.parquet

What costs is tokenisation: every process reads the chunks of its groups only.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from policylong.devices import hosts
from policylong.records import LongSequence, Root, by_document
from policylong.storage import tables
from policylong.storage.progress import Bar
from policylong.storage.workdir import Round
from policylong.synthesis import storage
from policylong.synthesis.method import Inputs, Screened

# Roots of a group. The configs' blocks of 40K tokens fill 85 sequences of 128K, and the first process alone joins what
# is left over, less than a sequence of each group.
GROUP_ROOTS = 256


def write_together(sequences: Callable[[Inputs], Iterator[LongSequence]], inputs: Inputs, round_: Round, *,
                   packed: bool, beginning: Sequence[int] | np.ndarray) -> int:
  """Writes sequences/ and sequences.parquet of a screened round, at most `inputs.count` sequences; collective.

  Files of an earlier attempt are removed first. The manifest and then the table are written when all else is there.

  Args:
    sequences: of a method.
    inputs: of the round, the same in every process; its tables are there.
    round_: where.
    packed: see `storage.write_sequences`, as `beginning`.

  Returns:
    How many there are; 0 in the other processes.
  Raises:
    UserError: what the method raises.
    OSError: the disk is full, or the folder cannot be written.
  """
  table = round_.table("sequences")
  with hosts.first_before_others("synthesis"):
    if hosts.is_first():
      table.unlink(missing_ok=True)
      storage.emptied(round_.sequences)
  groups = Groups(inputs.screened)

  def make(screened: Screened, number: int, most: int) -> pa.Table:
    made = itertools.islice(sequences(dataclasses.replace(inputs, screened=screened)), most)
    records = storage.Records(made, packed, beginning)
    storage.write_part(storage.part(round_.sequences, number), records)
    return records.spans()

  mine = range(hosts.index(), len(groups), hosts.count())
  with Bar(desc=f"round {round_.index} sequences", unit="group", total=len(mine), disable=not hosts.is_first()) as bar:
    for number in mine:
      tables.write(round_.shard("spans", number), make(groups[number], number, inputs.count))
      bar.update()
  hosts.barrier("sequences")
  if not hosts.is_first():
    return 0
  parts, made = [], 0
  for number in range(len(groups)):
    parts.append(_cut(round_, number, inputs.count - made))
    made += _count(parts[-1])
  parts.append(make(groups.left_over(parts), len(groups), inputs.count - made))
  storage.sealed(round_.sequences)
  tables.write(table, _numbered(parts))
  return made + _count(parts[-1])


class Groups(Sequence[Screened]):
  """The roots that have positives, `GROUP_ROOTS` at a time, each group with what was found of it."""

  def __init__(self, screened: Screened):
    self._screened = screened
    self._positives, self._negatives = by_document(screened.positives), by_document(screened.negatives)
    self._roots = [root for root in screened.roots if root.doc_id in self._positives]

  def __len__(self) -> int:
    return -(-len(self._roots) // GROUP_ROOTS)

  def __getitem__(self, number):
    first = number * GROUP_ROOTS
    return self._of(self._roots[first:first + GROUP_ROOTS], more=True)

  def left_over(self, parts: Sequence[pa.Table]) -> Screened:
    """The roots that stand in no sequence, by the spans of the groups' sequences."""
    placed = {doc_id for spans in parts for doc_id in pc.unique(spans["doc_id"]).to_pylist()}
    return self._of([root for root in self._roots if root.doc_id not in placed], more=False)

  def _of(self, roots: Sequence[Root], more: bool) -> Screened:
    positives = [positive for root in roots for positive in self._positives[root.doc_id]]
    negatives = [negative for root in roots for negative in self._negatives.get(root.doc_id, ())]
    return dataclasses.replace(self._screened, roots=roots, positives=positives, negatives=negatives, more=more)


def _cut(round_: Round, number: int, most: int) -> pa.Table:
  """The spans of a group's sequences, of which those that the round does not need are removed."""
  spans = tables.read(round_.shard("spans", number))
  if _count(spans) <= most:
    return spans
  path = storage.part(round_.sequences, number)
  kept = storage.read_tokens(path)[:most]
  path.unlink()
  storage.write_part(path, kept)
  return spans.filter(pc.less(spans["sequence"], most))


def _count(spans: pa.Table) -> int:
  """Sequences of a table of spans."""
  return spans["sequence"][-1].as_py() + 1 if spans.num_rows else 0


def _numbered(parts: Sequence[pa.Table]) -> pa.Table:
  """One table of all parts' spans, their sequences numbered through."""
  firsts = np.cumsum([0, *map(_count, parts)])
  numbered = [spans.set_column(0, "sequence", pa.array(spans["sequence"].to_numpy() + first))
              for spans, first in zip(parts, firsts.tolist())]
  # In one piece, as if it had been made at once: how a file lies depends on the pieces.
  return pa.concat_tables(numbered).combine_chunks()
