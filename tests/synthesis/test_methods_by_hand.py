"""Each method on a few documents whose right sequence is known by hand."""

import collections
import re

import numpy as np
import pytest

from policylong import config as config_lib
from policylong.errors import UserError
from policylong.synthesis.iclm import walk
from policylong.synthesis.keywords import rake
from policylong.synthesis.methods import METHODS
from policylong.synthesis.nextlong import negatives_per_meta_chunk
from policylong.synthesis.pieces import due
from policylong.synthesis.quest import inverted_index
from tests.synthesis.library import Words, check, make, reading


def test_the_config_knows_the_methods_that_there_are():
  assert tuple(METHODS) == config_lib.METHODS
  assert tuple(name for name, method in METHODS.items() if "policy" in method.asks) == config_lib.POLICY_METHODS


def words(library, sequences):
  return [library.read(sequence.tokens) for sequence in sequences]


def test_standard_cuts_the_row_of_documents():
  library = Words({"a": ["a1 a2 a3"], "b": ["b1 b2"], "c": ["c1 c2 c3 c4"]})
  sequences = make("standard", library, 5)
  check(sequences, 5)
  assert words(library, sequences) == ["a1 a2 a3 / b1", "b2 / c1 c2 c3"]  # "c4 /" is left over
  assert [(s.doc_id, s.start, s.end) for s in sequences[1].spans] == [("b", 0, 2), ("c", 2, 5)]
  assert words(library, make("standard", library, 5, count=1)) == ["a1 a2 a3 / b1"]


def test_standard_says_what_is_missing():
  with pytest.raises(UserError, match=r"standard, round 1: its documents hold 3 tokens, and 7 of the 10 .*"
                                      r"synthesis\.sequence_length"):
    make("standard", Words({"a": ["a1 a2"]}), 10)


def test_knn_puts_the_nearest_documents_behind_the_root():
  library = Words({"root": ["x y z"], "far": ["p q"], "near": ["o p", "x y"], "nearer": ["x y z w"]})
  (sequence, *_) = make("knn", library, 14)
  check([sequence], 14)
  assert library.read(sequence.tokens) == "x y z / x y z w / o p x y /"
  assert [(s.doc_id, s.rank) for s in sequence.spans] == [("root", -1), ("nearer", 0), ("near", 1)]


def test_knn_says_which_root_lacks_how_much():
  with pytest.raises(UserError, match=r"the root a and its 1 neighbours, .* lack 4 of 10 tokens: make synthesis\."):
    make("knn", Words({"a": ["x y"], "b": ["y z"]}), 10)


NEXTLONG = {"root": ["a b", "c d"], "n1": ["a b e"], "n2": ["a f g", "c d a"], "n3": ["c h i"]}


@pytest.mark.parametrize("position, wanted", [
    ("head", "a b / a b e / a f g / c d / c d a / c h i /"), ("tail", "a b e / a f g / a b / c d a / c h i / c d /")])
def test_nextlong_by_hand(position, wanted):
  library = Words(NEXTLONG)
  # of "a b": "a b e" has two words in common, "a f g" and "c d a" one; of "c d": "c d a" two, "c h i" one
  sequence = make("nextlong", library, 22, nextlong_k=2, nextlong_position=position)[0]
  check([sequence], 22)
  assert library.read(sequence.tokens) == wanted
  assert [(s.role, s.chunk_id, s.rank) for s in reading(library, sequence) if s.role == "root"] == [
      ("root", "root#0-1", -1), ("root", "root#1-2", -1)]
  assert {s.doc_id for s in sequence.spans} == {"root"}


def test_nextlong_leaves_out_a_negative_that_is_there_already():
  library = Words({"root": ["a b", "a c"], "n": ["a x y"], "m": ["c z"]})
  # k = 1: both meta-chunks want "a x y", only the first has it, that is 10 tokens; k = 2: of the others "c z" is next
  sequence = make("nextlong", library, 13, nextlong_k=1)[0]
  assert library.read(sequence.tokens) == "a b / a x y / c z / a c /"
  assert [s.chunk_id for s in sequence.spans] == ["root#0-1", "n#0-1", "m#0-1", "root#1-2"]


def test_nextlong_keeps_the_meta_chunks_and_leaves_out_what_is_too_much_from_the_lowest_ranks():
  library = Words(NEXTLONG)
  # 22 tokens with all four negatives; 16: the two of rank 0 are there, of rank 1 the first one's first two tokens
  sequence = make("nextlong", library, 16, nextlong_k=2)[0]
  assert library.read(sequence.tokens) == "a b / a b e / a f c d / c d a /"
  # a root that leaves no half of the sequence to negatives is cut at a meta-chunk
  assert library.read(make("nextlong", library, 9, nextlong_k=2)[0].tokens) == "a b / a b e / a f"


def test_nextlong_random_puts_the_meta_chunk_everywhere():
  library = Words({"root": ["a b"], "n1": ["a x"], "n2": ["a y"]})
  places = collections.Counter(
      [s.role for s in make("nextlong", library, 9, seed=seed, count=1, nextlong_k=2,
                            nextlong_position="random")[0].spans].index("root") for seed in range(300))
  assert set(places) == {0, 1, 2} and min(places.values()) > 60  # of 300, 100 each; standard deviation 8


def test_nextlong_k_is_the_papers_formula():
  # 131,072 tokens of 4 characters, a root of 20,480 characters in 10 meta-chunks of 2,048
  assert negatives_per_meta_chunk(131072, 20480, 5120, 10, 2048) == 38  # (786,432 - 20,480) / 20,480 = 37.4
  assert negatives_per_meta_chunk(4096, 40000, 10000, 20, 2048) == 1  # the root alone is longer


def test_nextlong_says_which_root_lacks_how_much():
  with pytest.raises(UserError, match=r"the root root lacks 5 of 13 tokens with all chunks .* synthesis\.sequence"):
    make("nextlong", Words({"root": ["a b"], "n": ["a b c d"]}), 13)


def test_iclm_walks_from_neighbour_to_neighbour():
  # 0 - 1 - 2 with the similarity 2 - 1, and 3 alone: the walk starts at the lowest degree
  rows = np.array([[1, -1], [0, 2], [1, -1], [-1, -1]])
  scores = np.array([[0.2, 0], [0.2, 0.9], [0.9, 0], [0, 0]])
  assert walk(rows, scores) == [3, 0, 1, 2]
  # a star: from a leaf to the centre, to the most similar leaf, and then each leaf begins anew
  rows = np.array([[1, 2, 3], [0, -1, -1], [0, -1, -1], [0, -1, -1]])
  scores = np.array([[0.5, 0.7, 0.9], [0.5, 0, 0], [0.7, 0, 0], [0.9, 0, 0]])
  assert walk(rows, scores) == [1, 0, 3, 2]
  # an edge that only the other end knows of is an edge
  assert walk(np.array([[-1], [0], [0]]), np.array([[0.0], [0.3], [0.6]])) == [1, 0, 2]


def test_iclm_by_hand():
  library = Words({"a": ["x y"], "b": ["p q"], "c": ["x y z"], "d": ["z q"]})
  library.neighbours = lambda texts, k: (np.array([[2], [3], [0], [1]]), np.array([[2.0], [1], [2], [1]]))
  sequences = make("iclm", library, 6, count=2)
  assert words(library, sequences) == ["x y / x y z", "/ p q / z q"]  # a, its neighbour c; b, its neighbour d


def test_rake_scores_by_degree_over_frequency():
  text = "Red sea, blue whale; the red sea and a whale"
  # red: degree 4, twice; sea: the same; blue: 2, once; whale: 3, twice
  assert rake(text, 0) == {"red sea": 4.0, "blue whale": 3.5, "whale": 1.5}
  assert rake(text, 3) == {"red sea": 4.0, "blue whale": 3.5}


def test_quest_groups_the_documents_of_a_keyword():
  library = Words({"a": ["red fox", "of one"], "b": ["blue sea is", "two"], "c": ["the red fox", "of one"],
                   "d": ["a blue sea", "of two"], "e": ["green"]})
  sequences = make("quest", library, 8, quest_split_ratio=0.0)
  check(sequences, 8)
  assert {frozenset(s.doc_id for s in sequence.spans) for sequence in sequences} == {
      frozenset("ac"), frozenset("bd")}
  assert len(sequences) == 2


def test_quest_oversamples_the_keywords_with_fewest_documents():
  rare = {f"r{i}": ["red fox is the"] for i in range(2)}
  others = {f"b{i}": ["blue sea is the"] for i in range(10)}
  sequences = make("quest", Words({**rare, **others}), 10, quest_split_ratio=0.5)
  check(sequences, 10)
  kinds = [{s.doc_id[0] for s in sequence.spans} for sequence in sequences]
  assert kinds == [{"r"}, {"b"}] * 5


def test_quest_keeps_a_keyword_apart_from_those_that_are_oversampled():
  sequences = make("quest", Words({f"b{i}": ["blue sea is the"] for i in range(10)}), 10, quest_split_ratio=1.0)
  check(sequences, 10)
  assert sequences


def test_quest_documents_of_keywords_that_cannot_fill_draw_again():
  sizes = dict.fromkeys("abcdef", 10)
  keywords = {"a": ["x", "y"], "b": ["x", "y"], "c": ["y", "only c"], "d": ["y"], "e": ["e and f"], "f": ["e and f"]}
  groups = inverted_index(keywords, sizes, 30, "seed")
  assert {keyword: sorted(documents) for keyword, documents in groups.items()} == {"y": list("abcd")}
  for key in map(str, range(20)):  # whatever is drawn, each document is under one keyword that it has
    groups = inverted_index(keywords, sizes, 20, key)
    placed = [doc_id for documents in groups.values() for doc_id in documents]
    assert len(placed) == len(set(placed)) and "e and f" in groups
    assert all(keyword in keywords[doc_id] for keyword, documents in groups.items() for doc_id in documents)
    assert all(len(documents) >= 2 for documents in groups.values())


def test_quest_says_what_is_missing():
  with pytest.raises(UserError, match=r"none of its 2 documents shares a keyword of method_options\.quest_least_score"
                                      r" = 3 .* 9 tokens"):
    make("quest", Words({"a": ["red fox"], "b": ["blue sea"]}), 9)
  with pytest.raises(UserError, match=r"'red fox', hold 6 tokens, 3 too few for a sequence of 9"):
    make("quest", Words({"a": ["red fox"], "b": ["red fox"]}), 9)


def untied(library, sequence):
  """A reader of its own of a knotted sequence: {document: words in order}, from labels alone."""
  lines = {s.doc_id: re.findall(r"[0-9a-f]{4}", s.words) for s in reading(library, sequence) if s.role == "filler"}
  begins, ends, whole = {}, {}, {}
  for span in reading(library, sequence):
    if span.role == "root":
      found = re.match(r"(?:\[([0-9a-f]{4})\] )?(.*?)(?: \[([0-9a-f]{4})\])?$", span.words)
      head, text, tail = found.groups()
      if head is None and tail is None:
        whole[span.doc_id] = text
      begins[head], ends[tail] = (span.doc_id, text), (span.doc_id, text)
  for doc_id, labels in lines.items():
    whole[doc_id] = " ".join([ends[labels[0]][1], *(begins[label][1] for label in labels)])
    assert {begins[label][0] for label in labels} == {doc_id} == {ends[label][0] for label in labels}
  return whole


def test_utk_can_be_untied():
  documents = {name: [" ".join(f"{name}{i}.{j}" for j in range(6)) for i in range(4)] for name in "abc"}
  library = Words(documents, chunk_chars=30)
  for seed in range(20):
    sequences = make("utk", library, 84, count=1, seed=seed, utk_share=1.0)
    check(sequences, 84)
    found = untied(library, sequences[0])
    row = {name: (library.text(name) + " /").split() for name in documents}
    assert all(found[name].split() == row[name][:len(found[name].split())] for name in found)
    assert found["a"] == library.text("a") + " /" and found["b"] == library.text("b") + " /"
    ranks = [s.rank for s in sequences[0].spans if s.doc_id == "a" and s.role == "root"]
    assert sorted(ranks) == list(range(4))


def test_utk_shuffles_the_pieces_of_all_documents():
  library = Words({name: [f"{name}1 {name}2", f"{name}3 {name}4", f"{name}5 {name}6"] for name in "ab"}, chunk_chars=5)
  orders = {tuple((s.doc_id, s.rank) for s in make("utk", library, 24, count=1, seed=seed, utk_share=1.0)[0].spans
                  if s.role == "root") for seed in range(40)}
  assert len(orders) > 20 and any(order[0][0] != order[1][0] for order in orders)


def test_utk_cuts_a_document_that_goes_on_into_as_many_pieces_as_have_room():
  # 2,000 words of 5 characters, ten to a chunk's worth: 200 tokens of it are 20 pieces, all of it would be 200.
  library = Words({"a": [" ".join(f"{i:04d}" for i in range(2000))]}, chunk_chars=50)
  for sequence in make("utk", library, 200, count=3, utk_share=1.0):
    assert sum(span.role == "root" for span in sequence.spans) == 20


def test_utk_knots_only_its_share():
  library = Words({f"d{i}": [f"w{i} x{i}", f"y{i} z{i}"] for i in range(40)}, chunk_chars=5)
  sequences = make("utk", library, 10, count=10, utk_share=0.3)
  check(sequences, 10)
  assert [any(s.role == "filler" for s in sequence.spans) for sequence in sequences] == [due(i, 0.3) for i in range(10)]
  assert sum(due(i, 0.3) for i in range(10)) == 3 and sum(due(i, 0.6) for i in range(100)) == 60


def test_prolong_mixes_long_and_short():
  long = {f"l{i}": [" ".join(f"l{i}.{j}" for j in range(11))] for i in range(3)}
  short = {f"s{i}": [f"s{i}a s{i}b"] for i in range(12)}
  library = Words({**short, **long})
  sequences = make("prolong", library, 5, count=5)
  check(sequences, 5)
  assert words(library, sequences) == [
      "s0a s0b / s1a s1b", "l0.0 l0.1 l0.2 l0.3 l0.4", "/ s2a s2b / s3a", "l0.5 l0.6 l0.7 l0.8 l0.9",
      "l1.0 l1.1 l1.2 l1.3 l1.4"]
  assert [[s.doc_id for s in sequence.spans] for sequence in sequences[:2]] == [["s0", "s1"], ["l0"]]


def test_prolong_says_what_is_missing():
  with pytest.raises(UserError, match=r"the longest document has 3 tokens, 2 fewer than a sequence: make synthesis\."
                                      r"sequence_length or method_options\.prolong_long_share smaller"):
    make("prolong", Words({f"s{i}": ["x y z"] for i in range(9)}), 5)
  with pytest.raises(UserError, match=r"fewer than 5 tokens hold 0 tokens, and 5 of the 5 .*long_share to 1"):
    make("prolong", Words({"l": ["x y z v w u"]}), 5)
