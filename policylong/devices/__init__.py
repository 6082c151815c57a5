"""The processes of a run, its devices, and arithmetic that is the same on all of them."""
