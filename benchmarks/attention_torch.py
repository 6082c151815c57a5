"""The other side of benchmarks/attention.py; runs in an environment with torch for NVIDIA GPUs.

The argument is JSON: length, heads, documents, turns. Prints the sides' numbers as JSON on its last line.
"""

import json
import statistics
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def main():
  wanted = json.loads(sys.argv[1])
  N, K, H = wanted["heads"]
  q, k, v, d_out = (torch.randn(1, heads, wanted["length"], H, dtype=torch.bfloat16, device="cuda", requires_grad=True)
                    for heads in (N, K, K, N))

  def forward():
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

  def with_gradients():
    return torch.autograd.grad(forward(), (q, k, v), d_out)

  found = {}
  if wanted["documents"] == 1:  # it takes no packed documents but by a mask of all pairs
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
      with torch.no_grad():
        found["forward"] = measure(forward, wanted["turns"])
      found["with gradients"] = measure(with_gradients, wanted["turns"])
  print(json.dumps({"torch flash": found} if found else {}))


def measure(function, turns):
  function()
  torch.cuda.synchronize()
  torch.cuda.reset_peak_memory_stats()
  before, start = torch.cuda.memory_allocated(), time.perf_counter()
  results = function()
  torch.cuda.synchronize()
  calls = max(1, round(0.2 / (time.perf_counter() - start)))
  results = results if isinstance(results, tuple) else (results,)
  kept = sum(x.numel() * x.element_size() for x in results)
  temporary = torch.cuda.max_memory_allocated() - before - kept
  seconds = []
  for _ in range(turns):
    start = time.perf_counter()
    for _ in range(calls):
      function()
    torch.cuda.synchronize()
    seconds.append((time.perf_counter() - start) / calls)
  return {"seconds": statistics.median(seconds), "temp_bytes": temporary}


if __name__ == "__main__":
  main()
