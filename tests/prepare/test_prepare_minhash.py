import numpy as np
import pytest

from policylong.prepare import minhash
from policylong.prepare.words import Hashes, hash_words, shingles
from tests.prepare import brute_force
from tests.prepare.conftest import changed, make_texts


def sets_with(similarity, count, seed, size=300):
  """Pairs of random sets whose Jaccard similarity is nearly so much, as Hashes of two documents each."""
  rng = np.random.default_rng(seed)
  common = round(2 * size * similarity / (1 + similarity))
  for _ in range(count):
    numbers = rng.integers(0, 1 << 63, 2 * size - common, dtype=np.uint64)
    both = np.concatenate([numbers[:size], numbers[size - common:]])
    yield Hashes(both, np.array([0, size, 2 * size])), common / (2 * size - common)


@pytest.mark.parametrize("similarity", [0.1, 0.5, 0.7, 0.9])
def test_equal_hashes_have_the_share_of_the_jaccard_similarity(similarity):
  pairs = list(sets_with(similarity, 400, seed=1))
  shares = [np.mean(found[:, 0] == found[:, 1]) for found in (minhash.signatures(words) for words, _ in pairs)]
  truth = pairs[0][1]
  hashes = minhash.BANDS * minhash.ROWS
  # Four standard errors of a mean of 400; a share of independent hashes is binomial, and these nearly are.
  assert abs(np.mean(shares) - truth) < 4 * np.sqrt(truth * (1 - truth) / hashes / len(pairs))
  assert np.std(shares) < 1.2 * np.sqrt(truth * (1 - truth) / hashes)


@pytest.mark.parametrize(("similarity", "least", "most"), [(0.3, 0.16, 0.27), (0.5, 0.81, 0.90), (0.6, 0.965, 1.0)])
def test_bands_meet_as_often_as_the_formula_says(similarity, least, most):
  met = [(found[:, 0] == found[:, 1]).any() for found in
         (minhash.bands(minhash.signatures(words)) for words, _ in sets_with(similarity, 600, seed=2))]
  # 1 - (1 - s^4)^30 is 0.217, 0.856, 0.984; the bounds are three standard errors of 600 around them
  assert least <= np.mean(met) <= most


def test_jaccard_of_texts_equals_that_of_sets_of_words():
  rng = np.random.default_rng(3)
  for count, text in enumerate(make_texts(20, seed=4)):
    other = changed(text, count, rng)
    found = shingles(hash_words([text, other]), 5)
    one, two = (np.unique(found.hashes[first:last]) for first, last in zip(found.first, found.first[1:]))
    assert minhash.jaccard(one, two) == brute_force.jaccard(brute_force.runs(text, 5), brute_force.runs(other, 5))


def test_a_document_without_words_has_a_signature_of_nothing():
  words = shingles(hash_words(["...", "a b", ""]), 5)
  found = minhash.signatures(words)
  assert (found[:, [0, 2]] == np.iinfo(np.uint32).max).all() and (found[:, 1] < np.iinfo(np.uint32).max).any()
  assert minhash.bands(found).shape == (minhash.BANDS, 3)
