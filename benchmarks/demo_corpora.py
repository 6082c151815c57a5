"""How much there is to find in a corpus, for the policy of the demo: what the demo's corpus was chosen by.

  python -m benchmarks.demo_corpora NAME=GLOB[:text|jsonl] ... [--roots=16] [--workdir=runs/demo_corpora]

For each corpus one round of full verification, as configs/demo.py has it but with four candidates an anchor, and
how often own candidates, those of other anchors and random chunks pass: by entropy, and by entropy and loss.
"""

import argparse
import pathlib

from benchmarks import screening_worlds
from benchmarks.screening import MANY, Known
from configs import demo


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("corpora", nargs="+")
  parser.add_argument("--roots", type=int, default=16)
  parser.add_argument("--workdir", default="runs/demo_corpora", type=pathlib.Path)
  options = parser.parse_args()
  for corpus in options.corpora:
    name, _, place = corpus.partition("=")
    path, _, kind = place.rpartition(":")
    config = demo.get_config()
    config.corpus.update({"sources": ({"name": name, "kind": kind, "path": path, "id_field": "id", "text_field": "text",
                                       "split": ""},), "root_sources": (), "cache_dir": str(options.workdir / "cache")})
    config.screening.update({**screening_worlds.EVIDENCE, "roots_per_round": options.roots, "roots_per_shard": 4,
                             "max_anchors_per_root": 10, "top_k": 4, "control_chunks": 4})
    print(f"{name}: {Known(screening_worlds.make(config, MANY, 1.0), options.workdir / name).describe()}", flush=True)


if __name__ == "__main__":
  main()
