"""What synthesis costs the host: seconds for 1,000 sequences of 131,072 tokens, and seconds of a core.

  python -m benchmarks.host_synthesis [--sequences=16] [--processes=1]

Three roots a sequence with positives and one negative for each, in chunks of the paper's size, all of them different:
tokenised, put together, and written by the real code. The chunks are pieces of encyclopaedia articles and speeches, and
each is read once, as in a corpus that is large beside a round.

Each process has one core. Hardware: 2 CPU cores; half a minute.
"""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from etils import epath

from policylong.corpus.texts import ChunkTokens
from policylong.devices import hosts
from policylong.model.tokenizer import load_tokenizer
from policylong.paper import config
from policylong.records import Negative, Positive, Root
from policylong.storage.workdir import Round
from policylong.synthesis import policylong, together
from policylong.synthesis.method import Inputs, Screened
from tests.devices.test_hosts import free_address

MATERIAL = pathlib.Path("material")
LENGTH, ROOT = 131_072, 4096
POSITIVES = 40  # of a root
# Roots that are dealt out together: fewer than in a run, which has many more.
GROUP_ROOTS = 12


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


class Library:
  """What the method asks for besides what was found."""

  def __init__(self, separator: np.ndarray):
    self.separator = separator


def made_up(sequences: int) -> Screened:
  """What a policy may have said of roots that fill so many sequences, and a few more."""
  texts = Texts(config().corpus.chunk_chars)
  chunk_tokens = ChunkTokens(texts, load_tokenizer(str(MATERIAL / "smollm2.gguf")), "\n\n", LENGTH)
  rows = iter(range(len(texts)))
  roots, positives, negatives = [], [], []
  for _ in range(min(3 * sequences + 3, len(texts) // (2 * POSITIVES))):
    doc_id = f"root{len(roots)}"
    roots.append(Root(doc_id, 0, 1, np.zeros(ROOT, np.int32), ()))
    for _ in range(POSITIVES):
      positive, negative = f"doc{next(rows)}#0-1", f"doc{next(rows)}#0-1"
      positives.append(Positive(doc_id, positive, 9, 0.5))
      negatives.append(Negative(doc_id, negative, positive, 0.5, 0))
  return Screened(roots, positives, negatives, chunk_tokens,
                  lambda doc_id, n: [f"doc{row}#0-1" for row in range(n)], negatives_per_positive=1)


def measure(sequences: int, folder: pathlib.Path) -> tuple[int, float, list[float]]:
  """(sequences, seconds, seconds of each process's core) of writing them, by all processes."""
  together.GROUP_ROOTS = GROUP_ROOTS
  screened = made_up(sequences)
  inputs = Inputs(0, 1, 0, LENGTH, sequences, config().method_options, Library(screened.chunk_tokens.separator),
                  screened)
  hosts.barrier("begin")
  began, worked = time.perf_counter(), time.process_time()
  count = together.write_together(policylong.sequences, inputs, Round(epath.Path(folder), 1), packed=False,
                                  beginning=())
  spent, worked = time.perf_counter() - began, time.process_time() - worked
  return count, spent, [float(part[0]) for part in hosts.all_gather(np.array([worked]))]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sequences", type=int, default=16)
  parser.add_argument("--processes", type=int, default=1)
  # Of one of them, as this command starts it.
  for name, kind in (("--process_id", int), ("--coordinator_address", str), ("--folder", pathlib.Path)):
    parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.process_id is None:
    address = free_address()
    with tempfile.TemporaryDirectory() as folder:
      command = [sys.executable, "-m", "benchmarks.host_synthesis", *sys.argv[1:], f"--folder={folder}",
                 f"--coordinator_address={address}"]
      started = [subprocess.Popen([*command, f"--process_id={i}"]) for i in range(flags.processes)]
      sys.exit(max(process.wait() for process in started))
  cores = sorted(os.sched_getaffinity(0))
  os.sched_setaffinity(0, {cores[flags.process_id % len(cores)]})
  with hosts.joined(flags.coordinator_address, flags.processes, flags.process_id, flags.processes):
    count, spent, worked = measure(flags.sequences, flags.folder)
    if hosts.is_first():
      of_each = " + ".join(f"{1000 * seconds / count:.0f}" for seconds in worked)
      print(f"{1000 * spent / count:.0f} seconds, {of_each} of a core, for 1,000 sequences of {LENGTH:,} tokens "
            f"({count} sequences, {flags.processes} processes of one core each)")


if __name__ == "__main__":
  main()
