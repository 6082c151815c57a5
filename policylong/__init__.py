"""PolicyLong: a language model chooses its own long training data, round after round."""

__version__ = "0.1.0"
