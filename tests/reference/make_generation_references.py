"""Makes generation.json beside this file: greedy continuations and log-likelihoods by transformers and torch, float32.

Runs in the environment of make_references.py:

  REF/bin/python tests/reference/make_generation_references.py --gguf=material/smollm2.gguf --text=material/wiki.jsonl

Every prompt is continued by itself, with transformers' own cache, so nothing is padded.
"""

import argparse
import json
import pathlib

import numpy as np
import seeded
import torch
import transformers
from make_references import model_of

HERE = pathlib.Path(__file__).parent
# Around blocks, chunks and powers of two.
LENGTHS = (1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 65, 100, 127, 128, 129, 200, 256, 257, 300, 520)
NEW = 16
SMALL_LENGTHS = (1, 2, 5, 16, 17, 29)
SMALL_NEW = 24
# Token 2 is the small models' end token.
SMALL_END = 2


@torch.no_grad()
def continue_greedily(model, prompt: list[int], new: int, end: int | None) -> tuple[list[int], float]:
  """The new tokens (an end token is not among them) and the smallest lead of a chosen logit over the next best."""
  tokens, cache, out, lead = torch.tensor([prompt]), None, [], np.inf
  while len(out) < new:
    step = model(tokens, past_key_values=cache, use_cache=True)
    cache, best = step.past_key_values, step.logits[0, -1].topk(2)
    lead = min(lead, float(best.values[0] - best.values[1]))
    token = int(best.indices[0])
    if token == end:
      break
    out.append(token)
    tokens = torch.tensor([[token]])
  return out, lead


@torch.no_grad()
def likelihood(model, context: list[int], continuation: list[int]) -> dict:
  """A pair, its log-probability in nats and whether each of its tokens is the most likely one."""
  logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1:-1].double()
  targets = torch.tensor(continuation)
  logp = torch.log_softmax(logits, -1).gather(1, targets[:, None]).sum()
  return {"context": context, "continuation": continuation, "logprob": float(logp),
          "greedy": bool((logits.argmax(-1) == targets).all())}


def case_of(model, prompts: list[list[int]], new: int, end: int | None) -> dict:
  """Continuations of prompts, and log-likelihoods of these and of others."""
  greedy, likelihoods = [], []
  for i, prompt in enumerate(prompts):
    tokens, lead = continue_greedily(model, prompt, new, end)
    greedy.append({"prompt": prompt, "tokens": tokens})
    print(f"  {len(prompt)} tokens: {len(tokens)} new, smallest lead {lead:.4f}", flush=True)
    other = prompts[(i + 1) % len(prompts)][:5]
    for continuation in (tokens[:8], tokens[:3] + other, other[:1]):
      if continuation:
        likelihoods.append(likelihood(model, prompt, continuation))
  return {"greedy": greedy, "likelihoods": likelihoods}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--gguf", type=pathlib.Path, required=True, help="SmolLM2's GGUF file")
  parser.add_argument("--text", type=pathlib.Path, required=True, help="JSONL with a field text")
  flags = parser.parse_args()
  found = {}
  for case in seeded.CASES:
    print(case)
    rng = np.random.default_rng(7)
    prompts = [rng.integers(3, 97, length).tolist() for length in SMALL_LENGTHS]
    found[case] = case_of(model_of(case), prompts, SMALL_NEW, SMALL_END)
  model = transformers.AutoModelForCausalLM.from_pretrained(
      flags.gguf.parent, gguf_file=flags.gguf.name, dtype=torch.float32, attn_implementation="eager").eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(flags.gguf.parent, gguf_file=flags.gguf.name)
  with flags.text.open() as lines:
    texts = [json.loads(next(lines))["text"] for _ in LENGTHS]
  prompts = [(tokenizer(text, add_special_tokens=False)["input_ids"] * 64)[:length]
             for text, length in zip(texts, LENGTHS)]
  print("smollm2")
  found["smollm2"] = case_of(model, prompts, NEW, None)
  (HERE / "generation.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
  main()
