"""Judging a policy as the papers do: RULER, LongPPL, position loss; one small interface for every benchmark."""
