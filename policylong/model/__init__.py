"""The policy: its decoder, its weights in and out, its tokenizer."""
