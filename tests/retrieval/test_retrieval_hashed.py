"""The embedder without weights: stable, of length one, near where words are shared."""

import subprocess
import sys

import numpy as np

from policylong.retrieval.hashed import HashedNgrams


def test_shared_words_make_texts_near():
  embed = HashedNgrams().embed_documents
  query, near, form, far = embed(["the keeper of the lighthouse", "A lighthouse keeper wrote letters.",
                                  "lighthouses and keepers", "seven barrels, salted fish"])
  assert query @ near > query @ far + 0.15
  assert query @ form > query @ far + 0.05  # no word is the same, only spellings


def test_vectors_have_length_one_even_of_texts_without_words():
  vectors = HashedNgrams(64).embed_documents(["", "   ", "!?", "word", "word " * 1000])
  assert vectors.dtype == np.float32 and vectors.shape == (5, 64)
  np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, atol=1e-6)


def test_another_process_gets_the_same_bits():
  # Python's own hash of a string would differ here
  code = ("from policylong.retrieval.hashed import HashedNgrams;"
          "print(HashedNgrams(32).embed_documents(['Ein Satz, dann noch einer.']).tobytes().hex())")
  found = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p or "." for p in sys.path)}).stdout
           for seed in ("1", "2")]
  assert found[0] == found[1] != ""
