"""What synthesis costs the host: seconds for 1,000 sequences of 131,072 tokens, and seconds of a core.

  python -m benchmarks.host_synthesis [--sequences=16]

Three roots a sequence with positives and one negative for each, in chunks of the paper's size, all of them different:
tokenised, put together, and written by the real code. The chunks are pieces of encyclopaedia articles and speeches, and
each is read once, as in a corpus that is large beside a round.

Hardware: 2 CPU cores; half a minute. `taskset -c 0` in front shows what one core does.
"""

import argparse
import itertools
import json
import os
import pathlib
import tempfile
import time

import numpy as np

from policylong.corpus.texts import ChunkTokens
from policylong.model.tokenizer import load_tokenizer
from policylong.paper import config
from policylong.records import Negative, Positive, Root
from policylong.synthesis.method import Screened
from policylong.synthesis.policylong import synthesize
from policylong.synthesis.storage import write_sequences

MATERIAL = pathlib.Path("material")
LENGTH, ROOT = 131_072, 4096
POSITIVES = 40  # of a root


class Texts:
  """Pieces of the material as a corpus whose chunk ids are "doc<n>#0-1"."""

  def __init__(self, chars: int):
    texts = itertools.chain(
        (json.loads(line)["text"] for line in (MATERIAL / "wiki.jsonl").read_text("utf-8").splitlines()),
        (path.read_text("utf-8", "replace") for path in sorted((MATERIAL / "sotu").glob("*.txt"))))
    text = "\n\n".join(texts)
    self._chunks = [text[i:i + chars] for i in range(0, len(text) - chars, chars)]

  def __len__(self) -> int:
    return len(self._chunks)

  def chunk_text(self, row: int) -> str:
    """Its text."""
    return self._chunks[row]

  def chunk_row(self, chunk_id: str) -> int:
    """Its number."""
    return int(chunk_id.removeprefix("doc").partition("#")[0])


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sequences", type=int, default=16)
  wanted = parser.parse_args().sequences
  texts = Texts(config().corpus.chunk_chars)
  chunk_tokens = ChunkTokens(texts, load_tokenizer(str(MATERIAL / "smollm2.gguf")), "\n\n", LENGTH)
  rows = iter(range(len(texts)))
  roots, positives, negatives = [], [], []
  root = np.zeros(ROOT, np.int32)
  while (first := next(rows, None)) is not None and first + 2 * POSITIVES < len(texts):
    doc_id = f"root{len(roots)}"
    roots.append(Root(doc_id, 0, 1, root, ()))
    for _ in range(POSITIVES):
      positive, negative = f"doc{next(rows)}#0-1", f"doc{next(rows)}#0-1"
      positives.append(Positive(doc_id, positive, 9, 0.5))
      negatives.append(Negative(doc_id, negative, positive, 0.5, 0))
  screened = Screened(roots, positives, negatives, chunk_tokens,
                      lambda doc_id, n: [f"doc{row}#0-1" for row in range(n)], negatives_per_positive=1)
  made = synthesize(screened, separator=chunk_tokens.separator, length=LENGTH, seed=0, round_index=1, policy_step=0)
  with tempfile.TemporaryDirectory() as folder:
    began, worked = time.perf_counter(), time.process_time()
    count = write_sequences(itertools.islice(made, wanted), pathlib.Path(folder))
    spent, worked = time.perf_counter() - began, time.process_time() - worked
  print(f"{1000 * spent / count:.0f} seconds, {1000 * worked / count:.0f} of a core, for 1,000 sequences of {LENGTH:,} "
        f"tokens ({count} sequences, {len(os.sched_getaffinity(0))} cores)")


if __name__ == "__main__":
  main()
