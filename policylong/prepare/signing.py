"""Stage `sign`: of each shard's documents what duplicates and contamination are found by, in fixed sizes a document."""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from policylong.prepare import minhash, words
from policylong.prepare.benchmarks import Table
from policylong.prepare.layout import Work
from policylong.prepare.plan import Plan, shards_of

# Characters of documents that are hashed together.
_BATCH = 1 << 18


def save_table(plan: Plan, table: Table) -> None:
  """Writes the benchmarks' n-grams, for all workers."""
  plan.work.save("benchmarks", "hashes", table.hashes)
  plan.work.save("benchmarks", "owners", table.owners)
  plan.work.save("benchmarks", "sizes", table.sizes)


def sign(plan: Plan, number: int) -> dict[str, Any]:
  """Writes of a shard of D documents, beside each other:

  text      uint64[2, D], 128 bits of the text
  bands     uint64[BANDS, D]
  worded    bool[D], whether there is any word
  benchmarks  uint64[D], a bit for each benchmark that the document holds something of
  """
  shard = shards_of(plan)[number]
  table = _table(plan.directory)
  texts, bands, worded, held = [], [], [], []
  for batch in _batches(plan, shard.name):
    texts += [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in batch]
    hashed = words.hash_words(batch)
    shingles = words.shingles(hashed, minhash.SHINGLE)
    if plan.near_duplicates:
      bands.append(minhash.bands(minhash.signatures(shingles)))
    worded.append(np.diff(hashed.first) > 0)
    held.append(table.contaminated(hashed))
  plan.work.save("sign", f"{shard.name}-text", np.frombuffer(b"".join(texts), np.uint64).reshape(-1, 2).T)
  if plan.near_duplicates:
    plan.work.save("sign", f"{shard.name}-bands", np.concatenate(bands, axis=1))
  plan.work.save("sign", f"{shard.name}-worded", np.concatenate(worded))
  plan.work.save("sign", f"{shard.name}-benchmarks", np.concatenate(held))
  return {"documents": shard.documents}


def _batches(plan: Plan, name: str) -> Iterator[list[str]]:
  reader = plan.work.table("read", name)
  batch: list[str] = []
  size = 0
  for i in range(reader.num_record_batches):
    for text in reader.get_batch(i).column("text").to_pylist():
      batch.append(text)
      size += len(text)
      if size >= _BATCH:
        yield batch
        batch, size = [], 0
  if batch:
    yield batch


@functools.lru_cache(maxsize=1)
def _table(directory: str) -> Table:
  return Table(*(Work(directory).load("benchmarks", name) for name in ("hashes", "owners", "sizes")))
