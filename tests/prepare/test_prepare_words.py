import itertools

import numpy as np
import pytest

from policylong.prepare.words import WORD, hash_words, mixed, ngrams, shingles, split
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


def test_case_accents_width_and_punctuation_do_not_count():
  for one, other in (("Straße, ÉCOLE!", "strasse e\u0301cole"), ("ＡＢＣ　１２", "abc 12"), ("don't", "DON T"),
                     ("İstanbul'un İKİSİ", "istanbul un ikisi"), ("ΜΑΪ\u0301ΟΥ", "μα\u0390ου"), ("J\u030c", "ǰ"),
                     ("می\u200cخواهم", "میخواهم"), ("co\u00adop", "coop"), ("\u200eאב\u200f", "אב"),
                     ("क्\u200dष", "क्ष"), ("☀\ufe0f 1\ufe0f", "1"), ("辻\U000e0100", "辻"), ("ﾊﾟﾘ", "パリ")):
    assert hash_words([one]).hashes.tolist() == hash_words([other]).hashes.tolist(), one


# Words as those who write these languages count them, with the marks of their letters.
@pytest.mark.parametrize(("text", "words"), [
    ("भारत की राजधानी क्या है?", ["भारत", "की", "राजधानी", "क्या", "है"]),
    ("हिन्दी, हिन्दी", ["हिन्दी", "हिन्दी"]),
    ("தமிழ்நாட்டின் தலைநகரம்", ["தமிழ்நாட்டின்", "தலைநகரம்"]),
    ("\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd, \u05e2\u05d5\u05b9\u05dc\u05b8\u05dd!",
     ["\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", "\u05e2\u05d5\u05b9\u05dc\u05b8\u05dd"]),
    ("\u0627\u0644\u0652\u062d\u064e\u0645\u0652\u062f\u064f \u0644\u0650\u0644\u0651\u0670\u0647\u0650",
     ["\u0627\u0644\u0652\u062d\u064e\u0645\u0652\u062f\u064f", "\u0644\u0650\u0644\u0651\u0670\u0647\u0650"]),
    ("대한민국의 수도는 어디입니까?", ["대한민국의", "수도는", "어디입니까"]),
    ("Ngày mai_trời", ["ngày", "mai", "trời"]),
    ("x\u0303\u0303 \u0301a -\u0301- \u0301", ["x\u0303\u0303", "a"])])
def test_a_word_goes_on_over_the_marks_of_its_letters(text, words):
  assert split(text) == words and hash_words([text]).sizes.tolist() == [WORD] * len(words)


# Letters by hand, and how many words they count: two a word of Chinese and Japanese, three of South East Asia's.
@pytest.mark.parametrize(("text", "letters", "words"), [
    ("กรุงเทพมหานคร", ["ก", "รุ", "ง", "เ", "ท", "พ", "ม", "ห", "า", "น", "ค", "ร"], 4),
    ("น้ำ ฿๒๏", ["น\u0e49\u0e4d", "า", "๒"], 1),
    ("ကမ္ဘာ", ["က", "မ္", "ဘာ"], 1), ("ភាសាខ្មែរ", ["ភា", "សា", "ខ្", "មែ", "រ"], 5 / 3), ("ລາວ", ["ລ", "າ", "ວ"], 1),
    ("ꦲꦏ꧀ꦱꦫ", ["ꦲ", "ꦏ꧀", "ꦱ", "ꦫ"], 4 / 3),
    ("中华人民共和国国务院办公厅", [*"中华人民共和国国务院办公厅"], 6.5),
    ("人々は、か\u3099", ["人", "々", "は", "が"], 2), ("𠮷野家", [*"𠮷野家"], 1.5),
    ("大きいcat。ไทย", ["大", "き", "い", "cat", "ไ", "ท", "ย"], 3.5), ("第3章ab12", ["第", "3", "章", "ab12"], 3)])
def test_in_a_script_without_spaces_a_letter_is_a_part_of_a_word(text, letters, words):
  assert split(text) == letters
  assert hash_words([text]).sizes.sum() / WORD == pytest.approx(words, abs=1e-9)
  assert hash_words([text, "a", text]).first.tolist() == [0, len(letters), len(letters) + 1, 2 * len(letters) + 1]


def test_hashes_are_the_same_on_every_machine():
  # splitmix64's published first outputs of seed 0 are `mixed` of its state, which starts at the golden ratio
  assert mixed(np.array([0x9E3779B97F4A7C15], np.uint64))[0] == 0xE220A8397B1DCDAF
  base, total = 0x9E3779B97F4A7C15, 0
  for i, byte in enumerate(b"cat"):
    total = (total + byte * pow(base, i + 1, 1 << 64)) % (1 << 64)
  assert hash_words(["a Cat"]).hashes[1] == mixed(np.array([total], np.uint64))[0]


def test_shingles_are_sets_of_runs_of_words():
  rng = np.random.default_rng(1)
  texts = [" ".join(rng.choice(["a", "b", "c"], rng.integers(0, 12))) for _ in range(200)]
  texts += ["".join(rng.choice(["a ", "中", "文", "ก", "กุ"], rng.integers(0, 30))) for _ in range(100)]
  found = shingles(hash_words(texts), 5)
  of_run = {}
  runs = [brute_force.runs(text, 5) for text in texts]
  for expected, first, last in zip(runs, found.first, found.first[1:]):
    assert len(set(found.hashes[first:last].tolist())) == len(expected)
    for run in expected:
      of_run.setdefault(run, set()).update(found.hashes[first:last].tolist())
  sets = [set(found.hashes[first:last].tolist()) for first, last in zip(found.first, found.first[1:])]
  for (a, one), (b, other) in itertools.combinations(zip(sets, runs), 2):
    assert len(a & b) == len(one & other)


def test_ngrams_never_cross_documents():
  texts = ["a b c", "", "d e", "a b c d", "b c"]
  hashed = hash_words(texts)
  (_, where2, two), (_, where3, three) = ngrams(hashed, [2 * WORD, 3 * WORD])
  assert where2.tolist() == [0, 1, 3, 5, 6, 7, 9] and where3.tolist() == [0, 5, 6]
  assert two[0] == two[3] and two[1] == two[4] == two[6] and three[0] == three[1] and len(set(two.tolist())) == 4


def test_a_run_of_several_scripts_is_the_shortest_that_counts_so_much():
  # From each word on 4, 3, 2.5, 2, 1, ... words are left; 3, 2.5, 2, 1, ...; 0.5.
  hashed = hash_words(["ab 中文 cd กขค", "中文cdกขค", "中"])
  (_, where, two), (_, where_longer, longer) = ngrams(hashed, [2 * WORD, 2 * WORD + 3])
  assert where.tolist() == [0, 1, 2, 3, 7, 8, 9] and where_longer.tolist() == [0, 1, 2, 7, 8]
  assert two[1:4].tolist() == two[4:].tolist() and len(set(two.tolist())) == 4
  assert longer[1:3].tolist() == longer[3:].tolist() and len(set(longer.tolist())) == 3
