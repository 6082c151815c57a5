"""What reading a corpus costs: MB of its files a second of a core, alone and dealt out.

  python -m benchmarks.corpus_reading [--megabytes=100]

Encyclopaedia articles and speeches over and over, as JSONL in eight files. Alone: one process reads, chunks and writes
all of it. Dealt out: what each process does with its share, and what the one does that puts the parts together.

Hardware: one CPU core, half a minute.
"""

import argparse
import itertools
import json
import pathlib
import tempfile
import time

from policylong import config as config_lib
from policylong.corpus import builder, dealt
from policylong.paper import config

MATERIAL = pathlib.Path("material")
FILES = 8


def write_sources(folder: pathlib.Path, size: int) -> config_lib.Corpus:
  """The files, about `size` bytes in all, as a corpus."""
  texts = [json.loads(line)["text"] for line in (MATERIAL / "wiki.jsonl").read_text("utf-8").splitlines()]
  texts += [path.read_text("utf-8", "replace") for path in sorted((MATERIAL / "sotu").glob("*.txt"))]
  endless = enumerate(itertools.cycle(texts))
  for number in range(FILES):
    with open(folder / f"{number}.jsonl", "w", encoding="utf-8") as file:
      while file.tell() < size // FILES:
        doc_id, text = next(endless)
        file.write(json.dumps({"id": doc_id, "text": text}, ensure_ascii=False) + "\n")
  source = config_lib.Source(name="all", kind="jsonl", path=str(folder / "*.jsonl"), id_field="id", text_field="text",
                             split="")
  return config_lib.Corpus((source,), (), config().corpus.chunk_chars, str(folder), None)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--megabytes", type=int, default=100)
  size = parser.parse_args().megabytes * 1_000_000
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    corpus = write_sources(folder, size)
    total = sum(path.stat().st_size for path in folder.glob("*.jsonl"))
    for new in ("alone", "parts", "together"):
      (folder / new).mkdir()
    versions = []
    for what, work in (
        ("alone", lambda: versions.append(builder.build(corpus, total, folder / "alone"))),
        ("dealt out, of each process's share", lambda: dealt.write(corpus, folder / "parts", 0, 1)),
        ("dealt out, putting together", lambda: versions.append(builder.build(
            corpus, total, folder / "together", read=dealt.reader(corpus, folder / "parts"))))):
      began = time.process_time()
      work()
      print(f"{what}: {total / 1e6 / (time.process_time() - began):.0f} MB a second of a core")
    assert versions[0] == versions[1], "the two are different"


if __name__ == "__main__":
  main()
