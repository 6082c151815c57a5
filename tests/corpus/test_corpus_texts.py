"""Tokens of chunks: together, one by one and from several threads they are what the tokenizer gives for each alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from policylong.corpus import texts
from policylong.corpus.texts import ChunkTokens


class Corpus:
  """Chunk i is "word" i times."""

  def chunk_row(self, chunk_id):
    return int(chunk_id)

  def chunk_text(self, row):
    return "word " * row


class Tokenizer:
  """A token a character; says how many texts each call had."""

  def __init__(self):
    self.calls = []

  def __call__(self, text, add_special_tokens):
    assert not add_special_tokens
    self.calls.append(1 if isinstance(text, str) else len(text))
    ids = [ord(c) for c in text] if isinstance(text, str) else [[ord(c) for c in one] for one in text]
    return type("Encoded", (), {"input_ids": ids})


@pytest.fixture
def tokens():
  return ChunkTokens(Corpus(), Tokenizer(), "\n", 18)


def wanted(row):
  return [ord(c) for c in "word " * row + "\n"][:18]


def test_what_is_prepared_is_tokenised_at_once_and_once(tokens):
  tokens.prepare(["3", "0", "9", "3"])
  tokens.prepare(iter(["9", "5"]))
  assert [tokens(chunk_id).tolist() for chunk_id in ("0", "3", "5", "9")] == [wanted(n) for n in (0, 3, 5, 9)]
  assert tokens.row(7).tolist() == wanted(7) and tokens.row(7) is tokens("7")
  assert tokens._tokenizer.calls == [1, 3, 1, 1]  # the first is the separator's


def test_only_so_many_are_kept_those_that_were_asked_for_last(tokens, monkeypatch):
  monkeypatch.setattr(texts, "_KEPT", 4)
  for row in (1, 2, 3, 4, 1, 5):
    assert tokens.row(row).tolist() == wanted(row)
  before = len(tokens._tokenizer.calls)
  assert [tokens.row(row).tolist() for row in (1, 3, 4, 5)] == [wanted(row) for row in (1, 3, 4, 5)]
  assert len(tokens._tokenizer.calls) == before
  tokens.prepare_rows(range(20))  # more than are kept
  assert [tokens.row(row).tolist() for row in range(20)] == [wanted(row) for row in range(20)]


def test_threads_get_the_same(tokens, monkeypatch):
  monkeypatch.setattr(texts, "_KEPT", 8)
  rows = np.random.default_rng(0).integers(0, 30, (8, 200))

  def ask(own):
    for some in own.reshape(-1, 5).tolist():
      tokens.prepare_rows(some)
      assert [tokens.row(row).tolist() for row in some] == [wanted(row) for row in some]
  with ThreadPoolExecutor(8) as pool:
    list(pool.map(ask, rows))
