"""Blockwise attention against the whole score matrix, at 8192 tokens: memory and time, forward and with gradients.

  python -m benchmarks.attention [--length=8192] [--json=results.json]

One row of SmolLM2's 9 query and 3 key/value heads of 64 numbers in bfloat16; the other side is
`jax.nn.dot_product_attention` as XLA compiles it. Takes about a minute on two CPU cores and 6 GB.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from policylong.attention import attention


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--length", type=int, default=8192, help="tokens (default: 8192)")
  parser.add_argument("--turns", type=int, default=3, help="times that each side is measured (default: 3)")
  parser.add_argument("--json", help="also write the numbers to this file")
  arguments = parser.parse_args()
  q, k, v = (jax.random.normal(jax.random.key(i), (1, arguments.length, heads, 64), jnp.bfloat16)
             for i, heads in enumerate((9, 3, 3)))
  sides = {"blockwise": lambda q, k, v: attention(q, k, v, implementation="blockwise"),
           "plain": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")}
  results = {}
  for what in ("forward", "with gradients"):
    programs = {name: compiled(side, what, q, k, v) for name, side in sides.items()}
    seconds = {name: [] for name in sides}
    for turn in range(arguments.turns + 1):
      for name, program in programs.items():
        start = time.perf_counter()
        jax.block_until_ready(program(q, k, v))
        if turn:
          seconds[name].append(time.perf_counter() - start)
    best = {name: min(values) for name, values in seconds.items()}
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    out = [np.asarray(jax.tree.leaves(program(q, k, v))[0], np.float32) for program in programs.values()]
    results[what] = {"time_ratio": best["plain"] / best["blockwise"],
                     "memory_ratio": memory["plain"] / memory["blockwise"], "seconds": best, "temp_bytes": memory}
    print(f"{what}: {results[what]['time_ratio']:.1f} times as fast ({best['blockwise']:.2f} s against "
          f"{best['plain']:.2f} s) in {results[what]['memory_ratio']:.0f} times less memory "
          f"({memory['blockwise'] / 2**20:.0f} MiB against {memory['plain'] / 2**20:.0f} MiB); greatest difference "
          f"{np.abs(out[0] - out[1]).max():.2g}")
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


def compiled(side, what, q, k, v):
  """The forward pass, or the gradients of the sum of squares, as a program."""
  def loss(q, k, v):
    return jnp.sum(side(q, k, v).astype(jnp.float32) ** 2)
  function = side if what == "forward" else jax.grad(loss, (0, 1, 2))
  return jax.jit(function).lower(q, k, v).compile()


if __name__ == "__main__":
  main()
