"""The host's half of screening: queries, candidates, the random control, hard negatives."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from policylong import config as config_lib
from policylong.corpus.store import Corpus
from policylong.corpus.texts import ChunkTokens
from policylong.devices import hosts
from policylong.randomness import generator
from policylong.records import Anchor, Candidate, EntropyTrace, Negative, Positive, Root, by_document
from policylong.retrieval.embedders import Embedder
from policylong.retrieval.index import VectorIndex
from policylong.screening.anchors import find_anchors, ngrams, query_span

# Negatives ranked for each that is wanted: the neighbours of a root's positives are partly the same.
_SPARE = 4
# Negatives ranked for a positive at most, where a sequence takes as many as fit: one positive can fill 128K tokens.
_MOST = 256
# Positives whose neighbours are searched at a time.
_BLOCK = 4096


class Retriever:
  """Proposes chunks for anchors and for positives. Pure host work; of one process, safe to call from a thread.

  Several processes call `candidates` together and `negatives` together, each with its own roots or with none.
  """

  def __init__(self, config: config_lib.Screening, seed: int, corpus: Corpus, embedder: Embedder,
               index: VectorIndex, chunk_tokens: ChunkTokens):
    self._config, self._seed = config, seed
    self._corpus, self._embedder, self._index = corpus, embedder, index
    self._chunk_tokens = chunk_tokens

  def candidates(self, round_index: int, roots: Sequence[Root], traces: Sequence[EntropyTrace]
                 ) -> tuple[list[Anchor], list[Candidate]]:
    """Anchors of the roots, the chunks that their queries retrieve, and each root's control.

    Args:
      round_index: seeds the control.
      roots: and their traces, one each.

    Returns:
      Anchors in the order of roots and positions; candidates in the order of roots, anchors and ranks,
      a root's control behind its candidates. Never a chunk of the root's own document, never a near-copy
      of one of its query windows.
    """
    config = self._config
    found = []  # (root number, position, threshold, query text)
    banned: list[set[bytes]] = []
    for i, (root, trace) in enumerate(zip(roots, traces)):
      positions, threshold = find_anchors(trace.entropy, alpha=config.alpha, skip_tokens=config.skip_tokens,
                                          most=config.max_anchors_per_root)
      spans = [query_span(t, len(root.tokens), config.query_window) for t in positions]
      banned.append(set().union(*(ngrams(root.tokens[s], config.near_copy_ngram) for s in spans)))
      found += [(i, int(t), threshold, "".join(root.pieces[s])) for t, s in zip(positions, spans)]

    copies = _NearCopies(banned, self._chunk_tokens, config.near_copy_ngram)
    documents = [self._corpus.document_index(root.doc_id) for root in roots]
    hits, passed = self._search(
        self._embedder.embed_queries([query for *_, query in found]) if found else np.zeros((0, 1)), config.top_k,
        {"same_document": lambda q, row: self._corpus.chunk_document[row] == documents[found[q][0]],
         "near_copy": lambda q, row: copies(found[q][0], row)})

    anchors, candidates = [], []
    by_root: list[list[Candidate]] = [[] for _ in roots]
    for q, (i, t, threshold, query) in enumerate(found):
      anchors.append(Anchor(roots[i].doc_id, t, roots[i].pieces[t], query, float(traces[i].entropy[t]), threshold,
                            **passed[q], policy_step=traces[i].policy_step))
      by_root[i] += [Candidate(roots[i].doc_id, t, self._corpus.chunk(row).id, "retrieved", rank, score)
                     for rank, (row, score) in enumerate(hits[q])]
    for i, own in enumerate(by_root):
      if own:
        taken = {candidate.chunk_id for candidate in own}
        candidates += own + self._control(round_index, roots[i], documents[i], taken, i, copies)
    return anchors, candidates

  def negatives(self, roots: Sequence[Root], positives: Sequence[Positive],
                rejected: Sequence[tuple[str, str]], synthesis: config_lib.Synthesis) -> list[Negative]:
    """Hard negatives of each root, by the configured rule.

    Args:
      roots: all that have positives.
      positives: their positives, any order.
      rejected: (doc id, chunk id) of the roots' refused candidates, lowest gain first.
      synthesis: tells how many negatives a positive brings into a sequence. Several times as many are ranked: those
        of a root's positives are partly the same.

    Returns:
      Ranked negatives of each positive, root by root. "positives": chunks most similar to a positive's own text, which
      is the paper's rule; nothing checks that they are unhelpful. "rejected": the refused candidates with the
      lowest gain, dealt out to the positives in turn. "both": the first rule's, then the second's.
    """
    rule, of_root = self._config.negatives, by_document(positives)
    if rule == "none":
      return []
    wanted = {root.doc_id: self._wanted(root, of_root[root.doc_id], synthesis) for root in roots}
    result: dict[str, list[Negative]] = {doc_id: [] for doc_id in of_root}
    if rule in ("positives", "both"):
      for negative in self._similar(of_root, wanted):
        result[negative.doc_id].append(negative)
    if rule in ("rejected", "both"):
      refused: dict[str, list[str]] = {}
      for doc_id, chunk_id in rejected:
        refused.setdefault(doc_id, []).append(chunk_id)
      for doc_id, own in of_root.items():
        result[doc_id] += _deal(own, refused.get(doc_id, []), wanted[doc_id],
                                first_rank=wanted[doc_id] if rule == "both" else 0)
    return list(itertools.chain.from_iterable(result.values()))

  def filler(self, round_index: int) -> Callable[[str, int], list[str]]:
    """A source of random chunks of other documents: (root's doc id, n) -> n chunk ids, always the same."""
    def draw(doc_id: str, n: int) -> list[str]:
      document = self._corpus.document_index(doc_id)
      rows = generator(self._seed, "filler", round_index, doc_id).integers(self._corpus.num_chunks, size=20 * n)
      others = [int(row) for row in dict.fromkeys(rows) if self._corpus.chunk_document[row] != document]
      return [self._corpus.chunk(row).id for row in others[:n]]
    return draw

  def _control(self, round_index, root, document, taken, number, copies) -> list[Candidate]:
    """Random chunks that no anchor asked for: what any context at all would do."""
    numbers = generator(self._seed, "control", round_index, root.doc_id)
    control: list[Candidate] = []
    for row in numbers.integers(self._corpus.num_chunks, size=20 * self._config.control_chunks):
      if len(control) == self._config.control_chunks:
        break
      chunk_id = self._corpus.chunk(int(row)).id
      if self._corpus.chunk_document[row] == document or chunk_id in taken or copies(number, int(row)):
        continue
      taken.add(chunk_id)
      control.append(Candidate(root.doc_id, -1, chunk_id, "control", -1, float("nan")))
    return control

  def _wanted(self, root: Root, positives: Sequence[Positive], synthesis: config_lib.Synthesis) -> int:
    """Negatives to rank for each positive of a root."""
    if synthesis.negatives_per_positive is not None:
      return _SPARE * synthesis.negatives_per_positive
    sizes = [max(1, len(self._chunk_tokens(positive.chunk_id))) for positive in positives]
    room = synthesis.sequence_length - len(root.tokens) - sum(sizes)
    # Room in chunks of the positives' mean size, over the positives.
    return min(_MOST, math.ceil(_SPARE * max(0, room) / sum(sizes)))

  def _similar(self, of_root: Mapping[str, Sequence[Positive]], wanted: Mapping[str, int]) -> list[Negative]:
    """The chunks most similar to each positive, as many as wanted for its root; root by root."""
    own = {doc_id: {positive.chunk_id for positive in positives} for doc_id, positives in of_root.items()}
    positives = list(itertools.chain.from_iterable(of_root.values()))
    # Those that want most first, so that queries of a block want about the same.
    order = sorted(range(len(positives)), key=lambda i: -wanted[positives[i].doc_id])
    hits: list[list[tuple[int, float]]] = [[] for _ in positives]
    while most := hosts.largest(wanted[positives[order[0]].doc_id] if order else 0):
      block, order = order[:_BLOCK], order[_BLOCK:]
      for i, found in zip(block, self._neighbours([positives[i] for i in block], own, most)):
        hits[i] = found[:wanted[positives[i].doc_id]]
    return [Negative(positive.doc_id, self._corpus.chunk(row).id, positive.chunk_id, score, rank)
            for positive, found in zip(positives, hits) for rank, (row, score) in enumerate(found)]

  def _neighbours(self, positives: Sequence[Positive], own: Mapping[str, set[str]], k: int):
    """[(row, score)] of the k chunks nearest to each positive, those of its root's document and `own` passed over."""
    texts = [self._corpus.chunk_text(self._corpus.chunk_row(positive.chunk_id)) for positive in positives]
    documents = [self._corpus.document_index(positive.doc_id) for positive in positives]
    return self._search(
        self._embedder.embed_documents(texts) if texts else np.zeros((0, 1)), k,
        {"same_document": lambda q, row: self._corpus.chunk_document[row] == documents[q],
         "positive": lambda q, row: self._corpus.chunk(row).id in own[positives[q].doc_id]})[0]

  def _search(self, queries: np.ndarray, k: int, reasons: dict[str, Callable[[int, int], bool]]):
    """The k nearest rows of each query for which no reason to pass over holds.

    Asks for more rows than k at first, and for still more where too few were left. Several processes ask as
    often as the one that needs it most: the index is theirs together.

    Returns:
      For each query [(row, score)], best first, and {reason: number of rows passed over}.
    """
    hits: list[list[tuple[int, float]]] = [[] for _ in queries]
    passed = [dict.fromkeys(reasons, 0) for _ in queries]
    open_queries, fetch = list(range(len(queries))), 4 * k + 16
    while hosts.anyone(bool(open_queries)):
      fetch = min(fetch, self._corpus.num_chunks)
      rows, scores = self._index.search(queries[open_queries], fetch)
      if "near_copy" in reasons:  # which looks at tokens
        self._chunk_tokens.prepare_rows(row for row in np.unique(rows[:, :k]).tolist() if row >= 0)
      for q, row_list, score_list in zip(open_queries, rows, scores):
        hits[q], passed[q] = [], dict.fromkeys(reasons, 0)
        for row, score in zip(row_list.tolist(), score_list.tolist()):
          if row < 0 or len(hits[q]) == k:
            break
          reason = next((name for name, holds in reasons.items() if holds(q, row)), None)
          if reason:
            passed[q][reason] += 1
          else:
            hits[q].append((row, score))
      if fetch == self._corpus.num_chunks:
        break
      open_queries = [q for q in open_queries if len(hits[q]) < k]
      fetch *= 4
    return hits, passed


class _NearCopies:
  """Whether a chunk shares an n-gram of tokens with a root's query windows; each pair is looked at once."""

  def __init__(self, banned: list[set[bytes]], chunk_tokens: ChunkTokens, n: int):
    self._banned, self._chunk_tokens, self._n = banned, chunk_tokens, n
    self._ngrams: dict[int, set[bytes]] = {}

  def __call__(self, number: int, row: int) -> bool:
    if row not in self._ngrams:
      self._ngrams[row] = ngrams(self._chunk_tokens.row(row), self._n)
    return not self._banned[number].isdisjoint(self._ngrams[row])


def _deal(positives: Sequence[Positive], refused: Sequence[str], most: int, first_rank: int) -> list[Negative]:
  """A root's refused candidates, dealt out to its positives in turn, `most` to each."""
  return [Negative(positives[0].doc_id, chunk_id, positives[i % len(positives)].chunk_id, float("nan"),
                   first_rank + i // len(positives))
          for i, chunk_id in enumerate(refused[:most * len(positives)])]
