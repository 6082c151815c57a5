"""The middle rung: SmolLM2-135M extended to 16,384 tokens on real text, on one GPU."""
