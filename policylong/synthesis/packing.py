"""Packed sequences: of several documents or conversations, of which none sees another.

A packed sequence is int32[3, L]: token ids; the document that each token belongs to, 1, 2, ... and 0 for what
fills the end up; and 1 where the token is to be learnt.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from policylong.records import LongSequence, Span

# Sequences that are filled at the same time.
OPEN = 64


def begun(sequence: LongSequence, beginning: np.ndarray, each_document: bool) -> LongSequence:
  """The sequence behind what the policy's tokenizer begins a text with, which belongs to the span that it precedes.

  Args:
    sequence: of L - b tokens.
    beginning: int32[b].
    each_document: whether every document (see `by_document`) begins so, as each is read by itself; what this takes of
      the L tokens is missing from the last document.
  """
  length = len(sequence.tokens) + len(beginning)
  parts: list[np.ndarray] = []
  spans: list[Span] = []
  position, before = 0, None
  for span in sequence.spans:
    tokens = sequence.tokens[span.start:span.end]
    if before is None or (each_document and span.doc_id != before):
      tokens = np.concatenate([beginning, tokens])
    tokens = tokens[:length - position]
    if len(tokens):
      parts.append(tokens)
      spans.append(dataclasses.replace(span, start=position, end=position + len(tokens)))
    position, before = position + len(tokens), span.doc_id
  return LongSequence(np.concatenate(parts).astype(np.int32), tuple(spans))


def by_document(sequence: LongSequence) -> np.ndarray:
  """int32[3, L]: a method's sequence, all of it to be learnt, with a new document wherever the spans' `doc_id` changes.

  Contexts have the `doc_id` of the root that they serve, so a root and its contexts are one document.
  """
  runs = itertools.groupby(sequence.spans, key=lambda span: span.doc_id)
  lengths = [sum(span.end - span.start for span in run) for _, run in runs]
  numbers = np.repeat(np.arange(1, len(lengths) + 1), lengths)
  return np.stack([sequence.tokens, numbers, np.ones_like(numbers)]).astype(np.int32)


def pack(examples: Iterable[tuple[np.ndarray, np.ndarray]], length: int) -> Iterator[np.ndarray]:
  """Packs examples in their order: each into the fullest open sequence that has room for it.

  Where none has, a new one is begun, and of more than OPEN the fullest is given out.

  Args:
    examples: (token ids int32[T], which are learnt bool[T]) with T <= length.
    length: L.

  Yields:
    int32[3, L], see above.
  """
  rows: list[_Row] = []
  for tokens, learnt in examples:
    fitting = [row for row in rows if row.used + len(tokens) <= length]
    if not fitting:
      rows.append(_Row(length))
      fitting = rows[-1:]
    max(fitting, key=lambda row: row.used).add(tokens, learnt)
    if len(rows) > OPEN:
      fullest = max(rows, key=lambda row: row.used)
      rows = [row for row in rows if row is not fullest]
      yield fullest.content
  for row in rows:
    yield row.content


class _Row:
  """A sequence that is being filled."""

  def __init__(self, length: int):
    self.content = np.zeros((3, length), np.int32)
    self.used = self._count = 0

  def add(self, tokens: np.ndarray, learnt: np.ndarray) -> None:
    self._count += 1
    place = slice(self.used, self.used + len(tokens))
    self.content[:, place] = tokens, np.full(len(tokens), self._count), learnt
    self.used += len(tokens)
