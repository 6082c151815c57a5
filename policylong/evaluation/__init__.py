"""What a checkpoint can do, by published benchmarks."""
