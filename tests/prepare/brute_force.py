"""Duplicates and n-grams as their definitions read, over all pairs, without hashes, numpy or the package."""

import itertools
import re


def words(text):
  """For texts of ASCII, Chinese ideographs and Thai consonants with a vowel sign or none."""
  return re.findall("[a-z0-9]+|[\u4e00-\u9fff]|[\u0e01-\u0e2e][\u0e34-\u0e39]?", text.lower())


def sixths(found):
  """How many words these are, of which an ideograph counts a half and a Thai letter a third, in sixths of a word."""
  return sum(6 if word.isascii() else 3 if word > "\u4e00" else 2 for word in found)


def runs(text, length):
  """The set of the shortest runs from each word on that count so much; of a shorter text, all its words are one."""
  found = words(text)
  if sixths(found) < 6 * length:
    return {tuple(found)} - {()}
  result = set()
  for i in range(len(found)):
    for j in range(i + length, len(found) + 1):
      if sixths(found[i:j]) >= 6 * length:
        result.add(tuple(found[i:j]))
        break
  return result


def jaccard(one, other):
  return len(one & other) / len(one | other)


def kept(texts, threshold):
  """The places of the documents that stay: no earlier equal text, the first of each cluster of near-duplicates."""
  first = {}
  alive = [i for i, text in enumerate(texts) if first.setdefault(text, i) == i]
  sets = {i: runs(texts[i], 5) for i in alive}
  cluster = {i: i for i in alive}
  for a, b in itertools.combinations(alive, 2):
    if sets[a] and sets[b] and jaccard(sets[a], sets[b]) >= threshold and cluster[a] != cluster[b]:
      low, high = sorted((cluster[a], cluster[b]))
      cluster = {i: low if c == high else c for i, c in cluster.items()}
  return [i for i in alive if cluster[i] == i]


def contaminated(text, benchmark_texts):
  found = runs(text, 13) if sixths(words(text)) >= 6 * 13 else set()
  return any(found & runs(other, 13) for other in benchmark_texts if sixths(words(other)) >= 6 * 13)
