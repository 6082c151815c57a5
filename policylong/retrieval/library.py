"""The corpus as the methods of synthesis read it (`synthesis.method.Library`)."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from policylong import config as config_lib
from policylong.corpus.given import GivenSequences
from policylong.corpus.roots import sample_documents
from policylong.corpus.store import Corpus
from policylong.corpus.texts import ChunkTokens
from policylong.devices import hosts
from policylong.randomness import generator
from policylong.records import GivenSequence
from policylong.retrieval.bm25 import Bm25
from policylong.retrieval.embedders import Embedder
from policylong.retrieval.exact import ExactIndex
from policylong.retrieval.index import VectorIndex


class CorpusLibrary:
  """A `Library` of the first process; the others `serve` it where the index is theirs together.

  Attributes:
    separator: int32 tokens.
    chunk_chars: as configured.
  """

  def __init__(self, config: config_lib.Config, corpus: Corpus | GivenSequences, tokenizer, embedder: Embedder | None,
               index: VectorIndex | None):
    """Reads `corpus`; without an embedder or index, what needs them fails unless the search is by BM25."""
    self._config, self._tokenizer = config, tokenizer
    self._corpus = cast(Any, corpus)  # which of the two it is, the method knows
    self._embedder, self._index = embedder, index
    self.chunk_chars = config.corpus.chunk_chars
    self.separator = self.tokens(config.synthesis.separator)
    # A chunk of more tokens than a sequence is cut there anyhow.
    self._chunk_tokens = ChunkTokens(self._corpus, tokenizer, config.synthesis.separator,
                                     config.synthesis.sequence_length)
    # A method asks for a document's text and tokens a few times in a row.
    self.document_tokens = functools.lru_cache(maxsize=256)(self._document_tokens)

  def documents(self, round_index: int) -> Iterator[str]:
    """See `Library`; round r has the r-th of `rounds` equal parts. Memory: 8 bytes a document."""
    total = self._corpus.num_documents
    order = generator(self._config.seed, "documents").permutation(total)
    first, last = (total * r // self._config.rounds for r in (round_index - 1, round_index))
    return (self._corpus.document_id(int(row)) for row in order[first:last])

  def roots(self, round_index: int) -> Iterator[str]:
    """See `Library`; documents of fewer than `screening.min_root_tokens` tokens are no roots."""
    config = self._config
    rows = sample_documents(self._corpus, seed=config.seed, round_index=round_index,
                            count=config.screening.roots_per_round, sources=config.corpus.root_sources)
    ids = map(self._corpus.document_id, rows)
    return (doc_id for doc_id in ids if len(self.document_tokens(doc_id)) >= config.screening.min_root_tokens)

  def text(self, doc_id: str) -> str:
    """See `Library`."""
    return self._corpus.document(self._corpus.document_index(doc_id)).text

  def chunks(self, doc_id: str) -> list[str]:
    """See `Library`."""
    rows = self._corpus.document_rows(self._corpus.document_index(doc_id))
    return [self._corpus.chunk(row).id for row in rows]

  def chunk_text(self, chunk_id: str) -> str:
    """See `Library`."""
    return self._corpus.chunk_text(self._corpus.chunk_row(chunk_id))

  def chunk_tokens(self, chunk_id: str) -> np.ndarray:
    """See `Library`."""
    return self._chunk_tokens(chunk_id)

  def tokens(self, text: str) -> np.ndarray:
    """See `Library`."""
    return np.asarray(self._tokenizer(text, add_special_tokens=False).input_ids, np.int32)

  def nearest_chunks(self, texts: Sequence[str], k: int) -> list[list[str]]:
    """See `Library`; by the index over all chunks, or BM25."""
    k = min(k, self._corpus.num_chunks)
    if self._config.method_options.search == "bm25":
      rows, _ = self._bm25.search(texts, k)
    else:
      hosts.agreed(np.array(k))
      rows, _ = self._index.search(self._embedder.embed_documents(texts), k)
    return [[self._corpus.chunk(row).id for row in found if row >= 0] for found in rows.tolist()]

  def neighbours(self, texts: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """See `Library`; exact."""
    if self._config.method_options.search == "bm25":
      rows, scores = Bm25(texts).search(texts, k + 1)
    else:
      vectors = self._embedder.embed_documents(texts)
      rows, scores = ExactIndex(vectors).search(vectors, k + 1)
    # Itself is not always the best hit: copies are as good, and go before it if they come earlier.
    itself = rows == np.arange(len(rows))[:, None]
    order = np.argsort(itself, axis=1, kind="stable")[:, :k]
    rows = np.where(itself, -1, rows)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

  def given(self, round_index: int, at_a_time: int) -> Iterator[GivenSequence]:
    """See `Library`."""
    return self._corpus.sequences(round_index, at_a_time)

  def serve(self) -> None:
    """The other processes: searches with the first one until it says that it is done."""
    while k := int(hosts.agreed(np.array(0))):
      self._index.search(np.zeros((0, self._index.dim), np.float32), k)

  def done(self) -> None:
    """The first process: lets the others leave `serve`."""
    hosts.agreed(np.array(0))

  @functools.cached_property
  def _bm25(self) -> Bm25:
    return Bm25([self._corpus.chunk_text(row) for row in range(self._corpus.num_chunks)])

  def _document_tokens(self, doc_id: str) -> np.ndarray:
    tokens = self.tokens(self.text(doc_id))
    tokens.setflags(write=False)
    return tokens
