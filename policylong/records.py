"""The small frozen records that pass between the stages. This module imports nothing of ours.

Positions are token positions inside a root document; entropies and losses are in nats.
`entropy[t]` is always the paper's H_t: the uncertainty about token t given the tokens before it, so
`entropy[0]` does not exist and is NaN. (`policylong.score` writes the same number one row earlier,
at the position where the prediction is made.)
"""

import dataclasses
from collections.abc import Iterable
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Document:
  """One document of the corpus. `source` names the configured source that it came from."""
  id: str
  text: str
  source: str


@dataclasses.dataclass(frozen=True)
class Chunk:
  """The retrieval unit: characters [start, end) of a document's text."""
  id: str
  doc_id: str
  start: int
  end: int


@dataclasses.dataclass(frozen=True)
class Root:
  """A root document as the policy reads it: at most `root_tokens` tokens of one document.

  tokens: int32[T]; characters [start, end) of the document's text are what the tokens spell, and
  pieces[t] is the text of token t ("" for all but the first of the tokens that share a character).
  """
  doc_id: str
  start: int
  end: int
  tokens: np.ndarray
  pieces: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class EntropyTrace:
  """What the policy thinks of a root: entropy f32[T] and nll f32[T], both NaN at position 0."""
  doc_id: str
  entropy: np.ndarray
  nll: np.ndarray
  policy_step: int


@dataclasses.dataclass(frozen=True)
class Anchor:
  """A token that the policy cannot predict: entropy > threshold = mean + alpha * std of its root.

  token and query are text: the token itself, and what was asked of the index for it.
  same_document and near_copy count the more similar chunks that were passed over for these reasons.
  """
  doc_id: str
  position: int
  token: str
  query: str
  entropy: float
  threshold: float
  same_document: int
  near_copy: int
  policy_step: int


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A chunk that an anchor's query retrieved; rank 0 is the most similar one (cosine).

  kind "control" is a random chunk, drawn for the whole root: position and rank are -1, similarity NaN.
  """
  doc_id: str
  position: int
  chunk_id: str
  kind: str
  rank: int
  similarity: float


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What prepending a chunk does to one anchor. gain = (entropy before - after) / before.

  nll is that of the token that stands at the anchor: a context can make the policy surer of another one.

  kind: "retrieved" or "control" (a random chunk, never used). rank and similarity are those of the
  anchor's own retrieval; rank is -1 and similarity NaN where another anchor of the root retrieved it.
  accepted: it passes as evidence; of a control that says only what share of random chunks would pass.
  """
  doc_id: str
  position: int
  chunk_id: str
  kind: str
  rank: int
  similarity: float
  entropy_before: float
  entropy_after: float
  nll_before: float
  nll_after: float
  gain: float
  accepted: bool
  policy_step: int


@dataclasses.dataclass(frozen=True)
class Positive:
  """An accepted chunk of a root, kept once, with the anchor where it gains most."""
  doc_id: str
  chunk_id: str
  position: int
  gain: float


@dataclasses.dataclass(frozen=True)
class Negative:
  """A hard negative: a chunk similar to `of_chunk` (a positive, or a rejected candidate)."""
  doc_id: str
  chunk_id: str
  of_chunk: str
  similarity: float
  rank: int


@dataclasses.dataclass(frozen=True)
class Span:
  """Tokens [start, end) of a long sequence and where they come from.

  role: "root", "positive", "negative" or "filler". `doc_id` is the root that the span serves (also for
  its contexts); `chunk_id` is "" for a root, or the part of it that the span is; `position` is the anchor a
  positive explains, else -1; gain is NaN but for positives; rank orders the positives by gain, the negatives
  and KNN's neighbours by similarity and UtK's pieces by their place in the document.
  """
  start: int
  end: int
  role: str
  doc_id: str
  chunk_id: str
  position: int
  gain: float
  rank: int
  policy_step: int


@dataclasses.dataclass(frozen=True)
class LongSequence:
  """One training example: tokens int32[L], spans that cover [0, L) in order without a gap."""
  tokens: np.ndarray
  spans: tuple[Span, ...]


@dataclasses.dataclass(frozen=True)
class GivenSequence:
  """A token sequence that existed before the run: tokens int32[n]; cuts: 0, where a next document begins, ..., n."""
  id: str
  tokens: np.ndarray
  cuts: tuple[int, ...]


class _OfDocument(Protocol):

  @property
  def doc_id(self) -> str: ...


def by_document[Record: _OfDocument](records: Iterable[Record]) -> dict[str, list[Record]]:
  """Records by their `doc_id`, documents and records in the order in which they come."""
  found: dict[str, list[Record]] = {}
  for record in records:
    found.setdefault(record.doc_id, []).append(record)
  return found
