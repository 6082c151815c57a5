"""The frontier study, from its corpus to RESULTS.md.

  python -m experiments.frontier_study --size=small

Run it from the project's folder, after `make material`. Sizes: quick, small. Killed at any instant and
started again, the command goes on; a cell's finished numbers are kept in results/<size>/outcomes/, so that without a
change nothing is run again, and results/<size>/RESULTS.md is written anew after each cell.
"""

from experiments import study
from experiments.frontier_study import base, quick, report, small
from policylong.errors import run_command

if __name__ == "__main__":
  run_command(lambda: study.run(__doc__, base.FOLDER, (quick, small), report.write))
