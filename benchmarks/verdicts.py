"""What the verdicts of a round take of a host: one shard of invented roots, measured, and a round of it, multiplied.

  python -m benchmarks.verdicts

The shard is that of configs/qwen3b_128k.py: 64 roots, each with 35 anchors and 32 candidates of each, all different. Of
the invented gains a few in a thousand pass epsilon. Takes half a minute and 2 GB.
"""

import time

import numpy as np
import pyarrow as pa

from configs import qwen3b_128k
from policylong.records import Candidate
from policylong.screening import judge, readings
from policylong.screening.verify import Pair, Reading
from policylong.storage import tables

ANCHORS = 35  # as in benchmarks/pods.py


def main():
  config = qwen3b_128k.get_config().screening
  shard = invented(config.roots_per_shard, config.top_k, config.control_chunks, config.root_tokens)
  table, made = timed(readings.verdicts, *shard, 0)
  data, packed = timed(tables.to_bytes, table)
  accepted = pa.array(judge.accepted(table, judge.thresholds(config, table)))
  verdicts = table.set_column(table.schema.get_field_index("accepted"), "accepted", accepted)
  kept = judge.own_or_accepted(verdicts)
  shards = -(-config.roots_per_round // config.roots_per_shard)
  print(f"a shard of {config.roots_per_shard} roots: {table.num_rows:,} verdicts in {made:.1f} s, "
        f"{table.nbytes / 1e6:.0f} MB; its file has {len(data) / 1e6:.0f} MB, written in {packed:.1f} s")
  print(f"a round of {config.roots_per_round:,} roots: {shards * table.num_rows / 1e6:.0f} million verdicts, "
        f"{shards * len(data) / 1e9:.0f} GB of files; of these {shards * kept.num_rows / 1e6:.0f} million are kept, "
        f"{shards * kept.nbytes / 1e9:.1f} GB in memory")


def invented(roots, top_k, controls, root_tokens):
  """(pairs, proposals, scores), as verification leaves them."""
  rng, pairs, proposals, scores = np.random.default_rng(0), [], [], []
  tokens = np.zeros(root_tokens, np.int32)
  for root in range(roots):
    doc_id = f"fineweb_edu/<urn:uuid:0d8a309d-25c5-405d-a08a-c11239f0d717>-{root}"
    positions = np.sort(rng.choice(root_tokens, ANCHORS, replace=False)).astype(np.int32)
    for number in range(ANCHORS * top_k + controls):
      chunk_id, owner = f"cosmopedia_v2/document-{rng.integers(10**7)}#2048-4096", number // top_k
      own = {int(positions[owner]): Candidate(doc_id, int(positions[owner]), chunk_id, "retrieved", number % top_k, 0.5)
             } if owner < ANCHORS else {}
      before = rng.uniform(2, 5, ANCHORS).astype(np.float32)
      pairs.append(Pair(doc_id, tokens, positions, tokens[:1]))
      proposals.append(((doc_id, chunk_id), own))
      nll = rng.uniform(0, 9, ANCHORS).astype(np.float32)
      scores.append(Reading(before, (before * rng.normal(0.97, 0.12, ANCHORS)).astype(np.float32), nll, nll))
  return pairs, proposals, scores


def timed(function, *arguments):
  """(what it returns, seconds)."""
  start = time.perf_counter()
  return function(*arguments), time.perf_counter() - start


if __name__ == "__main__":
  main()
