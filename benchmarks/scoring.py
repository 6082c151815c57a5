"""Entropy scoring of SmolLM2-135M in bfloat16: ours against transformers + torch, in one run.

  python -m benchmarks.scoring --torch-python=TORCH_ENV/bin/python [--rows=4] [--length=512] [--json=results.json]

TORCH_ENV is a Python 3.11 environment of its own: `pip install torch==2.13.0 transformers==5.23.0 gguf` (CPU
builds). Takes about two minutes on two CPU cores. On an NVIDIA GPU, where both environments have CUDA builds, both
sides use it; with XLA_PYTHON_CLIENT_PREALLOCATE=false they share its memory. Both sides score the same tokens with the
same weights (material/smollm2.gguf): nll and full-vocabulary entropy of each token, logits in float32. They run in
turns, so that a busy machine is busy for both, and the best of each counts; that they agree is checked and printed.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time

import jax
import numpy as np

from benchmarks.clock import peak_flops
from policylong import config as config_lib
from policylong.devices import hardware
from policylong.devices.mesh import make_mesh
from policylong.model import hf
from policylong.model.qwen import num_params
from policylong.model.tokenizer import load_tokenizer
from policylong.screening.scorer import Scorer

MODEL = pathlib.Path("material/smollm2.gguf")


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--torch-python", required=True, help="the interpreter of the torch environment")
  parser.add_argument("--rows", type=int, default=4, help="sequences (default: 4)")
  parser.add_argument("--length", type=int, default=512, help="tokens of a sequence (default: 512)")
  parser.add_argument("--turns", type=int, default=10, help="times that each side is measured (default: 10)")
  parser.add_argument("--json", help="also write the numbers to this file")
  arguments = parser.parse_args()

  hardware.spread_over_cores()  # as policylong.score does
  tokens = np.random.default_rng(0).integers(0, 49_000, (arguments.rows, arguments.length)).astype(np.int32)
  config = hf.read_model_config(MODEL)
  mesh = make_mesh(config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1))
  params = hf.load_params(MODEL, config, np.dtype(np.float32))
  scorer = Scorer(params, config, mesh, dtype="bfloat16",
                  tokens_per_batch=tokens.size // jax.device_count(), bucket_multiple=128)
  with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
      other_side(arguments.torch_python, "scoring_torch.py", params, config, folder), stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, text=True) as torch:
    torch.stdin.write(json.dumps(tokens.tolist()) + "\n")
    ours, theirs, seconds = [], [], {"ours": [], "torch": []}
    ask(torch)
    scorer.traces(tokens)  # compiles
    for _ in range(arguments.turns):
      time.sleep(1)  # torch's and XLA's threads go on spinning for a while after their work
      answer = ask(torch)
      seconds["torch"].append(answer["seconds"])
      theirs = answer
      time.sleep(1)
      start = time.perf_counter()
      ours = scorer.traces(tokens)
      seconds["ours"].append(time.perf_counter() - start)
    torch.stdin.close()
  best = {name: min(values) for name, values in seconds.items()}
  peak = peak_flops()
  flops = 2 * num_params(config) * tokens.size
  results = {
      "device": jax.devices()[0].device_kind, "rows": arguments.rows, "length": arguments.length,
      "ratio": best["torch"] / best["ours"],
      "ours_tokens_per_second": tokens.size / best["ours"],
      "torch_tokens_per_second": tokens.size / best["torch"],
      "ours_share_of_peak": flops / best["ours"] / peak,
      "torch_share_of_peak": flops / best["torch"] / peak,
      "peak_gflops": peak / 1e9,
      "mean_entropy": {"ours": float(np.nanmean([entropy for entropy, _ in ours])), "torch": theirs["entropy"]},
      "mean_nll": {"ours": float(np.nanmean([nll for _, nll in ours])), "torch": theirs["nll"]},
  }
  print(f"{results['ratio']:.2f} times as fast as transformers + torch, {arguments.rows} x {arguments.length} tokens: "
        f"{results['ours_tokens_per_second']:.0f} against {results['torch_tokens_per_second']:.0f} tokens/s, "
        f"{results['ours_share_of_peak']:.0%} against {results['torch_share_of_peak']:.0%} of this machine's bfloat16 "
        f"matmul peak ({results['peak_gflops']:.0f} GFLOP/s)")
  print("mean entropy {ours:.3f} and {torch:.3f} nats".format(**results["mean_entropy"])
        + ", mean nll {ours:.3f} and {torch:.3f} nats".format(**results["mean_nll"]))
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


def other_side(python, script, params, config, folder):
  """The command of the torch side, with its model as an HF directory: of a GGUF file it would keep the weights packed,
  and unpack them for every product."""
  hf.export_hf(params, config, load_tokenizer(MODEL), pathlib.Path(folder) / "model")
  return [python, str(pathlib.Path(__file__).with_name(script)), f"{folder}/model"]


def ask(torch):
  """One turn of the other side: its seconds, mean entropy and mean nll."""
  torch.stdin.write("go\n")
  torch.stdin.flush()
  return json.loads(torch.stdout.readline())


if __name__ == "__main__":
  main()
