"""Grids that change one thing at a time."""
