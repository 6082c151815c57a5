"""The stages that find duplicates. Documents are rows, counted over all sources in order; what is kept is the first.

  exact        a range of text hashes: which rows have a text that an earlier row has
  candidates   a range of one band's hashes: which pairs of rows agree in it
  (groups)     on the host: rows that are linked by pairs go to one part of the next stages
  shingles     a shard: the shingles of its rows that are in any pair
  verify       a part: the exact Jaccard similarity of its pairs; what is above the threshold is linked, and of
               each linked cluster the first row is kept

Contaminated documents are out before, copies of a text before near-duplicates. What passes between the stages are
numbers, never texts. Memory: of `exact` and `candidates` RANGE documents, of `verify` the shingles of PART of them (or
of one group, if it is larger), of the host 16 bytes for each pair of each band.
"""

import itertools
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from policylong.prepare import minhash, words
from policylong.prepare.plan import Plan, Shard, by_shard, shards_of

RANGE = 4 << 20  # documents whose hashes are sorted together
PART = 1 << 16  # documents that are verified together
# In a band's bucket each row is paired with so many before it: in a bucket of up to REACH + 1 all are, in a larger one
# (a template that fills half of the web) the work stays linear.
REACH = 32


def num_ranges(plan: Plan) -> int:
  """Into how many ranges hashes are cut: a power of two."""
  documents = sum(shard.documents for shard in shards_of(plan))
  return 1 << max(0, -(-documents // RANGE) - 1).bit_length()


def exact(plan: Plan, number: int) -> dict[str, Any]:
  """int64[2, n]: rows whose text an earlier row has, and that row; of texts whose hash lies in range `number`."""
  first, second, rows = [], [], []
  for shard in shards_of(plan):
    text = plan.work.load("sign", f"{shard.name}-text")
    mine = np.flatnonzero(_in_range(plan, text[0], number)
                          & (plan.work.load("sign", f"{shard.name}-benchmarks") == 0))
    first.append(text[0][mine])
    second.append(text[1][mine])
    rows.append(mine + shard.first)
  a, b, row = map(np.concatenate, (first, second, rows))
  order = np.lexsort((row, b, a))
  a, b, row = a[order], b[order], row[order]
  new = np.ones(len(row), bool)
  new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
  kept = row[new][np.cumsum(new) - 1] if len(row) else row
  _save_removed(plan, "exact", number, row[~new], kept[~new])
  return {"removed": int((~new).sum())}


def candidates(plan: Plan, number: int) -> dict[str, Any]:
  """int64[2, n]: pairs of rows, the smaller first, that agree in a band; number is band * ranges + range."""
  band, part = divmod(number, num_ranges(plan))
  copies = removed(plan, "exact")[0]
  keys, rows = [], []
  for shard, mine in zip(shards_of(plan), by_shard(shards_of(plan), copies)):
    key = np.array(plan.work.load("sign", f"{shard.name}-bands")[band])
    alive = (_in_range(plan, key, part) & plan.work.load("sign", f"{shard.name}-worded")
             & (plan.work.load("sign", f"{shard.name}-benchmarks") == 0))
    alive[copies[mine] - shard.first] = False
    chosen = np.flatnonzero(alive)
    keys.append(key[chosen])
    rows.append(chosen + shard.first)
  key, row = np.concatenate(keys), np.concatenate(rows)
  order = np.argsort(key, kind="stable")
  key, row = key[order], row[order]
  pairs = [np.zeros((2, 0), np.int64)]
  for reach in range(1, REACH + 1):
    same = np.flatnonzero(key[reach:] == key[:-reach])
    if not len(same):
      break
    pairs.append(np.stack([row[same], row[same + reach]]))
  found = np.concatenate(pairs, axis=1)
  plan.work.save("candidates", f"{number:06d}", found)
  return {"pairs": found.shape[1]}


def groups(plan: Plan, count: int) -> int:
  """Cuts the pairs of all `count` units into parts that share no row; returns how many parts. On the host.

  Writes int64[2, n] pairs of each part, and of each shard int64[2, n]: rows in any pair and their part, by part.
  """
  pairs = np.concatenate([plan.work.load("candidates", f"{number:06d}") for number in range(count)], axis=1)
  order = np.lexsort((pairs[1], pairs[0]))
  pairs = pairs[:, order]
  new = np.ones(pairs.shape[1], bool)
  new[1:] = (np.diff(pairs) != 0).any(0)
  pairs = pairs[:, new]
  rows, group = _connected(pairs)
  # Groups count in the order of their first row, so that a part is made of neighbours.
  part_of_group = (np.cumsum(np.bincount(group)) - 1) // PART if len(group) else group
  part = part_of_group[group] if len(group) else group
  part = np.unique(part, return_inverse=True)[1]
  parts = int(part.max()) + 1 if len(part) else 0
  part_of_pair = part[np.searchsorted(rows, pairs[0])]
  order = np.argsort(part_of_pair, kind="stable")
  ends = np.searchsorted(part_of_pair[order], np.arange(parts + 1))
  for number, (first, last) in enumerate(itertools.pairwise(ends)):
    plan.work.save("groups", f"pairs-{number:06d}", pairs[:, order[first:last]])
  for shard, mine in zip(shards_of(plan), by_shard(shards_of(plan), rows)):
    order = np.argsort(part[mine], kind="stable")
    plan.work.save("groups", f"rows-{shard.name}", np.stack([rows[mine][order], part[mine][order]]))
  return parts


def shingles(plan: Plan, number: int) -> dict[str, Any]:
  """The sets of shingles of a shard's rows that are in any pair, in the order of groups' rows.

  hashes uint64[N], sorted within a row; first int64[rows + 1].
  """
  shard = shards_of(plan)[number]
  rows, _ = plan.work.load("groups", f"rows-{shard.name}")
  sets = _sets(_texts(plan, shard, rows))
  plan.work.save("shingles", f"{shard.name}-hashes", np.concatenate([np.zeros(0, np.uint64), *sets]))
  plan.work.save("shingles", f"{shard.name}-first", np.cumsum([0, *map(len, sets)]))
  return {"documents": len(rows)}


def verify(plan: Plan, number: int) -> dict[str, Any]:
  """int64[2, n]: rows that an earlier row of their cluster stands for, and that row."""
  sets: dict[int, np.ndarray] = {}
  for shard in shards_of(plan):
    rows, part = plan.work.load("groups", f"rows-{shard.name}")
    first = plan.work.load("shingles", f"{shard.name}-first")
    hashes = plan.work.load("shingles", f"{shard.name}-hashes")
    for i in range(*np.searchsorted(part, [number, number + 1])):
      sets[int(rows[i])] = hashes[first[i]:first[i + 1]]
  pairs = plan.work.load("groups", f"pairs-{number:06d}")
  near = [minhash.jaccard(sets[a], sets[b]) >= plan.near_duplicates for a, b in pairs.T.tolist()]
  pairs = pairs[:, np.array(near, bool)]
  rows, cluster = _connected(pairs)
  kept = rows[np.unique(cluster, return_index=True)[1]][cluster] if len(rows) else rows
  _save_removed(plan, "verify", number, rows[rows != kept], kept[rows != kept])
  return {"pairs": len(near), "near": int(sum(near)), "removed": int((rows != kept).sum())}


def removed(plan: Plan, stage: str) -> np.ndarray:
  """int64[2, n]: the rows that all units of a stage remove, in order, and the row that is kept for each."""
  names = sorted(plan.work.finished(stage))
  found = np.concatenate([np.zeros((2, 0), np.int64), *(plan.work.load(stage, name) for name in names)], axis=1)
  return found[:, np.argsort(found[0], kind="stable")]


def _save_removed(plan, stage, number, rows, kept):
  plan.work.save(stage, f"{number:06d}", np.stack([rows, kept]).astype(np.int64))


def _in_range(plan: Plan, hashes: np.ndarray, number: int) -> np.ndarray:
  ranges = num_ranges(plan)
  if ranges == 1:
    return np.ones(len(hashes), bool)
  return (hashes >> np.uint64(64 - (ranges - 1).bit_length())) == np.uint64(number)


def _connected(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(the rows in any pair, sorted; the component of each, counted in the order of their first rows)."""
  rows, places = np.unique(pairs, return_inverse=True)
  if not len(rows):
    return rows, rows
  places = places.reshape(pairs.shape)
  links = coo_array((np.ones(pairs.shape[1], np.uint8), (places[0], places[1])), shape=(len(rows), len(rows)))
  _, label = connected_components(links, directed=False)
  _, first, of = np.unique(label, return_index=True, return_inverse=True)
  rank = np.empty(len(first), np.int64)
  rank[np.argsort(first)] = np.arange(len(first))
  return rows, rank[of]


def _texts(plan: Plan, shard: Shard, rows: np.ndarray) -> list[str]:
  """The texts of rows, in any order."""
  from policylong.prepare.reading import BATCH_ROWS
  reader = plan.work.table("read", shard.name)
  wanted: dict[int, str] = {}
  for number in np.unique((rows - shard.first) // BATCH_ROWS).tolist():
    column = reader.get_batch(number).column("text")
    first = shard.first + number * BATCH_ROWS
    for row in rows[(rows >= first) & (rows < first + BATCH_ROWS)].tolist():
      wanted[row] = column[row - first].as_py()
  return [wanted[row] for row in rows.tolist()]


def _sets(texts: list[str]) -> list[np.ndarray]:
  found = []
  for start in range(0, len(texts), 256):
    part = words.shingles(words.hash_words(texts[start:start + 256]), minhash.SHINGLE)
    found += [np.unique(part.hashes[first:last]) for first, last in zip(part.first, part.first[1:])]
  return found
