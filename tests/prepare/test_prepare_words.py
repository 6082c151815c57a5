import itertools

import numpy as np

from policylong.prepare.words import hash_words, mixed, ngrams, shingles, split
from tests.prepare import brute_force

ALPHABET = [*"aAbZ9 _-.,\n\t'", "é", "É", "e\u0301", "ß", "ﬁ", "中", "文", "の", "ก", "😀", "\u00a0", "µ", "İ"]


def random_texts(count, seed=0):
  rng = np.random.default_rng(seed)
  return ["".join(rng.choice(ALPHABET, rng.integers(0, 40))) for _ in range(count)]


def test_equal_words_have_equal_hashes_and_others_do_not():
  texts = [*random_texts(500), "", "...", "x" * 5000, "x" * 5001]
  hashed = hash_words(texts)
  seen = {}
  for text, first, last in zip(texts, hashed.first, hashed.first[1:]):
    expected = split(text)
    assert last - first == len(expected), text
    for word, value in zip(expected, hashed.hashes[first:last].tolist()):
      assert seen.setdefault(word, value) == value
  assert len(set(seen.values())) == len(seen) > 300


def test_words_of_ascii_are_runs_of_letters_and_digits():
  texts = ["The CAT, the-cat's 2nd_mat\n\n(2)", " ", *("".join(t) for t in itertools.product("aB_ 1.", repeat=4))]
  assert [split(text) for text in texts] == [brute_force.words(text) for text in texts]
  hashed = hash_words(texts)
  assert np.diff(hashed.first).tolist() == [len(brute_force.words(text)) for text in texts]


def test_case_accents_width_and_punctuation_do_not_count_and_unspaced_scripts_are_words_of_a_letter():
  for one, other in (("Straße, ÉCOLE!", "strasse e\u0301cole"), ("ＡＢＣ　１２", "abc 12"), ("don't", "DON T")):
    assert hash_words([one]).hashes.tolist() == hash_words([other]).hashes.tolist()
  assert split("大きいcat。ไทย") == ["大", "き", "い", "cat", *"ไทย"]


def test_hashes_are_the_same_on_every_machine():
  # splitmix64's published first outputs of seed 0 are `mixed` of its state, which starts at the golden ratio
  assert mixed(np.array([0x9E3779B97F4A7C15], np.uint64))[0] == 0xE220A8397B1DCDAF
  base, total = 0x9E3779B97F4A7C15, 0
  for i, byte in enumerate(b"cat"):
    total = (total + byte * pow(base, i + 1, 1 << 64)) % (1 << 64)
  assert hash_words(["a Cat"]).hashes[1] == mixed(np.array([total], np.uint64))[0]


def test_shingles_are_sets_of_runs_of_words():
  rng = np.random.default_rng(1)
  texts = [" ".join(rng.choice(["a", "b", "c"], rng.integers(0, 12))) for _ in range(300)]
  found = shingles(hash_words(texts), 5)
  of_run = {}
  for text, first, last in zip(texts, found.first, found.first[1:]):
    expected = brute_force.runs(text, 5)
    assert len(set(found.hashes[first:last].tolist())) == len(expected)
    for run in expected:
      of_run.setdefault(run, set()).update(found.hashes[first:last].tolist())
  sets = [set(found.hashes[first:last].tolist()) for first, last in zip(found.first, found.first[1:])]
  for (a, one), (b, other) in itertools.combinations(zip(sets, texts), 2):
    assert len(a & b) == len(brute_force.runs(one, 5) & brute_force.runs(other, 5))


def test_ngrams_never_cross_documents():
  texts = ["a b c", "", "d e", "a b c d", "b c"]
  hashed = hash_words(texts)
  (_, where2, two), (_, where3, three) = ngrams(hashed, [2, 3])
  assert where2.tolist() == [0, 1, 3, 5, 6, 7, 9] and where3.tolist() == [0, 5, 6]
  assert two[0] == two[3] and two[1] == two[4] == two[6] and three[0] == three[1] and len(set(two.tolist())) == 4
