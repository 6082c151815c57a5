"""The other side of benchmarks/generation.py; runs in an environment with torch and without this package.

Arguments: an HF directory, a dtype. Each line of standard input is one task (JSON): {"prompts": equally long token
ids, "new": tokens to decode for each}. The answer: seconds until the first new token of all prompts, seconds for the
rest, and the new tokens.
"""

import json
import sys
import time

import torch
import transformers


@torch.inference_mode()
def generate(model, prompts, new):
  """Greedy decoding as one writes it: one forward pass over the prompts, then one for each further token."""
  start = time.perf_counter()
  step = model(prompts, use_cache=True, logits_to_keep=1)
  tokens = [step.logits[:, -1:].argmax(-1)]
  middle = time.perf_counter()
  for _ in range(new - 1):
    step = model(tokens[-1], past_key_values=step.past_key_values, use_cache=True, logits_to_keep=1)
    tokens.append(step.logits[:, -1:].argmax(-1))
  return {"prefill": middle - start, "decode": time.perf_counter() - middle, "tokens": torch.cat(tokens, 1).tolist()}


def main():
  model = transformers.AutoModelForCausalLM.from_pretrained(
      sys.argv[1], dtype=getattr(torch, sys.argv[2]), attn_implementation="sdpa").eval()
  for line in sys.stdin:
    task = json.loads(line)
    print(json.dumps(generate(model, torch.tensor(task["prompts"]), task["new"])), flush=True)


if __name__ == "__main__":
  main()
