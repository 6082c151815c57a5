"""A library of hand-made documents: a token is a word, so sequences can be read by eye."""

import types

import numpy as np

from configs.demo import get_config
from policylong import config as config_lib
from policylong.synthesis.method import Inputs
from policylong.synthesis.methods import METHODS


class Words:
  """A `Library` over {document id: [chunk, chunk, ...]}, chunks being strings of words.

  Similarity is the number of different words in common, equal scores in the order of the documents. The separator
  is the word "/".
  """

  def __init__(self, documents: dict[str, list[str]], chunk_chars: int = 10):
    self._documents, self.chunk_chars = documents, chunk_chars
    self._vocabulary: list[str] = []
    self.separator = self.tokens("/")
    self.chunk = {f"{name}#{i}-{i + 1}": text for name, chunks in documents.items() for i, text in enumerate(chunks)}

  def documents(self, round_index):
    return iter(self._documents)

  def roots(self, round_index):
    return iter(self._documents)

  def text(self, doc_id):
    return " ".join(self._documents[doc_id])

  def document_tokens(self, doc_id):
    return self.tokens(self.text(doc_id))

  def chunks(self, doc_id):
    return [f"{doc_id}#{i}-{i + 1}" for i in range(len(self._documents[doc_id]))]

  def chunk_text(self, chunk_id):
    return self.chunk[chunk_id]

  def chunk_tokens(self, chunk_id):
    return np.concatenate([self.tokens(self.chunk[chunk_id]), self.separator])

  def tokens(self, text):
    self._vocabulary += [word for word in dict.fromkeys(text.split()) if word not in self._vocabulary]
    return np.array([self._vocabulary.index(word) for word in text.split()], np.int32)

  def read(self, tokens) -> str:
    """The words of some tokens."""
    return " ".join(self._vocabulary[token] for token in tokens)

  def nearest_chunks(self, texts, k):
    ids = list(self.chunk)
    return [[ids[i] for i in self._nearest(text, list(self.chunk.values()))][:k] for text in texts]

  def neighbours(self, texts, k):
    rows = np.full((len(texts), k), -1)
    scores = np.full((len(texts), k), -np.inf)
    for i, text in enumerate(texts):
      found = [j for j in self._nearest(text, texts) if j != i][:k]
      rows[i, :len(found)] = found
      scores[i, :len(found)] = [_common(text, texts[j]) for j in found]
    return rows, scores

  def _nearest(self, text, others):
    return sorted(range(len(others)), key=lambda j: (-_common(text, others[j]), j))


def _common(a, b):
  return len(set(a.split()) & set(b.split()))


def options(**changes) -> config_lib.MethodOptions:
  """The demo's options, changed."""
  return config_lib.MethodOptions(**{**get_config().method_options.to_dict(), **changes})


def make(name, library, length, count=10, seed=0, round_index=1, **changes):
  """All sequences of a method."""
  return list(METHODS[name].sequences(Inputs(seed, round_index, 7, length, count, options(**changes), library, None)))


def check(sequences, length):
  """What holds of every sequence of every method."""
  assert sequences
  for sequence in sequences:
    assert sequence.tokens.dtype == np.int32 and sequence.tokens.shape == (length,)
    assert [s.start for s in sequence.spans] == [0, *(s.end for s in sequence.spans[:-1])]
    assert sequence.spans[-1].end == length and all(s.end > s.start for s in sequence.spans)
    assert {s.role for s in sequence.spans} <= {"root", "positive", "negative", "filler"}
    assert len({s.policy_step for s in sequence.spans}) == 1


def reading(library, sequence):
  """[(role, document, chunk, rank, words)] of the spans."""
  return [types.SimpleNamespace(role=s.role, doc_id=s.doc_id, chunk_id=s.chunk_id, rank=s.rank,
                                words=library.read(sequence.tokens[s.start:s.end])) for s in sequence.spans]
