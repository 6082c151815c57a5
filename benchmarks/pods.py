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

CONFIGS = ("qwen0_5b_128k", "qwen1_5b_128k", "qwen3b_128k", "qwen7b_128k")
PROGRAMS = ("train", "score", "verify", "embed")
FOLDER = pathlib.Path(__file__).parents[1] / "docs"
FOUND = FOLDER / "pods.json"
# Anchors of a root that the run's hours reckon with: 2.3% of its tokens lie two standard deviations above a mean.
ANCHORS = 35
# What embedding is reckoned for; 2,048 characters are about 512 tokens.
CHUNKS, CHUNK_TOKENS = 10_000_000, 512


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
  hours = "\n".join(["| config | slice | tokens scored for each trained on | training h | scan h | verification h | "
                     "together h | screening | embedding h |", "|---|---|---|---|---|---|---|---|---|", *runs])
  left = f"\n\nNot compiled yet: {', '.join(missing)}.\n" if missing else ""
  for name, value in {"programs": table + left, "hours": hours, "anchors": ANCHORS, "chunks": f"{CHUNKS:,}",
                      "chunk_tokens": CHUNK_TOKENS}.items():
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
  """A row of the hours; without a budget every row of every root that a round needs is scored.

  As many negatives come as fit, so that each root with positives is a sequence: a round needs as many roots as it
  reads sequences, where all of them have positives.
  """
  rate = {program: values["tokens"] / values["estimated_step_seconds"] for program, values in here.items()}
  training, screening = config.training, config.screening
  sequences = config.rounds * training.steps_per_round * training.batch_size
  trained, roots = sequences * config.synthesis.sequence_length, sequences
  scan, rows = roots * screening.root_tokens, roots * (
      min(ANCHORS, screening.max_anchors_per_root) * screening.top_k + screening.control_chunks)
  scored = scan + rows * (screening.root_tokens + screening.max_chunk_tokens)
  if budget is not None:
    scored = min(scored, budget * trained)
  hours = {"train": trained / rate["train"], "score": scan / rate["score"], "verify": (scored - scan) / rate["verify"]}
  hours = {program: seconds / 3600 for program, seconds in hours.items()}
  total, embedding = sum(hours.values()), CHUNKS * CHUNK_TOKENS / rate["embed"] / 3600
  return (f"| {name} | {topology} | {scored / trained:.1f}{' (all rows)' if budget is None else ''} | "
          f"{hours['train']:.1f} | {hours['score']:.2f} | {hours['verify']:.1f} | {total:.1f} | "
          f"{1 - hours['train'] / total:.0%} | {embedding:.2f} |")


if __name__ == "__main__":
  main()
