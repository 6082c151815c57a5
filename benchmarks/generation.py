"""Generation by SmolLM2-135M: prompts read and tokens decoded a second, ours against transformers + torch, in one run.

  python -m benchmarks.generation --torch-python=TORCH_ENV/bin/python [--json=results.json]

TORCH_ENV is a Python 3.11 environment of its own: `pip install torch==2.13.0 transformers==5.23.0` (CPU builds). Both
sides have the same weights (material/smollm2.gguf, unpacked into an HF directory) and decode greedily with a cache.
Ours computes in bfloat16, on a device a core as `policylong.evaluate` does, so that one prompt alone leaves the others
idle; torch in bfloat16 and in float32 (sdpa attention), and for each number the faster of its two
counts. They run in turns, so that a busy machine is busy for all, and the best of each counts. That they continue alike
is printed: the share of equal tokens before the first difference (roundings differ in bfloat16, so it is not 1).
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time

import jax.numpy as jnp
import numpy as np

from policylong import config as config_lib
from policylong.devices import hardware
from policylong.devices.mesh import make_mesh
from policylong.model import hf
from policylong.model.generate import Generator, Request
from policylong.model.tokenizer import load_tokenizer
from policylong.screening.scorer import Scorer

MODEL, TEXT = pathlib.Path("material/smollm2.gguf"), pathlib.Path("material/wiki.jsonl")
# name -> (prompts, tokens of each, new tokens for each)
TASKS = {"2 x 4K": (2, 4096, 17), "2 x 8K": (2, 8000, 17), "1 x 4K": (1, 4096, 17), "8 x 512": (8, 512, 33)}
DTYPES = ("bfloat16", "float32")


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--torch-python", required=True, help="the interpreter of the torch environment")
  parser.add_argument("--turns", type=int, default=5, help="times that each side is measured (default: 5)")
  parser.add_argument("--tasks", default=",".join(TASKS), help="which of the tasks (default: %(default)s)")
  parser.add_argument("--json", help="also write the numbers to this file")
  arguments = parser.parse_args()

  hardware.spread_over_cores()
  config, tokenizer = hf.read_model_config(MODEL), load_tokenizer(MODEL)
  params = hf.load_params(MODEL, config, np.dtype(np.float32))
  with TEXT.open() as lines:
    text = "\n\n".join(json.loads(line)["text"] for line, _ in zip(lines, range(400)))
  tokens = tokenizer(text, add_special_tokens=False).input_ids
  mesh = make_mesh(config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1))
  scorer = Scorer(params, config, mesh, dtype="bfloat16", tokens_per_batch=1024, bucket_multiple=128)
  generator = Generator(scorer.params, config, scorer.mesh, dtype=jnp.dtype("bfloat16"), chunk_tokens=1024)
  results = {}
  with tempfile.TemporaryDirectory() as folder:
    hf.export_hf(params, config, tokenizer, pathlib.Path(folder) / "model")
    theirs = {dtype: Torch(arguments.torch_python, f"{folder}/model", dtype) for dtype in DTYPES}
    for name in arguments.tasks.split(","):
      count, length, new = TASKS[name]
      task = {"prompts": [tokens[i * length:(i + 1) * length] for i in range(count)], "new": new}
      sides = {"ours": lambda task: ours(generator, **task), **{dtype: side.ask for dtype, side in theirs.items()}}
      results[name] = compare(sides, task, arguments.turns)
      say(name, results[name])
    for side in theirs.values():
      side.close()
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


def ours(generator, prompts, new):
  """One turn of our side."""
  first = {}
  def finished(i, tokens):
    first.setdefault(i, time.perf_counter())
    return False
  start = time.perf_counter()
  found = generator.generate([Request(prompt, new) for prompt in prompts], stop_ids=[], finished=finished)
  middle, end = max(first.values()), time.perf_counter()
  return {"prefill": middle - start, "decode": end - middle, "tokens": [row.tolist() for row in found]}


class Torch:
  """The other side, in a process of its own."""

  def __init__(self, python, model, dtype):
    script = str(pathlib.Path(__file__).with_name("generation_torch.py"))
    self._process = subprocess.Popen([python, script, model, dtype], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     text=True)

  def ask(self, task):
    """One turn."""
    self._process.stdin.write(json.dumps(task) + "\n")
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())

  def close(self):
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


def compare(sides, task, turns):
  """Tokens a second of every side, the best of its turns, and how ours stands to the faster of torch's two."""
  rows, length, new = len(task["prompts"]), len(task["prompts"][0]), task["new"]
  last, best = {}, {side: {"prefill": np.inf, "decode": np.inf} for side in sides}
  for turn in range(turns + 1):
    for side, run in sides.items():
      time.sleep(1)  # torch's and XLA's threads go on spinning for a while after their work
      last[side] = run(task)
      if turn:  # the first one compiles, and warms the caches
        best[side] = {part: min(seconds, last[side][part]) for part, seconds in best[side].items()}
  counts = {"prefill": rows * length, "decode": rows * (new - 1)}
  found = {}
  for part, count in counts.items():
    rates = {side: count / seconds[part] for side, seconds in best.items()}
    found[part] = {"ratio": rates["ours"] / max(rates[dtype] for dtype in DTYPES), "tokens_per_second": rates}
  alike = [int(np.argmin([*np.equal(a, b), False])) for a, b in zip(last["ours"]["tokens"], last["float32"]["tokens"])]
  found["alike"] = float(np.mean(alike)) / new
  return found


def say(name, found):
  for part, words in (("prefill", "read"), ("decode", "decoded")):
    rates = found[part]["tokens_per_second"]
    print(f"{name}, {words}: {found[part]['ratio']:.2f} times as fast as transformers + torch: {rates['ours']:.1f} "
          f"tokens/s against {rates['bfloat16']:.1f} in bfloat16 and {rates['float32']:.1f} in float32", flush=True)
  print(f"{name}: {found['alike']:.0%} of the new tokens are those of torch in float32 before the first difference")


if __name__ == "__main__":
  main()
