"""Training on long sequences: state, optimizer, step, batches, checkpoints, and one round of steps."""
