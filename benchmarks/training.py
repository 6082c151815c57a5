"""A training step of SmolLM2-135M in bfloat16: ours against transformers + torch, in one run.

  python -m benchmarks.training --torch-python=TORCH_ENV/bin/python [--rows=1] [--length=1024] [--json=results.json]

TORCH_ENV, and how an NVIDIA GPU is shared, as in benchmarks/scoring.py. Takes about three minutes on two CPU cores.
Both sides do one step of AdamW on sequences of random tokens: next-token loss on every token, backward pass, clipping,
update; ours on float32 master weights with bfloat16 products, theirs under bfloat16 autocast, which is the same thing.
They run in turns and the best of each counts; the first loss of both is printed.
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
from benchmarks.scoring import MODEL, other_side
from policylong import config as config_lib
from policylong.devices.mesh import make_mesh
from policylong.model import hf
from policylong.training.flops import train_flops_per_token
from policylong.training.optimizer import make_optimizer
from policylong.training.state import abstract_state, initial_state
from policylong.training.step import make_batch, make_train_step, token_sharding


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--torch-python", required=True, help="the interpreter of the torch environment")
  parser.add_argument("--rows", type=int, default=1, help="sequences of a step (default: 1)")
  parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence (default: 1024)")
  parser.add_argument("--remat", default="all_but_products", help="what our layers keep (default: all_but_products)")
  parser.add_argument("--turns", type=int, default=5, help="times that each side is measured (default: 5)")
  parser.add_argument("--json", help="also write the numbers to this file")
  arguments = parser.parse_args()

  tokens = np.random.default_rng(0).integers(0, 49_000, (1, arguments.rows, arguments.length)).astype(np.int32)
  config = hf.read_model_config(MODEL)
  params = hf.load_params(MODEL, config, np.dtype(np.float32))
  losses, seconds = {}, {"ours": [], "torch": []}
  with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
      other_side(arguments.torch_python, "training_torch.py", params, config, folder), stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, text=True) as torch:
    step, memory = our_step(tokens, config, params, arguments.remat)
    torch.stdin.write(json.dumps(tokens[0].tolist()) + "\n")
    for turn in range(arguments.turns + 1):
      time.sleep(1)  # torch's and XLA's threads go on spinning for a while after their work
      torch.stdin.write("go\n")
      torch.stdin.flush()
      answer = json.loads(torch.stdout.readline())
      time.sleep(1)
      start = time.perf_counter()
      loss = step()
      if turn:  # the first is for warming up
        seconds["ours"].append(time.perf_counter() - start)
        seconds["torch"].append(answer["seconds"])
      else:
        losses = {"ours": loss, "torch": answer["loss"]}
    torch.stdin.close()
  best = {name: min(values) for name, values in seconds.items()}
  peak = peak_flops()
  flops = tokens.size * train_flops_per_token(config, arguments.length)
  results = {"device": jax.devices()[0].device_kind, "rows": arguments.rows, "length": arguments.length,
             "remat": arguments.remat, "temp_bytes": memory,
             "tokens_per_second": {name: tokens.size / value for name, value in best.items()},
             "ratio": best["torch"] / best["ours"], "seconds": best, "losses": losses, "peak_gflops": peak / 1e9,
             "ours_share_of_peak": flops / best["ours"] / peak, "torch_share_of_peak": flops / best["torch"] / peak}
  print(f"{results['ratio']:.2f} times as fast as transformers + torch, {arguments.rows} x {arguments.length} tokens: "
        f"{best['ours']:.3f} s against {best['torch']:.3f} s a step, {results['ours_share_of_peak']:.0%} against "
        f"{results['torch_share_of_peak']:.0%} of this machine's bfloat16 matmul peak ({peak / 1e9:.0f} GFLOP/s)")
  print(f"first loss {losses['ours']:.4f} and {losses['torch']:.4f} nats")
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


def our_step(tokens, config, params, remat):
  """(a function that makes one more step on the same tokens and returns its loss, bytes of temporaries); takes the
  parameters over."""
  training = config_lib.Training(
      steps_per_round=100, batch_size=tokens.shape[1], accumulation=1, peak_learning_rate=1e-5, warmup_fraction=0.0,
      schedule="run", document_masking=False, longce=False, longfilter_share=None, short_window=1, adam_b1=0.9,
      adam_b2=0.95, weight_decay=0.1, clip_norm=1.0, compute_dtype="bfloat16", remat=remat, context_attention="gather",
      checkpoint_every=100, keep_checkpoints=1)
  mesh = make_mesh(config_lib.Mesh(data=1, fsdp=1, context=1, tensor=1))
  optimizer = make_optimizer(training, 1, config)
  batch = jax.device_put(make_batch(tokens, 1), token_sharding(mesh, tokens.shape))
  state = [initial_state(params, optimizer,
                         abstract_state(config, optimizer, mesh))]
  train_step = make_train_step(config, training, 1, mesh)
  with jax.set_mesh(mesh):
    compiled = train_step.lower(state[0], batch).compile()

  def step():
    state[0], metrics = compiled(state[0], batch)
    return float(metrics.loss)
  return step, compiled.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
  main()
