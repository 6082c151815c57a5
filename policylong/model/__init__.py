"""The policy: its decoder, its weights in and out, its tokenizer."""

import os

# Of transformers only tokenizers and configs are used; it need not say at each start that PyTorch is not there.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
