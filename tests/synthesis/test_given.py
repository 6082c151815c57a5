"""What becomes of sequences that exist already, by hand."""

import types

import numpy as np
import pytest

from policylong.errors import UserError
from policylong.records import GivenSequence
from policylong.synthesis.packing import by_document
from tests.synthesis.library import check, make


def library(*sequences):
  """Of (id, first token, tokens, inner cuts): the tokens are first, first + 1, ..."""
  made = [GivenSequence(name, np.arange(first, first + n, dtype=np.int32), (0, *cuts, n))
          for name, first, n, cuts in sequences]
  return types.SimpleNamespace(given=lambda round_index, at_a_time: iter(made))


def read(sequences):
  return [[(s.doc_id, sequence.tokens[s.start:s.end].tolist()) for s in sequence.spans] for sequence in sequences]


def test_a_sequence_of_the_right_length_is_itself():
  made = make("given", library(("a", 0, 4, ()), ("b", 10, 4, ())), 4)
  check(made, 4)
  assert read(made) == [[("a", [0, 1, 2, 3])], [("b", [10, 11, 12, 13])]]
  assert {span.role for sequence in made for span in sequence.spans} == {"root"}


def test_a_longer_one_is_cut_into_whole_ones_and_does_not_move_the_next():
  made = make("given", library(("a", 0, 9, ()), ("b", 10, 5, ())), 4)
  assert read(made) == [[("a", [0, 1, 2, 3])], [("a", [4, 5, 6, 7])], [("b", [10, 11, 12, 13])]]
  assert len(make("given", library(("a", 0, 9, ()), ("b", 10, 5, ())), 4, count=1)) == 1


def test_shorter_ones_are_put_one_behind_the_other():
  made = make("given", library(("a", 0, 3, ()), ("b", 10, 4, ()), ("c", 20, 3, ()), ("d", 30, 1, ()), ("e", 40, 2, ())),
              4)
  assert read(made) == [[("b", [10, 11, 12, 13])], [("a", [0, 1, 2]), ("c", [20])],
                        [("c", [21, 22]), ("d", [30]), ("e", [40])]]


def test_documents_are_spans_that_masking_keeps_apart():
  made = make("given", library(("a", 0, 8, (1, 3, 6))), 4)
  assert read(made) == [[("a#0", [0]), ("a#1", [1, 2]), ("a#2", [3])], [("a#2", [4, 5]), ("a#3", [6, 7])]]
  assert by_document(made[0])[1].tolist() == [1, 2, 2, 3] and by_document(made[1])[1].tolist() == [1, 1, 2, 2]


def test_too_little_is_one_sentence():
  with pytest.raises(UserError, match=r"given, round 1: its 2 sequences hold 5 tokens, and 3 of the 8 of a sequence"):
    make("given", library(("a", 0, 3, ()), ("b", 10, 2, ())), 8)
