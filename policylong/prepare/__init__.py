"""Prepares a corpus of web scale once: clean, without duplicates and benchmarks, chunked (docs/prepare.md)."""
