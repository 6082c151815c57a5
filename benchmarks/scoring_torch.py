"""The other side of benchmarks/scoring.py; runs in an environment with torch and without this package.

The argument is an HF directory. It reads the tokens (JSON) from the first line of standard input, then scores them
once for each further line.
"""

import json
import sys
import time

import torch
import transformers


@torch.inference_mode()
def score(model, tokens):
  """Mean entropy and nll, as one writes it: float32 log-softmax of all logits."""
  logp = torch.log_softmax(model(tokens).logits[:, :-1].float(), dim=-1)
  entropy = -(logp.exp() * logp).sum(-1)
  nll = -logp.gather(-1, tokens[:, 1:, None]).squeeze(-1)
  return float(entropy.mean()), float(nll.mean())


def main():
  device = "cuda" if torch.cuda.is_available() else "cpu"
  model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).to(device).eval()
  tokens = torch.tensor(json.loads(sys.stdin.readline()), device=device)
  for _ in sys.stdin:
    start = time.perf_counter()
    entropy, nll = score(model, tokens)
    print(json.dumps({"seconds": time.perf_counter() - start, "entropy": entropy, "nll": nll}), flush=True)


if __name__ == "__main__":
  main()
