"""Rounds have disjoint roots; a root's tokens are exactly what its characters spell."""

import itertools
import json
import re
import subprocess
import sys
import zlib

import numpy as np
import pytest

from policylong.corpus.roots import pieces, root_span, sample_documents
from policylong.corpus.store import open_corpus
from policylong.errors import UserError


@pytest.fixture
def small(make_config, source, tmp_path):
  for name, count in (("a", 40), ("b", 25), ("c", 35)):
    (tmp_path / f"{name}.jsonl").write_text("".join(
        json.dumps({"id": str(i), "text": f"text {i}"}) + "\n" for i in range(count)))
  return open_corpus(make_config(*(source("jsonl", tmp_path / f"{n}.jsonl", name=n) for n in "abc")))


def test_rounds_are_disjoint_deterministic_and_use_every_document_in_the_end(small):
  rounds = [sample_documents(small, seed=1, round_index=r, count=20, sources=()) for r in range(1, 6)]
  assert sorted(itertools.chain(*rounds)) == list(range(100))
  assert rounds == [sample_documents(small, seed=1, round_index=r, count=20, sources=()) for r in range(1, 6)]
  other = sample_documents(small, seed=2, round_index=1, count=20, sources=())
  assert set(other) != set(rounds[0])


def test_roots_come_from_their_sources_only(small):
  rows = [row for r in range(1, 6)
          for row in sample_documents(small, seed=0, round_index=r, count=15, sources=("a", "c"))]
  assert sorted(rows) == [*range(40), *range(65, 100)]


def test_every_document_is_as_likely_as_another(small):
  counts = np.zeros(100)
  for seed in range(2000):
    counts[sample_documents(small, seed=seed, round_index=1, count=10, sources=())] += 1
  # Binomial(2000, 0.1): standard deviation 13.4; 5 of them for the worst of 100 documents
  assert abs(counts - 200).max() < 5 * 13.4


def test_too_few_documents_are_told_with_both_numbers(small):
  with pytest.raises(UserError, match=r"need 60 root documents, but the corpus holds 40 \(a\)"):
    sample_documents(small, seed=0, round_index=3, count=20, sources=("a",))


@pytest.fixture
def speeches(make_config, source, material):
  return open_corpus(make_config(source("text", material / "sotu" / "17*.txt", name="sotu"), chunk_chars=500))


def test_a_long_document_gives_a_window_that_begins_at_a_chunk(speeches, tokenizer):
  for document in range(speeches.num_documents):
    record = speeches.document(document)
    whole = len(tokenizer(record.text, add_special_tokens=False).input_ids)
    root = root_span(speeches, tokenizer, document, root_tokens=100, min_root_tokens=50, seed=0)
    assert root.doc_id == record.id and root.tokens.dtype == np.int32
    assert len(root.tokens) == 100 < whole and root.start in speeches.chunk_starts(document)
    # what the tokens spell, by the tokenizer's own decoder
    assert tokenizer.decode(root.tokens) == record.text[root.start:root.end]
    assert list(root.pieces) == [tokenizer.decode([token]) for token in root.tokens]
    assert "".join(root.pieces) == record.text[root.start:root.end] and len(root.pieces) == len(root.tokens)
    assert all(tokenizer.decode([t]) == piece for t, piece in zip(root.tokens.tolist(), root.pieces) if piece.isascii())
    # the window of the text read to its end, not of a prefix
    assert root.tokens.tolist() == tokenizer(record.text[root.start:]).input_ids[:100]


def test_windows_are_drawn_evenly_among_the_starts_that_leave_enough(speeches, tokenizer):
  text = speeches.document(0).text
  enough = [start for start in speeches.chunk_starts(0).tolist()
            if len(tokenizer(text[start:]).input_ids) >= 900]
  assert 1 < len(enough) < len(speeches.document_rows(0))
  starts = [root_span(speeches, tokenizer, 0, root_tokens=900, min_root_tokens=9, seed=seed).start
            for seed in range(200)]
  assert set(starts) == set(enough)
  expected = 200 / len(enough)
  assert max(starts.count(start) for start in enough) < expected + 5 * expected**0.5


def test_a_short_document_is_taken_whole_and_a_shorter_one_not_at_all(make_config, source, tmp_path, tokenizer):
  text = "\n\n  Short text, of some tokens.  \n"
  (tmp_path / "x.txt").write_text(text)
  corpus = open_corpus(make_config(source("text", tmp_path / "x.txt")))
  count = len(tokenizer(text).input_ids)
  for limit in (count, count + 1, 1000):
    root = root_span(corpus, tokenizer, 0, root_tokens=limit, min_root_tokens=count, seed=0)
    assert (root.start, root.end, tokenizer.decode(root.tokens)) == (0, len(text), text)
  assert root_span(corpus, tokenizer, 0, root_tokens=1000, min_root_tokens=count + 1, seed=0) is None
  # one token too long, and no chunk start leaves enough: from the beginning of the document
  root = root_span(corpus, tokenizer, 0, root_tokens=count - 1, min_root_tokens=2, seed=0)
  assert root.start == 0 and text.startswith(tokenizer.decode(root.tokens)) and len(root.tokens) == count - 1


def test_a_window_never_ends_inside_a_character(make_config, source, tmp_path, tokenizer):
  text = "日本語🤖 " * 300
  (tmp_path / "x.txt").write_text(text)
  corpus = open_corpus(make_config(source("text", tmp_path / "x.txt")))
  for limit in range(20, 60):
    root = root_span(corpus, tokenizer, 0, root_tokens=limit, min_root_tokens=2, seed=3)
    assert limit - 3 <= len(root.tokens) <= limit
    assert tokenizer.decode(root.tokens) == text[root.start:root.end] == "".join(root.pieces)
    assert len(root.pieces) == len(root.tokens)


def test_a_window_of_a_huge_document_reads_a_prefix_only(make_config, source, tmp_path, tokenizer):
  (tmp_path / "x.txt").write_text("Some words of a very long document.\n\n" * 100_000)
  corpus = open_corpus(make_config(source("text", tmp_path / "x.txt")))
  longest = []

  def counting(text, **arguments):
    longest.append(len(text))
    return tokenizer(text, **arguments)
  root = root_span(corpus, counting, 0, root_tokens=200, min_root_tokens=2, seed=0)
  assert len(root.tokens) == 200 and max(longest) < 4000


def words(text, **_):
  """A tokenizer of whole words: where a text is cut inside a word, the last token is another one."""
  found = list(re.finditer(r"\S+\s*", text))
  return {"input_ids": [zlib.crc32(m[0].encode()) % 2**31 for m in found], "offset_mapping": [m.span() for m in found]}


def test_a_prefix_gives_the_tokens_of_the_whole_text_wherever_it_is_cut(make_config, source, tmp_path):
  rng = np.random.default_rng(0)
  text = "".join(f"{i:0{size}d} " for i, size in enumerate(rng.integers(4, 11, size=2000)))  # 8 characters a token
  (tmp_path / "x.txt").write_text(text)
  corpus = open_corpus(make_config(source("text", tmp_path / "x.txt"), chunk_chars=50))
  starts = set()
  for limit in range(50, 350):
    root = root_span(corpus, words, 0, root_tokens=limit, min_root_tokens=2, seed=limit)
    whole = words(text[root.start:])
    assert root.tokens.tolist() == whole["input_ids"][:limit] and len(root.tokens) == limit
    assert root.end - root.start == whole["offset_mapping"][limit - 1][1]
    starts.add(root.start)
  assert len(starts) > 30


def test_pieces_are_the_text(tokenizer):
  text = "The café of 日本語 costs 5€ 🤖👩‍👩‍👧!\n\n  \tEnd  "
  found = pieces(tokenizer, text)
  ids = tokenizer(text).input_ids
  assert "".join(found) == text and len(found) == len(ids)
  # 🤖 is four bytes, each its own token in this vocabulary: the first has it
  i = found.index("🤖")
  assert tokenizer.decode(ids[i:i + 4]) == "🤖" and found[i + 1:i + 4] == ["", "", ""]
  for piece, token in zip(found, ids):
    if piece.isascii() and piece:
      assert tokenizer.decode([token]) == piece
  assert pieces(tokenizer, "") == []


def test_pieces_of_a_tokenizer_that_drops_white_space(material):
  from transformers import PreTrainedTokenizerFast
  wordpiece = PreTrainedTokenizerFast(tokenizer_file=str(material / "minilm" / "tokenizer.json"))
  text = "  Hello   world, said Élodie. "
  assert "".join(pieces(wordpiece, text)) == text


def test_another_process_draws_the_same(speeches, tokenizer, tmp_path):
  """Python's own hash() differs between processes; ours must not."""
  code = ("import pathlib, numpy as np; from policylong.corpus.roots import sample_documents\n"
          "from policylong.randomness import generator\n"
          "from policylong.corpus.store import Corpus\n"
          f"corpus = Corpus(pathlib.Path({str(speeches._blocks._folder)!r}))\n"
          "print(sample_documents(corpus, seed=5, round_index=1, count=4, sources=()),"
          " generator(5, 'root', 'x').permutation(9).tolist())")
  outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."}).stdout for seed in "12"}
  assert len(outputs) == 1 and outputs.pop().startswith(
      str(sample_documents(speeches, seed=5, round_index=1, count=4, sources=())))
