"""Prepares a corpus once, for all runs: python -m policylong.prepare --config=configs/X.py [--benchmark=ruler]

Reads the config's corpus.sources; cleans the texts; takes out what holds parts of benchmarks, and all but the first of
equal and nearly equal documents; cuts the rest into chunks; and writes it to corpus.prepared, which the loop then opens
in the sources' place. Records that are no documents go to bad_records.jsonl, documents that were taken out to
removed.jsonl, with the reason; manifest.json counts all. A start that was killed goes on when it is started again, and
the result is the same.

It is an Apache Beam pipeline (pip install -e '.[prepare]'): on this machine's cores, or where Beam's own flags say:
--runner=DataflowRunner|FlinkRunner|SparkRunner ... See docs/prepare.md.
"""

import logging
import sys

from absl import flags

from policylong.commands import config_flags
from policylong.config import ConfigError
from policylong.errors import UserError, run_command

flags.adopt_module_key_flags(config_flags)
_BENCHMARK = flags.DEFINE_multi_string(
    "benchmark", [], "What documents must hold nothing of: ruler[=DIR], longbench2[=FILE], or a file of JSON, JSONL or "
    "text; may be given several times.")
_NEAR_DUPLICATES = flags.DEFINE_float(
    "near_duplicates", 0.6, "Jaccard similarity of two documents' runs of five words from which on they count as the "
    "same; 0: only equal texts do.", lower_bound=0.0, upper_bound=1.0)


def table(manifest: dict, seconds: float | None, begins: bool) -> str:
  """What a person reads at the end."""
  rows = [("records read", manifest["records"])]
  rows += [(f"  bad: {reason}", row["count"]) for reason, row in sorted(manifest["bad_records"].items())]
  rows += [(f"  removed: {reason}", row["count"]) for reason, row in sorted(manifest["removed"].items())]
  rows += [("documents kept", manifest["documents"]), ("chunks", manifest["chunks"]),
           ("characters", manifest["characters"]), ("shards", len(manifest["shards"]))]
  width = max(len(name) for name, _ in rows)
  lines = [f"{name:<{width}}  {count:>15,}" for name, count in rows]
  if not manifest["settings"]["benchmarks"]:
    lines.append("no --benchmark was given: documents may hold what models are tested on")
  if seconds:
    rate = f"{manifest['records'] / seconds:,.0f} records/s" if begins else "going on from an earlier start"
    lines.append(f"{seconds:,.0f} s, {rate}")
  return "\n".join(lines)


def main(beam_flags: list[str]) -> None:
  """The command."""
  config = config_flags.config()
  logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
  logging.getLogger("policylong").setLevel(logging.INFO)
  from policylong.prepare import pipeline, preparation  # after the flags: --help and mistakes answer at once

  if config.method == "given":
    raise UserError("method is 'given', which reads token sequences: there are no documents to prepare")
  if config.corpus.prepared is None:
    raise ConfigError("corpus.prepared is None, and it is where the prepared corpus goes: set it in the config, or "
                      "give --config.corpus.prepared=DIR")
  if unknown := pipeline.check_flags(beam_flags):
    print(f"usage error: neither this command nor Beam's DirectRunner knows {', '.join(unknown)} (see --help)",
          file=sys.stderr)
    sys.exit(2)
  manifest, seconds, begins = preparation.prepare(config.corpus, near_duplicates=_NEAR_DUPLICATES.value,
                                                  benchmarks=_BENCHMARK.value, flags=beam_flags)
  print(f"{table(manifest, seconds, begins)}\nprepared: {config.corpus.prepared}")


if __name__ == "__main__":
  rest = config_flags.parse(__doc__, required=("config",), passes=True)
  run_command(lambda: main(rest))
