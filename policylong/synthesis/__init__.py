"""What a long training sequence is, per method, and how sequences lie on disk."""
