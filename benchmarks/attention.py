"""Attention against the whole score matrix and torch: time, memory and error, forward and with gradients.

  python -m benchmarks.attention [--length=8192] [--heads=9,3,64] [--documents=1] [--torch-python=PYTHON]
                                 [--error] [--json=results.json]

One row of so many query heads, key/value heads and numbers a head in bfloat16 (default: SmolLM2's). The sides: what
this platform's choice is, ours by blocks, `jax.nn.dot_product_attention` as XLA compiles it ("plain"), and with
--torch-python `scaled_dot_product_attention` by its FlashAttention (an NVIDIA GPU only). Takes about a minute on two
CPU cores and 6 GB.
"""

import argparse
import json
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.clock import peak_flops, seconds_a_call
from policylong.attention import attention

# Queries of one step of the float64 reference.
_ROWS = 256


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--length", type=int, default=8192, help="tokens (default: 8192)")
  parser.add_argument("--heads", default="9,3,64", help="query heads, key/value heads, head size (default: 9,3,64)")
  parser.add_argument("--documents", type=int, default=1, help="equal packed documents in the row (default: 1)")
  parser.add_argument("--turns", type=int, default=3, help="times that each side is measured (default: 3)")
  parser.add_argument("--torch-python", help="an interpreter with torch for NVIDIA GPUs")
  parser.add_argument("--error", action="store_true", help="also the error of each side against float64 (slow on CPU)")
  parser.add_argument("--json", help="also write the numbers to this file")
  arguments = parser.parse_args()
  N, K, H = map(int, arguments.heads.split(","))
  q, k, v, d_out = (jax.random.normal(jax.random.key(i), (1, arguments.length, heads, H), jnp.bfloat16)
                    for i, heads in enumerate((N, K, K, N)))
  segments = None
  if arguments.documents > 1:
    segments = jnp.asarray(np.arange(arguments.length)[None] * arguments.documents // arguments.length, jnp.int32)
  wanted = exact(q, k, v, d_out, segments) if arguments.error else None
  results = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "length": arguments.length,
             "heads": [N, K, H], "documents": arguments.documents, "peak_flops": peak_flops(), "sides": {}}
  # What the formula needs of the pairs that are seen: two products forward, five more for the gradients.
  pairs = N * arguments.length ** 2 / arguments.documents / 2
  flops = {"forward": 4 * pairs * H, "with gradients": 14 * pairs * H}
  for name, side in sides(segments).items():
    try:
      measured = {what: measure(program, (q, k, v, d_out), arguments.turns)
                  for what, program in programs(side).items()}
    except jax.errors.JaxRuntimeError as error:
      results["sides"][name] = {"error": str(error).splitlines()[0]}
      print(f"{name:10} {results['sides'][name]['error'][:100]}")
      continue
    if wanted:
      found = jax.jit(programs(side)["with gradients"])(q, k, v, d_out)
      measured["errors"] = {what: relative(*pair) for what, *pair in zip(("out", "dq", "dk", "dv"), found, wanted)}
    results["sides"][name] = measured
  if arguments.torch_python:
    results["sides"] |= torch_sides(arguments, (N, K, H))
  for name, side in results["sides"].items():
    for what in flops if "error" not in side else ():
      side[what]["flops"] = flops[what] / side[what]["seconds"]
      print(f"{name:10} {what:15} {1e3 * side[what]['seconds']:9.3f} ms {side[what]['flops'] / 1e9:9,.0f} GFLOP/s "
            f"({side[what]['flops'] / results['peak_flops']:.0%} of this machine's matmul peak), "
            f"{side[what]['temp_bytes'] / 2**20:7.0f} MiB")
    if "errors" in side:
      print(f"{name:10} relative error " + ", ".join(f"{what} {error:.1e}" for what, error in side["errors"].items()))
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


def sides(segments):
  """{name: function of q, k, v}; nothing else's packed form is public in JAX, so then there is no plain side."""
  def ours(implementation):
    return lambda q, k, v: attention(q, k, v, segment_ids=segments, implementation=implementation)
  found = {"chosen": ours(None), "blockwise": ours("blockwise")}
  if segments is None:
    found["plain"] = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
  return found


def programs(side):
  """The forward pass, and the forward pass with the gradients of sum(out * d_out)."""
  def with_gradients(q, k, v, d_out):
    out, backward = jax.vjp(side, q, k, v)
    return out, *backward(d_out)
  return {"forward": lambda q, k, v, d_out: side(q, k, v), "with gradients": with_gradients}


def measure(program, arrays, turns):
  compiled = jax.jit(program).lower(*arrays).compile()
  return {"seconds": seconds_a_call(compiled, *arrays, turns=turns),
          "temp_bytes": compiled.memory_analysis().temp_size_in_bytes}


def torch_sides(arguments, heads):
  """The same of torch, in a process of its own; its memory is what was allocated beyond arguments and results."""
  script = str(pathlib.Path(__file__).with_name("attention_torch.py"))
  said = subprocess.run([arguments.torch_python, script, json.dumps({
      "length": arguments.length, "heads": heads, "documents": arguments.documents, "turns": arguments.turns})],
      check=True, stdout=subprocess.PIPE, text=True).stdout
  return json.loads(said.splitlines()[-1])


def relative(found, wanted):
  """|found - wanted| / |wanted| over the whole array."""
  wanted = np.asarray(wanted)
  return float(np.linalg.norm(np.asarray(found, np.float64)[0] - wanted) / np.linalg.norm(wanted))


def exact(q, k, v, d_out, segments):
  """float64 (out, dq, dk, dv) of one row by the formula, a few queries at a time."""
  with jax.enable_x64(True):
    seen = None if segments is None else segments[0]
    return [np.asarray(x) for x in jax.jit(_exact)(*(x[0].astype(jnp.float64) for x in (q, k, v, d_out)), seen)]


def _exact(q, k, v, d_out, segments):
  S, N, H = q.shape
  K, scale = k.shape[1], H ** -0.5
  rows = min(_ROWS, S)
  q, d_out = (x.reshape(S // rows, rows, K, N // K, H) for x in (q, d_out))
  places = jnp.arange(S).reshape(-1, rows)

  def some(carry, x):
    query, d_outs, place = x
    visible = jnp.arange(S)[None] <= place[:, None]
    if segments is not None:
      visible &= segments[None] == segments[place][:, None]
    z = jnp.where(visible, jnp.einsum("qkgh,tkh->kgqt", query, k) * scale, -jnp.inf)
    p = jax.nn.softmax(z, axis=-1)
    d_p = jnp.einsum("qkgh,tkh->kgqt", d_outs, v)
    d_z = p * (d_p - jnp.sum(p * d_p, axis=-1, keepdims=True)) * scale
    carry = (carry[0] + jnp.einsum("kgqt,qkgh->tkh", d_z, query), carry[1] + jnp.einsum("kgqt,qkgh->tkh", p, d_outs))
    return carry, (jnp.einsum("kgqt,tkh->qkgh", p, v), jnp.einsum("kgqt,tkh->qkgh", d_z, k))
  (d_k, d_v), (out, d_q) = lax.scan(some, (jnp.zeros_like(k), jnp.zeros_like(v)), (q, d_out, places))
  return out.reshape(S, N, H), d_q.reshape(S, N, H), d_k, d_v


if __name__ == "__main__":
  main()
