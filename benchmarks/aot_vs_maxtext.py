"""Device memory of a train step at 131,072 tokens, compiled for TPU slices: ours against MaxText's, in one run.

  python -m benchmarks.aot_vs_maxtext --maxtext-python=MAXTEXT_ENV/bin/python [--rows=3b_v5p] [--json=results.json]

MAXTEXT_ENV is a Python 3.12 environment of its own: `pip install --no-compile 'maxtext[tpu]==0.2.5'`. No TPU is
needed: both sides compile for one that is not there, one compile at a time, one to five minutes each on two cores.
Both use the libtpu of that environment: of the same MaxText step 0.0.50.1 reports 2.6 GiB more temporaries than
0.0.52, at the same peak.

Both sides have the model's shape, length, batch, mesh, float32 weights and Adam moments, bfloat16 products, full
recomputation of layers and gathered keys over zig-zag context shards in common. MaxText has its base.yml otherwise,
and its loss in 16 tiles and in one tile a sequence: the one that needs less memory counts. Bytes are a device's, as
the compiler reports them: arguments (weights, moments, batch) and temporaries. Cycles are the compiler's estimates
times the trips of the loops they stand in; attention kernels and collectives have none.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from policylong.aot.optimised_hlo import summarise

CONFIG = "configs/qwen3b_128k.py"
LENGTH = 131_072
GIB = 2**30

# Shapes, in the words of a HF config.json: what our side reads.
COMMON = {"model_type": "qwen2", "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 151_936,
          "tie_word_embeddings": True, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_theta": 1e6}
SHAPES = {
    "3b": {"num_hidden_layers": 36, "hidden_size": 2048, "intermediate_size": 11_008, "num_attention_heads": 16},
    "1.5b": {"num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12},
}
# The same in MaxText's; the rest is in its qwen2.5-1.5b.yml.
MAXTEXT_NAMES = {"num_hidden_layers": "base_num_decoder_layers", "hidden_size": "base_emb_dim",
                 "intermediate_size": "base_mlp_dim", "num_attention_heads": "base_num_query_heads"}
MAXTEXT_TOPOLOGIES = {"v5p:4x4x4": "v5p-128", "v5e:8x8": "v5e-64"}
CHIPS = 64
ROWS = {
    "3b_v5p": {"shape": "3b", "topology": "v5p:4x4x4", "batch": 8, "fsdp": 4, "context": 16},
    "1.5b_v5p": {"shape": "1.5b", "topology": "v5p:4x4x4", "batch": 16, "fsdp": 16, "context": 4},
    "3b_v5e": {"shape": "3b", "topology": "v5e:8x8", "batch": 16, "fsdp": 8, "context": 8},
}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--maxtext-python", required=True, help="the interpreter of the MaxText environment")
  parser.add_argument("--rows", default=",".join(ROWS), help="which to compile (default: %(default)s)")
  parser.add_argument("--json", help="also write the numbers to this file")
  arguments = parser.parse_args()

  libtpu, versions = maxtext_environment(arguments.maxtext_python)
  print("MaxText's environment: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
  results = {"versions": versions, "rows": {}}
  for name in arguments.rows.split(","):
    row = ROWS[name]
    ours = compile_ours(libtpu, row)
    tried = [compile_maxtext(arguments.maxtext_python, libtpu, row, tiles) for tiles in sorted({16, row["batch"]})]
    theirs = min(tried, key=lambda found: found["bytes"])
    results["rows"][name] = {**row, "ratio": ours["bytes"] / theirs["bytes"],
                             "cycles_ratio": ours["cycles"] / theirs["cycles"], "ours": ours, "maxtext": theirs}
    print(line(name, results["rows"][name]), flush=True)
    if arguments.json:
      pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


def line(name, row):
  """A row's sentence: the ratio, the bytes, the cycles."""
  ours, theirs = row["ours"], row["maxtext"]
  return (f"{name}: {row['ratio']:.2f} of MaxText's memory: {ours['bytes'] / GIB:.2f} against "
          f"{theirs['bytes'] / GIB:.2f} GiB a device (at the peak {ours['peak_bytes'] / GIB:.2f} and "
          f"{theirs['peak_bytes'] / GIB:.2f}); {row['cycles_ratio']:.2f} of its estimated cycles outside of attention "
          f"kernels and collectives: {ours['cycles'] / 1e6:.0f} against {theirs['cycles'] / 1e6:.0f} million")


def compile_ours(libtpu, row):
  """Memory and cycles of our train step."""
  with tempfile.TemporaryDirectory() as folder:
    config = {**COMMON, **SHAPES[row["shape"]]}
    (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
    return compiled([sys.executable, "-m", "policylong.aot", f"--config={CONFIG}", f"--topology={row['topology']}",
                     "--program=train", f"--json={folder}/out.json", f"--config.model.path={folder}",
                     f"--config.synthesis.sequence_length={LENGTH}", f"--config.training.batch_size={row['batch']}",
                     f"--config.mesh.fsdp={row['fsdp']}", f"--config.mesh.context={row['context']}",
                     "--config.training.accumulation=1", "--config.training.remat=full"], libtpu, folder)


def compile_maxtext(python, libtpu, row, tiles):
  """The same of MaxText's, the loss in so many tiles of its tokens."""
  settings = {MAXTEXT_NAMES[name]: value for name, value in SHAPES[row["shape"]].items()} | {
      "model_name": "qwen2.5-1.5b", "override_model_config": True, "scan_layers": True, "attention": "flash",
      "remat_policy": "full", "num_vocab_tiling": tiles, "max_target_length": LENGTH,
      "per_device_batch_size": row["batch"] / CHIPS, "ici_fsdp_parallelism": row["fsdp"],
      "ici_context_parallelism": row["context"], "compile_topology": MAXTEXT_TOPOLOGIES[row["topology"]],
      "compile_topology_num_slices": 1, "dataset_type": "synthetic", "enable_checkpointing": False, "run_name": "aot"}
  with tempfile.TemporaryDirectory() as folder:
    script = pathlib.Path(__file__).with_name("aot_maxtext.py").resolve()
    found = compiled([python, str(script), f"{folder}/out.json", f"base_output_directory={folder}",
                      *(f"{name}={value}" for name, value in settings.items())], libtpu, folder)
  return {**found, "tiles": tiles}


def compiled(command, libtpu, folder):
  """Runs a compile that writes `folder`/out.json; its numbers, with those of the program that it left in `folder`."""
  dump = pathlib.Path(folder) / "dump"
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump} --xla_dump_hlo_module_re=.*step.*"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
                 "TPU_LIBRARY_PATH": libtpu, "XLA_FLAGS": flags.strip()}
  print("compiles: " + " ".join(map(str, command)), file=sys.stderr, flush=True)
  done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  if done.returncode:
    sys.exit(f"{done.stdout[-3000:]}\n{command[:3]} ended with {done.returncode}")
  found = json.loads((pathlib.Path(folder) / "out.json").read_text())
  if not found.get("fits", True):
    sys.exit(f"it does not fit: {found}")
  names = ("argument_bytes", "temp_bytes", "peak_bytes", "compile_seconds", "estimated_step_seconds", "estimated_mfu")
  programs = [path.read_text() for path in dump.glob("*.after_codegen.txt")]
  return {"bytes": found["argument_bytes"] + found["temp_bytes"],
          "cycles": max(map(estimated_cycles, programs), default=float("nan")),
          **{name: found[name] for name in names if name in found}}


def estimated_cycles(program):
  """The estimates in an optimised TPU program, each times the trips of the loops around it."""
  found = summarise(program)
  return found.matmul_cycles + found.other_cycles


def maxtext_environment(python):
  """Where its libtpu is, and the versions of what compiles there."""
  program = ("import importlib.metadata as m, json, libtpu; print(json.dumps([libtpu.get_library_path(), "
             "{name: m.version(name) for name in ('maxtext', 'jax', 'jaxlib', 'libtpu')}]))")
  return json.loads(subprocess.run([python, "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout)


if __name__ == "__main__":
  main()
