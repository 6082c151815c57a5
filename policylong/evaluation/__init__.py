"""Checkpoints judged by published benchmarks, with the benchmarks' own code and data."""
