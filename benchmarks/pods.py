"""Writes docs/pods.md: what each config needs on each slice it is made for, and how long it trains and screens.

  python -m benchmarks.pods

Compiles every program by `policylong.aot`, each in a process of its own (about an hour on two cores). What was found is
kept in docs/pods.json, so an interrupted run goes on; delete that file to compile anew.
"""

import importlib
import json
import pathlib
import subprocess
import sys

from policylong import paper
from policylong.aot import hours
from policylong.config import Retrieval
from policylong.retrieval.pieces import index_memory, piece_ranges

CONFIGS = ("qwen0_5b_128k", "qwen1_5b_128k", "qwen3b_128k", "qwen7b_128k")
PROGRAMS = ("train", "score", "verify", "embed")
FOLDER = pathlib.Path(__file__).parents[1] / "docs"
FOUND = FOLDER / "pods.json"
# What embedding is reckoned for; 2,048 characters are about 512 tokens.
CHUNKS, CHUNK_TOKENS = 10_000_000, 512
# The corpora that the index is reckoned for (the last is EntropyLong's), and the numbers of Qwen3-Embedding's vectors.
CORPORA, DIMS = (10_000_000, 100_000_000, 644_000_000), (1024, 512, 256)
# A slice of 64 chips has 16 hosts of four chips; memory of such a host, GB (Google's machine types ct5lp-hightpu-4t,
# ct5p-hightpu-4t, ct6e-standard-4t; pods_text.md says where the numbers are from), half of which is left to the index.
SLICE_HOSTS, HOST_GB = 16, {"v5e": 192, "v5p": 448, "v6e": 720}


def main():
  found = json.loads(FOUND.read_text()) if FOUND.exists() else {}
  for name in CONFIGS:
    for topology in importlib.import_module(f"configs.{name}").SLICES:
      for program in PROGRAMS:
        key = f"{name} {topology} {program}"
        if key not in found:
          print(f"compiling {key}", flush=True)
          found[key] = compile_one(name, topology, program)
          FOUND.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
  (FOLDER / "pods.md").write_text(page(found))


def compile_one(name: str, topology: str, program: str) -> dict:
  output = FOLDER / ".pods.tmp"
  subprocess.run([sys.executable, "-m", "policylong.aot", f"--config=configs/{name}.py:{topology}",
                  f"--topology={topology}", f"--program={program}", f"--json={output}"], check=True)
  values = json.loads(output.read_text())
  output.unlink()
  return values


def page(found: dict) -> str:
  """The whole page; rows of what has not been compiled are left out and said to be missing."""
  rows, runs, missing = [], [], []
  for name in CONFIGS:
    module = importlib.import_module(f"configs.{name}")
    for topology in module.SLICES:
      here = {program: found.get(f"{name} {topology} {program}") for program in PROGRAMS}
      missing += [f"{name} {topology} {program}" for program, values in here.items() if values is None]
      if here["train"] and here["train"]["fits"]:
        here = {program: values and beside(values, here["train"]) for program, values in here.items()}
      rows += [row(name, values) for values in here.values() if values]
      if all(values and values["fits"] for values in here.values()):
        config = module.get_config(topology)
        runs += [run_hours(name, topology, config, here, budget) for budget in (config.screening.budget, None)]
  text = (FOLDER / "pods_text.md").read_text()
  table = "\n".join(["| config | slice | program | fits | peak GiB | arguments + temporaries GiB | of | "
                     "tokens a step and device | step s | tokens/s a device | MFU |",
                     "|---|---|---|---|---|---|---|---|---|---|---|", *rows])
  hour_table = "\n".join(["| config | slice | tokens scored for each trained on | training h | scan h | verification "
                          "h | together h | screening | embedding h |", "|" + "---|" * 9, *runs])
  left = f"\n\nNot compiled yet: {', '.join(missing)}.\n" if missing else ""
  for name, value in {"programs": table + left, "hours": hour_table, "index": index_table(), "anchors": hours.ANCHORS,
                      "positives": hours.POSITIVES, "chunks": f"{CHUNKS:,}", "chunk_tokens": CHUNK_TOKENS}.items():
    text = text.replace("{{" + name + "}}", str(value))
  return text


def beside(values: dict, train: dict) -> dict:
  """What was found of a program, with the training state beside it, which stays where it is while others run."""
  state = 0 if values["program"] == "train" else train["argument_bytes"]
  if values["fits"] and values["peak_bytes"] + state > values["hbm_bytes"]:
    return {**values, "fits": False, "problem": f"{values['peak_bytes'] / 2**30:.1f} GiB beside the training state's "
                                                f"{state / 2**30:.1f}"}
  return values


def row(name: str, values: dict) -> str:
  topology, program, hbm = values["topology"], values["program"], values["hbm_bytes"] / 2**30
  if not values["fits"]:
    return f"| {name} | {topology} | {program} | no: {values['problem']} | | | {hbm:.1f} | | | | |"
  step, tokens = values["estimated_step_seconds"], values["tokens"] / values["devices"]
  return (f"| {name} | {topology} | {program} | yes | {values['peak_bytes'] / 2**30:.1f} | "
          f"{(values['argument_bytes'] + values['temp_bytes']) / 2**30:.1f} | {hbm:.1f} | {tokens:,.0f} | {step:.3g} | "
          f"{tokens / step:,.0f} | {values['estimated_mfu']:.0%} |")


def run_hours(name: str, topology: str, config, here: dict, budget: float | None) -> str:
  """A row of the hours; without a budget every row of every root that a round needs is scored."""
  found, embed = hours.of_run(config, here, budget), here["embed"]
  embedding = CHUNKS * CHUNK_TOKENS / embed["tokens"] * embed["estimated_step_seconds"] / 3600
  return (f"| {name} | {topology} | {found.scored:.1f}{' (all rows)' if budget is None else ''} | {found.train:.1f} | "
          f"{found.scan:.2f} | {found.verify:.1f} | {found.together:.1f} | {1 - found.train / found.together:.0%} | "
          f"{embedding:.2f} |")


def index_table() -> str:
  """What the index of a corpus takes, by arithmetic on what benchmarks.index_memory measured of smaller ones."""
  values = paper.config().retrieval
  lines = ["| chunks | numbers | disk, GB | pieces | built with, GB a host | ScaNN's index, GB in all | GB a host of "
           f"{SLICE_HOSTS} | least hosts " + ", ".join(f"{chip} ({gb} GB)" for chip, gb in HOST_GB.items())
           + f" | exact, GB of a device of each of {SLICE_HOSTS} hosts |", "|" + "---|" * 9]
  for chunks in CORPORA:
    for dim in DIMS:
      config = Retrieval(**{**values.to_dict(), "dim": dim})
      exact = Retrieval(**{**values.to_dict(), "dim": dim, "index": "exact"})
      whole, shared = (index_memory(config, chunks, dim, processes) for processes in (1, SLICE_HOSTS))
      least = ", ".join(str(least_hosts(config, chunks, dim, gb)) for gb in HOST_GB.values())
      lines.append(f"| {chunks:,} | {dim} | {whole.disk / 1e9:,.0f} | "
                   f"{len(piece_ranges(chunks, dim, config.piece_gib))} | {whole.build / 1e9:.1f} | "
                   f"{whole.search / 1e9:,.0f} | {shared.search / 1e9:,.1f} | {least} | "
                   f"{index_memory(exact, chunks, dim, SLICE_HOSTS).search / 1e9:,.1f} |")
  return "\n".join(lines)


def least_hosts(config: Retrieval, chunks: int, dim: int, gb: float) -> int:
  """The fewest hosts of so much memory of which the index takes no more than half."""
  hosts = 1
  while index_memory(config, chunks, dim, hosts).search > gb * 1e9 / 2:
    hosts += 1
  return hosts


if __name__ == "__main__":
  main()
