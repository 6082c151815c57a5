"""Where things lie, how they are written, and records as Parquet."""
