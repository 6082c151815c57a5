"""A byte of a file is flipped, and the file is read by what reads it in a run, without starting one: thousands an hour.

  python -m benchmarks.reliability.readers --run=WORKDIR --cache=CACHE_DIR [--count=300] [--seed=0]

Of each flip the reader must say that there is damage, or give what it gave before. Nothing is left changed.
(`benchmarks.reliability.flips` starts the command, which is slower, and sees what becomes of the damage.)
"""

import argparse
import collections
import hashlib
import json
import pathlib
import random
import sys
from typing import Any

from etils import epath

from policylong.corpus.store import Corpus
from policylong.errors import Damaged
from policylong.storage import checksums, lines, manifest, tables
from policylong.storage.workdir import read_json

# Written anew by every start, or there for people alone.
_UNREAD = ("progress", "lock", "tensorboard", "report")


def read(path: pathlib.Path) -> Any:
  """What its reader makes of a file, comparable; raises Damaged as that does."""
  path = epath.Path(path)
  if path.parent.name.startswith("corpus-") and path.parent.name != "corpus-states":
    return _corpus(Corpus(pathlib.Path(path.parent)))
  if (checkpoint := next((parent for parent in path.parents if parent.parent.name == "checkpoints"), None)) is not None:
    return manifest.check(checkpoint)
  if path.name.startswith("metrics.jsonl"):
    found, damaged = lines.read(path.with_name("metrics.jsonl"))
    if damaged:
      raise Damaged(path, f"{damaged} lines of it")
    return found
  if path.suffix == ".parquet":
    return tables.read(path).to_pydict()
  if path.suffix == ".sha256":
    return read_json(path), read_json(path.with_suffix(""))
  if path.parent.name == "sequences":
    return manifest.check(path.parent)
  if path.suffix == ".json":
    return read_json(path)
  if path.parent.name.startswith("rows-"):
    told = read_json(path.parent / manifest.NAME)["files"][path.name]
    if hashlib.sha256(path.read_bytes()).hexdigest() != told:
      raise Damaged(path, "its bytes are not those of its manifest")
    return None
  return checksums.unsealed(path, path.read_bytes())


def _corpus(corpus: Corpus) -> tuple:
  documents = [corpus.document(i) for i in range(corpus.num_documents)]
  chunks = [(corpus.chunk(row), corpus.chunk_text(row), int(corpus.chunk_document[row]))
            for row in range(corpus.num_chunks)]
  return (documents, chunks, [corpus.document_index(document.id) for document in documents],
          [corpus.chunk_starts(i).tolist() for i in range(corpus.num_documents)], corpus.summary())


def is_read(path: pathlib.Path, parent: pathlib.Path) -> bool:
  """Whether somebody reads a file again."""
  parts = path.relative_to(parent).parts
  return path.is_file() and path.stat().st_size > 0 and parts[0] not in _UNREAD and not any(
      part.endswith((".lock", ".owner", ".tmp")) for part in parts)


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--run", type=pathlib.Path, required=True, help="a working directory that nobody uses")
  parser.add_argument("--cache", type=pathlib.Path, required=True, help="its corpus.cache_dir")
  parser.add_argument("--count", type=int, default=300, help="flips")
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  rng = random.Random(flags.seed)
  paths = [path for parent in (flags.run, flags.cache) for path in sorted(parent.rglob("*")) if is_read(path, parent)]
  before, counts, silent = {}, collections.Counter(), []
  for _ in range(flags.count):
    path = rng.choice(paths)
    if path not in before:
      before[path] = read(path)
    whole = path.read_bytes()
    data, at = bytearray(whole), rng.randrange(len(whole))
    data[at] ^= rng.randrange(1, 256)
    path.write_bytes(bytes(data))
    try:
      same = read(path) == before[path]
      counts["harmless" if same else "SILENT"] += 1
      if not same:
        silent.append(f"{path}, byte {at}")
    except Damaged:
      counts["told"] += 1
    finally:
      path.write_bytes(whole)
  print(f"{flags.count} flips in {len(paths)} files: {json.dumps(counts)}", *silent, sep="\n")
  sys.exit(bool(silent))


if __name__ == "__main__":
  main()
