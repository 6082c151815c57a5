"""How much there is to find in a corpus, for the policy of the demo: what the demo's corpus was chosen by.

  python -m benchmarks.demo_corpora NAME=GLOB:text|jsonl ... [--roots=24] [--workdir=runs/demo_corpora]

For each corpus one round of full verification of so many roots, as configs/demo.py has it but with four candidates an
anchor, epsilon at 0.5% of the control and the paper's `skip_tokens`, and how often own candidates, those of other
anchors and random chunks pass: by entropy, and by entropy and loss. docs/demo.md has what came out. Four to six
minutes a corpus on one core.
"""

import argparse
import pathlib

from benchmarks import screening_worlds
from benchmarks.screening import MANY, Known
from configs import demo


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("corpora", nargs="+")
  parser.add_argument("--roots", type=int, default=24)
  parser.add_argument("--workdir", default="runs/demo_corpora", type=pathlib.Path)
  options = parser.parse_args()
  for corpus in options.corpora:
    name, _, place = corpus.partition("=")
    path, _, kind = place.rpartition(":")
    config = demo.get_config()
    config.corpus.update({"sources": ({"name": name, "kind": kind, "path": path, "id_field": "id", "text_field": "text",
                                       "split": ""},), "root_sources": (), "cache_dir": str(options.workdir / "cache")})
    config.screening.update({**screening_worlds.EVIDENCE, "roots_per_round": options.roots, "top_k": 4,
                             "epsilon_from_control": 0.005, "skip_tokens": 16})
    print(f"{name}: {Known(screening_worlds.make(config, MANY, 1.0), options.workdir / name).describe()}", flush=True)


if __name__ == "__main__":
  main()
