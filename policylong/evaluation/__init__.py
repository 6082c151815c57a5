"""Judging a policy as the papers do: RULER, LongPPL, LongBench-v2, HELMET, lm-eval; one small interface for all."""
