"""Comparisons and ablations: grids of runs, and the command that runs them."""
