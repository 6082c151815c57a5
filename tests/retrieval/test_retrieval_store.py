"""The stored index: built once, gone on with after a kill, refused when damaged."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from policylong import config as config_lib
from policylong.errors import UserError
from policylong.retrieval import store
from policylong.retrieval.embedders import make_embedder
from policylong.retrieval.exact import ExactIndex
from policylong.retrieval.hashed import HashedNgrams
from policylong.retrieval.scann_index import ScannIndex

CONFIG = config_lib.Retrieval(
    embedder="hashed", embedder_path="", embedder_sha256="", embedder_max_tokens=128, embedder_batch=4,
    query_instruction="", index="scann", leaves=None, target_recall=0.9)


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
  monkeypatch.setattr(store, "SHARD_ROWS", 64)


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
  rows = [row for row in range(300) if len(corpus.chunk_text(row)) > 40]
  found, scores = index.search(embedder.embed_queries([corpus.chunk_text(row) for row in rows]), 1)
  assert (found[:, 0] == rows).mean() >= 0.9  # what the tree was tuned to
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
  (rows,) = (tmp_path / "killed").glob("rows-*/")
  assert sorted(path.name for path in rows.iterdir()) == ["00000.npy", "00001.npy"]
  (rows / ".00002.npy.tmp").write_bytes(b"half a file")  # killed while it was written
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


def test_damaged_files_are_refused_by_name(tmp_path):
  corpus, embedder = FakeCorpus(200), HashedNgrams(64)
  exact = dataclasses.replace(CONFIG, index="exact")
  store.open_index(corpus, embedder, exact, tmp_path, seed=0)
  (shard,) = tmp_path.glob("rows-*/00001.npy")
  whole = shard.read_bytes()
  shard.write_bytes(whole[:-4] + b"\0\0\0\1")
  with pytest.raises(UserError, match=r"00001.npy has sha256 .*, wanted"):
    store.open_index(corpus, embedder, exact, tmp_path, seed=0)
  shard.write_bytes(whole[:1000])
  with pytest.raises(UserError, match=r"00001.npy cannot be read"):
    store.open_index(corpus, embedder, exact, tmp_path, seed=0)
  np.save(shard, np.zeros((64, 63), np.float32))
  with pytest.raises(UserError, match=r"float32\[64, 63\], wanted float32\[64, 64\]"):
    store.open_index(corpus, embedder, exact, tmp_path, seed=0)


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


def test_the_manifest_lists_every_file_of_rows(tmp_path):
  store.open_index(FakeCorpus(200), HashedNgrams(64), CONFIG, tmp_path, seed=0)
  (manifest,) = tmp_path.glob("rows-*/MANIFEST.json")
  names = {path.name for path in manifest.parent.iterdir()} - {"MANIFEST.json"}
  assert set(json.loads(manifest.read_text())["files"]) == names == {f"{i:05d}.npy" for i in range(4)}
