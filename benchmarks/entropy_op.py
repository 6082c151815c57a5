"""The entropy op: streaming against the plain formula, in one run.

  python -m benchmarks.entropy_op [--tokens=2048] [--json=results.json]

Takes about two minutes on two CPU cores and 10 GB of memory. Three questions, ratios first:
- memory: temporaries at T = 4096, V = 151,936 by the compiler's own account;
- error there against float64, over a sample of the tokens;
- time at SmolLM2-135M's shape (T = --tokens, D = 576, V = 49,152, bfloat16), and which share of this machine's
  matmul peak that is: logits are T D V multiply-adds, the peak is a square bfloat16 product in this run.
"""

import argparse
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.clock import peak_flops, seconds_a_call
from policylong.likelihood import token_likelihood

QWEN = (4096, 896, 151_936)
SMOLLM2 = (576, 49_152)
SAMPLED_TOKENS = 64


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--json", help="also write the numbers to this file")
  parser.add_argument("--repeats", type=int, default=10, help="the median of so many runs counts (default: 10)")
  parser.add_argument("--tokens", type=int, default=2048, help="tokens that are timed (default: 2048)")
  arguments = parser.parse_args()
  results = {"device": jax.devices()[0].device_kind, "tokens": arguments.tokens, **memory_and_error(),
             **speed(arguments.tokens, arguments.repeats)}
  report(results)
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


def memory_and_error() -> dict:
  """Temporaries of both forms and the streaming one's error, in bytes and nats."""
  arrays = example(*QWEN)
  streaming, plain = compiled("streaming", arrays), compiled("reference", arrays)
  values = streaming(*arrays)
  sample = np.linspace(0, QWEN[0] - 1, SAMPLED_TOKENS).astype(int)
  exact = float64_likelihood(*(np.asarray(x, np.float64) for x in (arrays[0][sample], arrays[1])),
                             np.asarray(arrays[2])[sample])
  errors = {name: float(np.abs(np.asarray(value, np.float64)[sample] - wanted).max())
            for name, value, wanted in zip(values._fields, values, exact)}
  return {"streaming_temporaries": streaming.memory_analysis().temp_size_in_bytes,
          "plain_temporaries": plain.memory_analysis().temp_size_in_bytes, "error_nats": errors}


def speed(tokens: int, repeats: int) -> dict:
  """Seconds of both forms and FLOP/s of the streaming one, beside the peak product's."""
  arrays = example(tokens, *SMOLLM2)
  seconds = {name: seconds_a_call(compiled(name, arrays), *arrays, turns=repeats)
             for name in ("streaming", "reference")}
  return {"streaming_seconds": seconds["streaming"], "plain_seconds": seconds["reference"],
          "streaming_flops": 2 * tokens * math.prod(SMOLLM2) / seconds["streaming"], "peak_flops": peak_flops()}


def example(T: int, D: int, V: int):
  """Hidden states, output matrix and targets whose entropies are those of a language model, 0 to log V."""
  keys = jax.random.split(jax.random.key(0), 4)
  sharpness = jax.random.uniform(keys[3], (T, 1), minval=0.1, maxval=4.0)
  hidden = (jax.random.normal(keys[0], (T, D)) * sharpness).astype(jnp.bfloat16)
  matrix = (jax.random.normal(keys[1], (V, D)) * D ** -0.5).astype(jnp.bfloat16)
  return hidden, matrix, jax.random.randint(keys[2], (T,), 0, V)


def compiled(implementation: str, arrays):
  function = jax.jit(token_likelihood, static_argnames="implementation")
  return function.lower(*arrays, implementation=implementation).compile()


def float64_likelihood(hidden: np.ndarray, matrix: np.ndarray, targets: np.ndarray):
  logits = hidden @ matrix.T
  greatest = logits.max(1, keepdims=True)
  lse = greatest + np.log(np.exp(logits - greatest).sum(1, keepdims=True))
  log_p = logits - lse
  return -log_p[np.arange(len(targets)), targets], -(np.exp(log_p) * log_p).sum(1), lse[:, 0]


def report(results: dict) -> None:
  streaming, plain = results["streaming_temporaries"], results["plain_temporaries"]
  print(f"memory   {plain / streaming:7.1f} x less   {streaming / 1e6:,.0f} MB of temporaries, plain "
        f"{plain / 1e6:,.0f} MB (T, D, V = {QWEN})")
  print(f"time     {results['plain_seconds'] / results['streaming_seconds']:7.1f} x faster "
        f"{results['streaming_seconds'] * 1e3:,.1f} ms, plain {results['plain_seconds'] * 1e3:,.1f} ms "
        f"(T, D, V = {(results['tokens'], *SMOLLM2)})")
  print(f"peak     {results['streaming_flops'] / results['peak_flops']:7.0%} of it     "
        f"{results['streaming_flops'] / 1e9:,.0f} GFLOP/s of {results['peak_flops'] / 1e9:,.0f}, {results['device']}")
  print("error    " + ", ".join(f"{name} {error:.1e}" for name, error in results["error_nats"].items())
        + " nats at most, against float64")


if __name__ == "__main__":
  main()
