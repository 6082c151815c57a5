"""On a real corpus every method gives whole sequences, with the properties of its paper."""

import json
import re

import numpy as np
import pytest
from etils import epath

from configs.demo import get_config
from policylong import config as config_lib
from policylong.corpus.store import open_corpus
from policylong.model.tokenizer import load_tokenizer
from policylong.retrieval.embedders import make_embedder
from policylong.retrieval.library import CorpusLibrary
from policylong.retrieval.store import open_index
from policylong.synthesis import storage
from policylong.synthesis.keywords import rake
from policylong.synthesis.method import Inputs
from policylong.synthesis.methods import METHODS
from tests.synthesis.library import check

LENGTH, COUNT, ROUNDS = 2048, 6, 2
NAMES = [name for name, method in METHODS.items() if not {"policy", "sequences"} & method.asks]


@pytest.fixture(scope="module")
def tokenizer(material):
  return load_tokenizer(material / "smollm2.gguf")


@pytest.fixture(scope="module")
def world(material, tokenizer, tmp_path_factory):
  """(make a library, corpus): eleven speeches and 400 leads of Wikipedia, hashed n-grams."""
  folder = tmp_path_factory.mktemp("corpus")
  lines = (material / "wiki-sample.jsonl").read_text().splitlines()[:400]
  (folder / "wiki.jsonl").write_text("\n".join(lines))
  values = get_config()
  speeches = {"name": "sotu", "kind": "text", "path": str(material / "sotu" / "195*.txt"), "id_field": "",
              "text_field": "", "split": ""}
  wiki = {"name": "wiki", "kind": "jsonl", "path": str(folder / "wiki.jsonl"), "id_field": "id", "text_field": "text",
          "split": ""}
  values.corpus.update({"sources": (speeches, wiki), "cache_dir": str(folder / "cache"), "root_sources": ()})
  values.retrieval.update({"embedder": "hashed", "embedder_path": "", "embedder_sha256": "", "index": "exact"})
  values.synthesis.sequence_length = LENGTH
  values.screening.update({"min_root_tokens": 32, "skip_tokens": 16})
  config = config_lib.parse(values)
  corpus, embedder = open_corpus(config.corpus), make_embedder(config.retrieval)
  index = open_index(corpus, embedder, config.retrieval, config.corpus.cache_dir, 0)

  def library(**changes):
    values.method_options.update(changes)
    return CorpusLibrary(config_lib.parse(values), corpus, tokenizer, embedder, index)
  return library, corpus, config


def run(world, name, round_index=1, count=COUNT, **changes):
  library, _, config = world
  options = {"quest_least_score": 2.0, "search": "embeddings", **changes}
  made = library(**options)
  return made, list(METHODS[name].sequences(Inputs(
      config.seed, round_index, 0, LENGTH, count, config_lib.MethodOptions(**{
          **get_config().method_options.to_dict(), **options}), made, None)))


@pytest.mark.parametrize("name", NAMES)
def test_sequences_are_whole_and_come_back_from_disk(world, name, tmp_path):
  _, sequences = run(world, name)
  check(sequences, LENGTH)
  assert len(sequences) == COUNT
  storage.write_sequences(sequences, epath.Path(tmp_path))
  found = storage.read_tokens(storage.sequence_paths(tmp_path / "sequences"))
  assert (found == np.stack([sequence.tokens for sequence in sequences])).all()
  spans = storage.read_spans(tmp_path / "sequences.parquet", range(COUNT))
  assert [[(s.start, s.end, s.role, s.doc_id) for s in row] for row in spans] == [
      [(s.start, s.end, s.role, s.doc_id) for s in sequence.spans] for sequence in sequences]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes_and_rounds_differ(world, name):
  one, two, other = (run(world, name, round_index)[1] for round_index in (1, 1, 2))
  assert [s.tokens.tobytes() for s in one] == [s.tokens.tobytes() for s in two]
  assert {s.tokens.tobytes() for s in one}.isdisjoint(s.tokens.tobytes() for s in other)


@pytest.mark.parametrize("name", ["standard", "iclm", "utk", "prolong", "quest"])
def test_no_document_is_in_two_rounds(world, name):
  documents = [{s.doc_id for sequence in run(world, name, round_index)[1] for s in sequence.spans}
               for round_index in (1, 2)]
  assert documents[0] and documents[1] and not documents[0] & documents[1]


@pytest.mark.parametrize("name", ["standard", "quest", "knn", "iclm", "prolong"])
def test_what_a_document_span_says_is_in_the_document(world, tokenizer, name):
  library, sequences = run(world, name)
  for sequence in sequences:
    for span in sequence.spans:
      own = np.concatenate([library.document_tokens(span.doc_id), library.separator]).tobytes()
      assert span.role == "root" and sequence.tokens[span.start:span.end].tobytes() in own


@pytest.mark.parametrize("position", ["head", "tail", "random"])
@pytest.mark.parametrize("search", ["embeddings", "bm25"])
def test_nextlong_has_its_meta_chunks_in_order_and_no_chunk_twice(world, position, search):
  library, sequences = run(world, "nextlong", nextlong_position=position, search=search)
  blocks = []
  for sequence in sequences:
    (root,) = {s.doc_id for s in sequence.spans}
    chunks = [s.chunk_id for s in sequence.spans]
    assert len(chunks) == len(set(chunks))
    meta = [s.chunk_id for s in sequence.spans if s.role == "root"]
    assert meta == library.chunks(root)[:len(meta)] and meta
    whole = sum(len(library.chunk_tokens(chunk_id)) for chunk_id in library.chunks(root))
    assert len(meta) == len(library.chunks(root)) or whole > LENGTH // 2
    assert all(s.role == "root" or s.chunk_id.rpartition("#")[0] != root for s in sequence.spans)
    cut = 0
    for span in sequence.spans:
      own = library.chunk_tokens(span.chunk_id)
      assert (sequence.tokens[span.start:span.end] == own[:span.end - span.start]).all()
      cut += span.end - span.start < len(own)
    assert cut <= 1
    blocks.append([s.role for s in sequence.spans])
  firsts = {roles[0] for roles in blocks}
  assert firsts == {"root"} if position == "head" else "negative" in firsts


def test_quest_has_one_keyword_a_sequence(world):
  library, sequences = run(world, "quest", count=12)
  for sequence in sequences:
    documents = {s.doc_id for s in sequence.spans}
    shared = set.intersection(*(set(rake(library.text(doc_id), 2.0)) for doc_id in documents))
    assert shared, documents
  assert any(len({s.doc_id for s in sequence.spans}) > 1 for sequence in sequences)


def test_iclm_has_each_document_once(world):
  _, corpus, _ = world
  library, sequences = run(world, "iclm", count=10_000)
  row = [s.doc_id for sequence in sequences for s in sequence.spans]
  visits = [doc_id for i, doc_id in enumerate(row) if not i or doc_id != row[i - 1]]
  assert len(visits) == len(set(visits))
  # All of the round's documents, but for those of what is left over behind the last sequence.
  tokens = {doc_id: len(library.document_tokens(doc_id)) + len(library.separator) for doc_id in library.documents(1)}
  left = sum(tokens.values()) - LENGTH * len(sequences)
  assert 0 <= left < LENGTH and sum(size for doc_id, size in tokens.items() if doc_id not in visits) <= left
  assert abs(len(tokens) - corpus.num_documents / ROUNDS) < 1


def test_iclm_neighbours_are_nearer_than_chance(world):
  library, sequences = run(world, "iclm", count=10_000)
  row = list(dict.fromkeys(s.doc_id for sequence in sequences for s in sequence.spans))
  vectors = library._embedder.embed_documents([library.text(doc_id) for doc_id in row])
  steps = (vectors[:-1] * vectors[1:]).sum(axis=1)
  shuffled = vectors[np.random.default_rng(0).permutation(len(vectors))]
  assert steps.mean() > 1.3 * (shuffled[:-1] * shuffled[1:]).sum(axis=1).mean()


def test_knn_has_no_document_twice_and_the_nearest_first(world):
  library, sequences = run(world, "knn")
  for sequence in sequences:
    root, *others = [s.doc_id for s in sequence.spans]
    assert len({root, *others}) == 1 + len(others)
    if others:
      query, *chunks = library._embedder.embed_documents(
          [library.text(root), *(library.chunk_text(c) for doc_id in others for c in library.chunks(doc_id))])
      owners = [doc_id for doc_id in others for _ in library.chunks(doc_id)]
      best = [max(float(query @ v) for v, owner in zip(chunks, owners) if owner == doc_id) for doc_id in others]
      assert best == sorted(best, reverse=True)


def test_utk_can_be_untied_from_its_text_alone(world, tokenizer):
  library, sequences = run(world, "utk", utk_share=1.0)
  knotted = 0
  for sequence in sequences:
    pieces = {}  # label before it: (text, label behind it)
    begin = re.compile(r"^\n\[([0-9a-f]{4})\]\n")
    end = re.compile(r"\n\[([0-9a-f]{4})\]\n$")
    firsts = {}
    for span in sequence.spans:
      text = tokenizer.decode(sequence.tokens[span.start:span.end])
      if span.role == "root":
        head, tail = begin.search(text), end.search(text)
        stripped = text[head.end() if head else 0:tail.start() if tail else len(text)]
        (pieces if head else firsts)[head[1] if head else span.doc_id] = (stripped, tail[1] if tail else None)
        assert not head or span.rank > 0
    for span in sequence.spans:
      if span.role == "filler":
        labels = tokenizer.decode(sequence.tokens[span.start:span.end]).strip("[]\n").split()
        text, following = firsts[span.doc_id]
        for label in labels:
          assert following == label
          part, following = pieces.pop(label)
          text += part
        assert following is None
        # A cut inside a character of several tokens leaves signs that stand for its halves.
        whole = library.text(span.doc_id) + tokenizer.decode(library.separator)
        assert text in whole or "\ufffd" in text
        knotted += len(labels)
    assert not pieces
  assert knotted > 10


def test_prolong_has_its_share_of_long_documents(world):
  library, sequences = run(world, "prolong", count=10)
  long = [len(sequence.spans) == 1 and len(library.document_tokens(sequence.spans[0].doc_id)) >= LENGTH
          for sequence in sequences]
  assert sum(long) == 6
  for sequence, is_long in zip(sequences, long):
    if not is_long:
      assert all(len(library.document_tokens(s.doc_id)) < LENGTH for s in sequence.spans)


def test_documents_that_do_not_fill_a_sequence_are_refused(world, tokenizer, tmp_path):
  _, _, config = world
  (tmp_path / "few.jsonl").write_text(json.dumps({"id": "a", "text": "A short text."}) + "\n")
  source = config_lib.Source("few", "jsonl", str(tmp_path / "few.jsonl"), "id", "text", "")
  corpus = open_corpus(config_lib.Corpus((source,), (), 2048, str(tmp_path / "cache"), None))
  values = json.loads(config_lib.to_json(config))
  values["rounds"] = 1
  small = CorpusLibrary(config_lib.parse(values), corpus, tokenizer, make_embedder(config.retrieval), None)
  options = config_lib.MethodOptions(**get_config().method_options.to_dict())
  for name in ("standard", "iclm", "utk", "quest", "prolong"):
    with pytest.raises(config_lib.UserError, match=r"2048|2044") as caught:
      list(METHODS[name].sequences(Inputs(0, 1, 0, LENGTH, 4, options, small, None)))
    assert str(caught.value).startswith(f"{name}, round 1") and "\n" not in str(caught.value)
