"""Makes mds/ beside this file: small MDS shards, written by mosaicml-streaming 0.13.0 itself.

In the environment of make_references.py, with mosaicml-streaming==0.13.0 added:

  REF/bin/python tests/reference/make_mds_references.py

What the shards hold follows from the functions below, which the tests import.
"""

import itertools
import pathlib
import shutil

HERE = pathlib.Path(__file__).parent / "mds"
COMPRESSIONS = (None, "zstd:7", "gz", "bz2", "br", "snappy")
TEXTS, SEQUENCES = 12, 6


def text(i: int) -> dict:
  """Record i of the texts."""
  return {"id": f"doc-{i}", "number": i, "text": f"The {i}th text, é 日本 " + "word " * (3 + i % 4),
          "meta": {"text": f"inner {i}", "source": "x"}}


def tokens(i: int, length: int = 40) -> list[int]:
  """Sequence i of token ids below 500."""
  return [(7 * i + 3 * j * j + j) % 500 for j in range(length)]


def boundaries(i: int, length: int = 40) -> list[list[int]]:
  """Of sequence i, the documents as [start, end)."""
  cuts = [0, 5 + i, 20 + i, length]
  return [list(pair) for pair in itertools.pairwise(cuts)]


def main():
  import numpy as np
  from streaming.base.format.mds.writer import MDSWriter

  shutil.rmtree(HERE, ignore_errors=True)

  def write(folder, columns, rows, compression=None, size_limit=1 << 20):
    with MDSWriter(out=str(HERE / folder), columns=columns, compression=compression, size_limit=size_limit,
                   hashes=["sha1"], progress_bar=False) as writer:
      for row in rows:
        writer.write(row)

  of_texts = {"id": "str", "number": "int", "text": "str", "meta": "json"}
  for compression in COMPRESSIONS:
    write(f"texts_{(compression or 'raw').partition(':')[0]}", of_texts, map(text, range(TEXTS)), compression, 900)
  for folder, encoding, dtype in (("dynamic", "ndarray", np.int64), ("uint32", "ndarray:uint32", np.uint32),
                                  ("fixed", "ndarray:uint16:40", np.uint16)):
    write(f"tokens_{folder}", {"input_ids": encoding, "indices": "ndarray:uint32"},
          ({"input_ids": np.array(tokens(i), dtype), "indices": np.array(boundaries(i), np.uint32)}
           for i in range(SEQUENCES)), "zstd" if folder == "uint32" else None)
  write("pickled", {"text": "pkl", "id": "str"}, ({"text": {"i": i}, "id": str(i)} for i in range(2)))


if __name__ == "__main__":
  main()
