"""The small study, from the base model to RESULTS.md.

  python -m experiments.small_study --size=small

Run it from the project's folder, after `make material`. Sizes: quick, small, full, and negatives, an ablation; what
each of them is stands in the file of its name. Killed at any instant and started again, the command goes on; a cell's
finished numbers are kept in results/<size>/outcomes/, so that without a change nothing is run again, and
results/<size>/RESULTS.md is written anew after each cell.
"""

from experiments import study
from experiments.small_study import base, full, negatives, quick, report, small
from policylong.errors import run_command

if __name__ == "__main__":
  run_command(lambda: study.run(__doc__, base.FOLDER, (quick, small, full, negatives), report.write))
