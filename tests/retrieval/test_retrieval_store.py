"""The stored index: built once, gone on with after a kill, refused when damaged."""

import dataclasses
import json
import pathlib
import re
import shutil
import socket

import numpy as np
import pytest

from policylong import config as config_lib
from policylong.errors import Damaged, UserError
from policylong.retrieval import memory, rows, store
from policylong.retrieval.embedders import embedder_dim, make_embedder
from policylong.retrieval.exact import ExactIndex
from policylong.retrieval.hashed import HashedNgrams
from policylong.retrieval.pieces import PiecedIndex
from policylong.retrieval.scann_index import ScannIndex, recall_of

CONFIG = config_lib.Retrieval(
    embedder="hashed", embedder_path="", embedder_sha256="", embedder_max_tokens=128, embedder_batch=4,
    query_instruction="", dim=None, index="scann", leaves=None, target_recall=0.9, piece_gib=1.0)


class FakeCorpus:
  """Chunks of made-up words, a few of them empty."""

  def __init__(self, num_chunks: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    words = np.array(["".join(rng.choice(list("aeioukstrn"), 5)) for _ in range(500)])
    self._texts = [" ".join(rng.choice(words, int(rng.integers(0, 40)))) for _ in range(num_chunks)]
    self.version, self.num_chunks = f"fake-{num_chunks}-{seed}", num_chunks

  def chunk_text(self, row: int) -> str:
    return self._texts[row]


class Counting(HashedNgrams):
  """Counts what it embeds, and stops at a given text as a kill would."""

  def __init__(self, stop_after: int | None = None):
    super().__init__(64)
    self.embedded, self._stop_after = 0, stop_after

  def embed_documents(self, texts):
    if self._stop_after is not None and self.embedded >= self._stop_after:
      raise KeyboardInterrupt
    self.embedded += len(texts)
    return super().embed_documents(texts)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
  monkeypatch.setattr(rows, "SHARD_ROWS", 64)


def in_pieces_of(count: int, **changed) -> config_lib.Retrieval:
  """The config with pieces of at most so many rows of 64 numbers."""
  return dataclasses.replace(CONFIG, piece_gib=memory.build_bytes(count, 64, 1) / 2**30, **changed)


def files(directory: pathlib.Path) -> dict[str, bytes]:
  """Every file by its path, but for the speeds that a curve holds."""
  return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*"))
          if path.is_file() and path.name not in ("curve.json", "MANIFEST.json") and path.suffix != ".lock"}


@pytest.mark.parametrize("kind,leaves", [("scann", None), ("scann", 12), ("exact", None)])
def test_row_r_is_chunk_r(tmp_path, kind, leaves):
  corpus, embedder = FakeCorpus(300), HashedNgrams(64)
  config = dataclasses.replace(CONFIG, index=kind, leaves=leaves)
  index = store.open_index(corpus, embedder, config, tmp_path, seed=0)
  assert isinstance(index, ExactIndex if kind == "exact" else ScannIndex)
  long = [row for row in range(300) if len(corpus.chunk_text(row)) > 40]
  found, scores = index.search(embedder.embed_queries([corpus.chunk_text(row) for row in long]), 1)
  assert (found[:, 0] == long).mean() >= 0.9  # what the tree was tuned to
  np.testing.assert_allclose(scores, 1, atol=4e-3)


def test_it_is_built_once(tmp_path):
  corpus, first = FakeCorpus(200), Counting()
  before = store.open_index(corpus, first, CONFIG, tmp_path, seed=0)
  stored = files(tmp_path)
  again = Counting()
  after = store.open_index(corpus, again, CONFIG, tmp_path, seed=0)
  assert (first.embedded, again.embedded) == (200, 0)
  assert files(tmp_path) == stored
  queries = first.embed_queries(["some words", corpus.chunk_text(7)])
  for a, b in zip(before.search(queries, 5), after.search(queries, 5)):
    np.testing.assert_array_equal(a, b)


def test_another_index_over_the_same_chunks_embeds_nothing(tmp_path):
  corpus = FakeCorpus(200)
  store.open_index(corpus, Counting(), CONFIG, tmp_path, seed=0)
  again = Counting()
  store.open_index(corpus, again, dataclasses.replace(CONFIG, index="exact"), tmp_path, seed=0)
  assert again.embedded == 0
  tree = dataclasses.replace(CONFIG, leaves=8)
  store.open_index(corpus, again, tree, tmp_path, seed=0)
  assert again.embedded == 200  # the tuning's queries, one for each chunk as there are so few
  assert len(list(tmp_path.glob("rows-*/"))) == 1 and len(list(tmp_path.glob("index-*/"))) == 2


def test_another_corpus_or_embedder_has_another_index(tmp_path):
  for corpus, embedder in ((FakeCorpus(100), HashedNgrams(64)), (FakeCorpus(100, seed=1), HashedNgrams(64)),
                           (FakeCorpus(100), HashedNgrams(32))):
    store.open_index(corpus, embedder, CONFIG, tmp_path, seed=0)
  assert len(list(tmp_path.glob("rows-*/"))) == len(list(tmp_path.glob("index-*/"))) == 3


@pytest.mark.parametrize("leaves", [None, 12])
def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(tmp_path, leaves):
  corpus, config = FakeCorpus(300), dataclasses.replace(CONFIG, leaves=leaves)
  store.open_index(corpus, Counting(), config, tmp_path / "whole", seed=0)
  with pytest.raises(KeyboardInterrupt):
    store.open_index(corpus, Counting(stop_after=128), config, tmp_path / "killed", seed=0)
  (folder,) = (tmp_path / "killed").glob("rows-*/")
  assert sorted(path.name for path in folder.iterdir()) == ["00000.npz", "00001.npz"]
  (folder / f".00002.npz.{socket.gethostname()}.0.tmp").write_bytes(b"half a file")  # killed while it was written
  rest = Counting()
  store.open_index(corpus, rest, config, tmp_path / "killed", seed=0)
  assert rest.embedded == 300 - 128 + (300 if leaves else 0)
  assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_kill_while_the_index_is_written_leaves_none(tmp_path, monkeypatch):
  corpus, embedder = FakeCorpus(300), HashedNgrams(64)

  def killed(path, value):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr("policylong.retrieval.scann_index.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
      store.open_index(corpus, embedder, CONFIG, tmp_path, seed=0)
  assert [path.suffix for path in tmp_path.glob("index-*")] == [".building"]
  store.open_index(corpus, embedder, CONFIG, tmp_path, seed=0)
  assert [path.suffix for path in tmp_path.glob("index-*")] == [""]


def test_damaged_vectors_are_embedded_again_and_said_so(tmp_path, caplog):
  corpus, exact = FakeCorpus(200), dataclasses.replace(CONFIG, index="exact")
  store.open_index(corpus, Counting(), exact, tmp_path, seed=0)
  stored = files(tmp_path)
  first, second = sorted(tmp_path.glob("rows-*/*.npz"))[:2]
  whole = second.read_bytes()
  other = tmp_path / "other.npz"
  np.savez(other, rows=np.zeros((64, 63), np.float16), of=np.array(f"{second.parent.name}/1"))
  for damage, reason in ((whole[:1000], "cannot be read"), (b"", "cannot be read"),
                         (whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:], "CRC"),
                         (first.read_bytes(), "rows-.*/0, wanted"),
                         (other.read_bytes(), r"float16\[64, 63\], wanted float16\[64, 64\]")):
    second.write_bytes(damage)
    caplog.clear()
    again = Counting()
    store.open_index(corpus, again, exact, tmp_path, seed=0)
    assert again.embedded == 64 and second.read_bytes() == whole
    assert re.search(f"00001.npz is damaged .*{reason}.*its 64 chunks are embedded again", caplog.text), caplog.text
  other.unlink()
  assert files(tmp_path) == stored


def test_no_changed_byte_of_a_file_of_vectors_is_believed(tmp_path):
  corpus, embedder = FakeCorpus(3), HashedNgrams(16)
  stored = rows.StoredRows(corpus, embedder, tmp_path)
  stored.embed(range(1))
  wanted = stored.read(range(3))
  (path,) = tmp_path.glob("rows-*/*.npz")
  whole = path.read_bytes()
  numbers = range(first := whole.index(wanted.tobytes()), first + wanted.nbytes)
  for at in range(len(whole)):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1:])
    try:
      found = rows._load(path, f"{path.parent.name}/0", (3, 16))
    except Damaged:
      continue
    assert at not in numbers
    np.testing.assert_array_equal(found, wanted)  # a date, or what system the zip is of


@pytest.mark.parametrize("leaves", [None, 24])
def test_a_corpus_too_large_for_memory_is_indexed_in_pieces_and_searched_as_one(tmp_path, leaves):
  corpus, embedder = FakeCorpus(300), HashedNgrams(64)
  index = store.open_index(corpus, embedder, in_pieces_of(128, leaves=leaves), tmp_path, seed=0)
  assert isinstance(index, PiecedIndex)
  # Five files of vectors, at most two in a piece; leaves by the rows they are for.
  assert [piece.num_rows for piece in index.pieces] == [64, 128, 108] and index.num_rows == 300
  assert [piece.leaves for piece in index.pieces] == ([0, 0, 0] if leaves is None else [5, 10, 9])
  queries = embedder.embed_queries([corpus.chunk_text(row) for row in range(0, 300, 7)])
  exact = store.open_index(corpus, embedder, dataclasses.replace(CONFIG, index="exact"), tmp_path, seed=0)
  found, scores = index.search(queries, 10)
  wanted, wanted_scores = exact.search(queries, 10)
  if leaves is None:
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-6)  # float32 sums of 64 terms
  else:
    assert recall_of(found, wanted) >= 0.9  # what each piece was tuned to
  # From disk, and by a process that starts anew: the same bits.
  for one, other in zip(store.open_index(corpus, embedder, in_pieces_of(128, leaves=leaves), tmp_path, 0).search(
      queries, 10), (found, scores)):
    np.testing.assert_array_equal(one, other)


def test_a_kill_loses_one_piece_at_most(tmp_path, monkeypatch):
  corpus, embedder, config = FakeCorpus(300), HashedNgrams(64), in_pieces_of(128, leaves=24)
  store.open_index(corpus, embedder, config, tmp_path / "whole", seed=0)
  built, build = [], ScannIndex.build

  def killed_at_the_second(found, **options):
    if len(built) == 1:
      built.append(0)
      raise KeyboardInterrupt
    built.append(len(found))
    return build(found, **options)

  monkeypatch.setattr(ScannIndex, "build", killed_at_the_second)
  with pytest.raises(KeyboardInterrupt):
    store.open_index(corpus, embedder, config, tmp_path / "killed", seed=0)
  store.open_index(corpus, embedder, config, tmp_path / "killed", seed=0)
  assert built == [64, 0, 128, 108]
  assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_damaged_piece_is_built_again_and_said_so(tmp_path, caplog):
  corpus, config = FakeCorpus(300), in_pieces_of(128, leaves=24)
  embedder = HashedNgrams(64)
  queries = embedder.embed_queries([corpus.chunk_text(row) for row in range(0, 300, 9)])
  wanted = store.open_index(corpus, embedder, config, tmp_path, seed=0).search(queries, 5)
  stored = files(tmp_path)
  pieces = sorted(tmp_path.glob("index-*/"), key=lambda path: json.loads((path / "MANIFEST.json").read_text())["rows"])

  def swap():
    pieces[0].rename(tmp_path / "aside")
    shutil.copytree(pieces[1], pieces[0])
    shutil.rmtree(tmp_path / "aside")

  def flip(name, at):
    data = bytearray((pieces[1] / name).read_bytes())
    data[at] ^= 4
    (pieces[1] / name).write_bytes(data)

  for damage, reason in ((swap, "it is the index of"), (lambda: flip("bfloat16_dataset.npy", -3), "its bytes are not"),
                         (lambda: flip("curve.json", 30), "its bytes are not"),
                         (lambda: flip("MANIFEST.json", 0), "JSON"),
                         (lambda: (pieces[1] / "MANIFEST.json").write_text("[]"), ""),
                         (lambda: (pieces[1] / "MANIFEST.json").unlink(), "it has no MANIFEST.json"),
                         (lambda: (pieces[1] / "more").write_text(""), "its MANIFEST.json lists")):
    damage()
    caplog.clear()
    found = store.open_index(corpus, embedder, config, tmp_path, seed=0).search(queries, 5)
    assert re.search(f"is damaged .*{reason}.* of the index are built again", caplog.text), caplog.text
    for one, other in zip(found, wanted):
      np.testing.assert_array_equal(one, other)
    assert files(tmp_path) == stored


def test_memory_that_is_not_there_is_refused_with_both_numbers_before_anything_is_embedded(tmp_path, monkeypatch):
  corpus, embedder = FakeCorpus(300), Counting()
  monkeypatch.setattr(memory, "available_bytes", lambda: 1e4)
  for config in (CONFIG, dataclasses.replace(CONFIG, index="exact")):
    with pytest.raises(UserError, match=r"300 chunks, 64 numbers each, takes 0.00 GB .* 0.00 GB are free: if"):
      store.open_index(corpus, embedder, config, tmp_path, seed=0)
  assert embedder.embedded == 0


def test_an_empty_corpus_and_too_many_leaves_are_refused_before_anything_is_embedded(tmp_path):
  embedder = Counting()
  with pytest.raises(UserError, match="0 chunks"):
    store.open_index(FakeCorpus(0), embedder, CONFIG, tmp_path, seed=0)
  with pytest.raises(UserError, match=r"retrieval.leaves is 301, more than the 300"):
    store.open_index(FakeCorpus(300), embedder, dataclasses.replace(CONFIG, leaves=301), tmp_path, seed=0)
  assert embedder.embedded == 0
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="nothing can be written"):
    store.open_index(FakeCorpus(3), embedder, CONFIG, tmp_path / "file", seed=0)


def test_tuning_queries_are_windows_of_the_corpus_and_follow_the_seed():
  corpus = FakeCorpus(300)
  queries = store.sample_queries(corpus, 100, seed=5)
  texts = [corpus.chunk_text(row) for row in range(300)]
  assert len(queries) == 100 and all(len(query.split()) <= 30 for query in queries)
  assert all(any(query in text for text in texts) for query in queries)
  assert queries == store.sample_queries(corpus, 100, seed=5) != store.sample_queries(corpus, 100, seed=6)


def test_a_config_names_the_embedder(material):
  minilm = make_embedder(dataclasses.replace(CONFIG, embedder="minilm", embedder_path=str(material / "minilm")))
  assert (make_embedder(CONFIG).dim, minilm.dim) == (512, 384)


def test_a_config_says_how_long_a_vector_is_without_weights(material):
  assert embedder_dim(CONFIG) == 512
  assert embedder_dim(dataclasses.replace(CONFIG, embedder="minilm", embedder_path=str(material / "minilm"))) == 384
  fewer = dataclasses.replace(CONFIG, dim=96)
  assert embedder_dim(fewer) == 96 and make_embedder(fewer).embed_documents(["a text"]).shape == (1, 96)
  with pytest.raises(UserError, match=r"retrieval.dim is 513, and the vectors of retrieval.embedder 'hashed' have 512"):
    make_embedder(dataclasses.replace(CONFIG, dim=513))
  with pytest.raises(config_lib.ConfigError, match=r"retrieval.dim is 128, but retrieval.embedder 'minilm' was not"):
    dataclasses.replace(CONFIG, embedder="minilm", dim=128)
