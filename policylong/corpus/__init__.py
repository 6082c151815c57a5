"""Documents from many kinds of sources, their chunks on disk, and the sample of roots of a round."""
