"""Duplicates and n-grams as their definitions read, over all pairs, without hashes, numpy or the package."""

import itertools
import re


def words(text):
  """For texts of ASCII."""
  return re.findall(r"[a-z0-9]+", text.lower())


def runs(text, length):
  """The set of all runs of so many words; of a shorter text, all its words are one."""
  found = words(text)
  return {tuple(found[i:i + length]) for i in range(max(1, len(found) - length + 1))} - {()}


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
  found = runs(text, 13) if len(words(text)) >= 13 else set()
  return any(found & runs(other, 13) for other in benchmark_texts if len(words(other)) >= 13)
