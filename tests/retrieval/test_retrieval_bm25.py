"""BM25 is the sum that its formula says, over the words of the query."""

import collections
import math

import numpy as np

from policylong.retrieval.bm25 import Bm25


def by_the_letter(texts, query):
  """float64 score of each text: the formula, word by word."""
  words = [text.lower().split() for text in texts]
  mean = sum(map(len, words)) / len(words)
  scores = np.zeros(len(texts))
  for word, times in collections.Counter(query.lower().split()).items():
    containing = sum(word in own for own in words)
    rarity = math.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
    for i, own in enumerate(words):
      count = own.count(word)
      scores[i] += times * rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(own) / mean))
  return scores


def test_scores_and_order_are_those_of_the_formula():
  rng = np.random.default_rng(0)
  vocabulary = [f"w{i}" for i in range(50)]
  texts = [" ".join(rng.choice(vocabulary, rng.integers(1, 40))) for _ in range(200)]
  queries = [" ".join(rng.choice(vocabulary, 6)) + " unknown" for _ in range(70)]
  rows, scores = Bm25(texts).search(queries, 10)
  for query, row, score in zip(queries, rows, scores):
    wanted = by_the_letter(texts, query)
    np.testing.assert_allclose(score, np.sort(wanted)[::-1][:10], rtol=1e-5)  # scores come as float32
    np.testing.assert_allclose(wanted[row], score, rtol=1e-5)


def test_a_text_without_a_word_of_the_query_is_no_hit_and_case_does_not_matter():
  rows, scores = Bm25(["Red fox", "blue sea", "a red, red rose"]).search(["RED", "green", ""], 3)
  assert rows.tolist() == [[2, 0, -1], [-1] * 3, [-1] * 3] and np.isneginf(scores[1]).all()
  assert Bm25(["x", "y"]).search([], 2)[0].shape == (0, 2)
