"""The other side of benchmarks/training.py; runs in an environment with torch and without this package.

The argument is an HF directory. It reads the tokens (JSON) from the first line of standard input, then makes one
training step for each further line.
"""

import json
import sys
import time

import torch
import transformers


def main():
  device = "cuda" if torch.cuda.is_available() else "cpu"
  model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).to(device)
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1)
  tokens = torch.tensor(json.loads(sys.stdin.readline()), device=device)
  for _ in sys.stdin:
    start = time.perf_counter()
    with torch.autocast(device, dtype=torch.bfloat16):
      loss = model(tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if device == "cuda":
      torch.cuda.synchronize()
    print(json.dumps({"seconds": time.perf_counter() - start, "loss": float(loss)}), flush=True)


if __name__ == "__main__":
  main()
