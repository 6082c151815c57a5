"""Chunks are whole paragraphs; together they are the text."""

import itertools

import numpy as np
import pytest

from policylong.corpus.chunks import LONGEST, byte_spans, chunk_id, chunk_spans, parse_chunk_id


def texts_of(text, chunk_chars):
  return [text[start:end] for start, end in chunk_spans(text, chunk_chars)]


def test_paragraphs_are_packed_while_they_fit():
  assert texts_of("aaaa\n\nbbbb\n\ncccc\n\ndd", 10) == ["aaaa\n\nbbbb", "cccc\n\ndd"]
  assert texts_of("aaaa\n\nbbbb\n\ncccc\n\ndd", 9) == ["aaaa", "bbbb", "cccc\n\ndd"]


def test_a_longer_paragraph_is_its_own_chunk():
  long = "x" * 30
  assert texts_of(f"aa\n\n{long}\n\nbb", 10) == ["aa", long, "bb"]


def test_a_paragraph_that_fits_keeps_its_lines_together_even_where_they_could_fill_the_chunk_before():
  assert texts_of("aaaaaa\n\nbb\ncc\ndd", 10) == ["aaaaaa", "bb\ncc\ndd"]


def test_a_text_with_single_newlines_is_cut_at_its_lines():
  assert texts_of("one line\nsecond\nthird one\nx", 16) == ["one line\nsecond", "third one\nx"]


def test_blank_lines_may_hold_white_space_and_carriage_returns():
  assert texts_of("aaaaaa\r\n\r\nbbbbbb\r\n \t\r\n\r\ncccccc\r\n", 8) == ["aaaaaa", "bbbbbb", "cccccc"]


def test_indentation_of_a_first_line_is_kept():
  assert texts_of("\n\n  def f():\n    return 1\n\n\n", 100) == ["  def f():\n    return 1"]


def test_white_space_has_no_chunk():
  assert chunk_spans(" \n\t\n\u3000 ", 10) == [] == chunk_spans("", 10)


def test_a_megabyte_without_a_newline_is_cut_at_white_space():
  text = "word " * 200_000
  found = texts_of(text, 2048)
  assert all(len(t) <= LONGEST * 2048 for t in found)
  assert " ".join(found).split() == text.split()


def test_a_megabyte_without_white_space_is_cut_hard():
  found = texts_of("日" * 1_000_000, 2048)
  assert max(map(len, found)) == LONGEST * 2048 and "".join(found) == "日" * 1_000_000


@pytest.mark.parametrize("seed", range(200))
def test_only_white_space_is_lost_and_neighbours_could_not_have_been_one_chunk(seed):
  rng = np.random.default_rng(seed)
  letters = np.array(list("ab é日🤖    \n\n\n\t\r"))
  text = "".join(letters[rng.integers(len(letters), size=rng.integers(1, 400))])
  size = int(rng.integers(1, 40))
  spans = chunk_spans(text, size)
  position = 0
  for start, end in spans:
    assert position <= start < end and not text[position:start].strip()
    assert not text[end - 1].isspace() and end - start <= LONGEST * size
    position = end
  assert not text[position:].strip()
  paragraphs = sum(1 for p in text.replace("\r", "").split("\n\n") if p.strip())
  assert len(spans) <= paragraphs + text.count("\n") + len(text) // size + 1
  for (start, end), (first, last) in zip(byte_spans(text, spans), spans):
    assert text.encode()[start:end].decode() == text[first:last]


def test_real_speeches_have_chunks_of_about_the_wanted_size(material):
  sizes = []
  for path in sorted((material / "sotu").glob("*.txt")):
    text = path.read_text()
    spans = chunk_spans(text, 2048)
    sizes += [end - start for start, end in spans]
    # greedy: no chunk could have taken the first paragraph of the next one
    for (start, _), (first, last) in itertools.pairwise(spans):
      paragraph = text[first:last].split("\n\n")[0]
      assert first + len(paragraph) - start > 2048 or len(paragraph) > 2048
  assert 1200 < np.mean(sizes) < 2048 and max(sizes) <= LONGEST * 2048


def test_chunk_ids_say_where_a_chunk_stands():
  assert chunk_id("wiki/C#", 3, 17) == "wiki/C##3-17"
  assert parse_chunk_id("wiki/C##3-17") == ("wiki/C#", 3, 17)
  for wrong in ("wiki/C", "a#3", "a#-3-4", "#", "a#x-y"):
    with pytest.raises(KeyError):
      parse_chunk_id(wrong)
