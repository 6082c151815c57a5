"""Command line: `python -m policylong.report --workdir=DIR` writes DIR/report/index.html anew."""

import argparse
import dataclasses
import sys

from policylong import config as config_lib
from policylong import paths
from policylong.corpus.store import open_corpus
from policylong.corpus.streamed import pinned
from policylong.errors import UserError, run_command
from policylong.report.page import write_report
from policylong.storage.workdir import Workdir, read_json


def main() -> None:
  """Opens the corpus that the run used, so that chunks show their texts, and writes the page."""
  parser = argparse.ArgumentParser(prog="python -m policylong.report", description=__doc__)
  parser.add_argument("--workdir", type=paths.flag, required=True, help="the working directory of a run")
  workdir = Workdir(parser.parse_args().workdir)
  print(write_report(workdir.directory, _chunk_text(workdir), shared=True))


def _chunk_text(workdir):
  """The text of a chunk by its id, or None (and why, on stderr) where the corpus cannot be opened."""
  if not workdir.corpus_json.exists():
    return None  # there are no chunks yet, and a run that reads its corpus is not to find it read and pinned by us
  try:
    config = workdir.located(config_lib.parse(read_json(workdir.directory / "config.json", checked=False)))
    if config.method == "given":
      return lambda _: None  # such a run has no chunks
    sources = tuple(pinned(source, workdir.hub_json) for source in config.corpus.sources)
    corpus = open_corpus(dataclasses.replace(config.corpus, sources=sources))
  except UserError as error:
    print(f"chunks are shown by their ids only: {error}", file=sys.stderr)
    return None
  return lambda chunk_id: corpus.chunk_text(corpus.chunk_row(chunk_id))


if __name__ == "__main__":
  run_command(main)
