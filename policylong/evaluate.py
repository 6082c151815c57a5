"""Scores a model by benchmarks.

  python -m policylong.evaluate --model=MODEL --tasks=ruler --lengths=4096,8192
  python -m policylong.evaluate --model=MODEL --tasks=longppl,position_loss --documents=F.jsonl --lengths=32768
  python -m policylong.evaluate --model=MODEL --tasks=longbench2 [--data_dir=data.json] [--apply_chat_template]
  python -m policylong.evaluate --model=MODEL --tasks=helmet --helmet_dir=DIR --lengths=8192
  python -m policylong.evaluate --model=MODEL --tasks=arc_easy,my_task [--include_path=DIR]

MODEL: an HF directory, a GGUF file, hf://ORG/NAME[@REVISION] on the hub, a run's working directory (its newest
checkpoint) or WORKDIR/checkpoints/STEP.
Tasks: ruler (13 tasks and their mean), ruler/TASK, longppl, position_loss, longbench2 (its six scores), helmet (the
papers' Avg), helmet/CATEGORY, and every task, group and tag of lm-eval.
Prints a table and writes OUTPUT/results.json, {task: {length: {metric, value, samples, truncated, protocol}}}. The
same command goes on where it was stopped; answers of another model, or of this one before its weights, config,
tokenizer or template changed, are set aside in OUTPUT/earlier. On several hosts, start it on each, with one --output
that all can write; a TPU pod needs no more, elsewhere add --coordinator_address, --num_processes and --process_id.
"""

import argparse
import logging
import re

from etils import epath

from policylong import paths
from policylong.errors import run_command
from policylong.evaluation.results import Options


def _options(arguments) -> Options:
  documents = None
  if arguments.documents:
    from policylong.corpus.sources import source_at
    documents = source_at("documents", arguments.documents)
  return Options(arguments.lengths, arguments.samples, arguments.protocol, arguments.seed,
                 arguments.apply_chat_template, arguments.helmet_dir, arguments.data_dir, arguments.include_path,
                 arguments.ruler_dir, documents, arguments.short_window, arguments.evaluator)


def _positive(text: str) -> int:
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
  return int(text)


def _lengths(text: str) -> tuple[int, ...]:
  return tuple(dict.fromkeys(_positive(part.strip()) for part in text.split(",") if part.strip()))


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", type=paths.flag, required=True, help="what is scored, see above")
  parser.add_argument("--base_model", type=paths.flag,
                      help="where the model that a run started from is now, if it has moved since")
  parser.add_argument("--tasks", required=True, help="task names with commas between them")
  parser.add_argument("--lengths", type=_lengths, default=(), help="prompt lengths in tokens, e.g. 4096,8192")
  parser.add_argument("--output", type=paths.flag,
                      help="folder of results.json and answers (default: runs/evaluate/NAME_OF_MODEL)")
  parser.add_argument("--samples", type=_positive, help="a task and length (default: as many as the protocol says)")
  parser.add_argument("--protocol", choices=("nvidia", "helmet"), default="nvidia",
                      help="RULER as NVIDIA's package runs it or as HELMET does (default: %(default)s)")
  parser.add_argument("--seed", type=int, default=42, help="of RULER's prompts (default: %(default)s, the package's)")
  parser.add_argument("--apply_chat_template", action="store_true", help="send prompts as a user's message")
  parser.add_argument("--documents", type=paths.flag,
                      help="held-out text for longppl and position_loss: JSONL, Parquet or .txt files")
  parser.add_argument("--short_window", type=_positive, default=4096,
                      help="longppl's short context in tokens (default: %(default)s)")
  parser.add_argument("--evaluator", type=paths.flag,
                      help="the model that names longppl's key tokens, read in --dtype too (default: MODEL itself)")
  parser.add_argument("--ruler_dir", type=paths.flag, default="material/ruler",
                      help="RULER's package and prompt sets; fetched if not there (default: %(default)s)")
  parser.add_argument("--helmet_dir", type=paths.flag, help="a checkout of HELMET with its data, for helmet")
  parser.add_argument("--data_dir", type=paths.flag, help="LongBench-v2's data.json or its folder (default: the hub)")
  parser.add_argument("--include_path", type=paths.flag, help="a folder with YAML tasks for lm-eval, beside its own")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16",
                      help="of weights and activations (default: %(default)s)")
  parser.add_argument("--coordinator_address", help="host:port of process 0, for several processes")
  parser.add_argument("--num_processes", type=int, help="how many processes there are")
  parser.add_argument("--process_id", type=int, help="the number of this one, from 0")
  return parser


def main() -> None:
  """The command."""
  arguments = _parser().parse_args()
  logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
  logging.getLogger("policylong").setLevel(logging.INFO)
  tasks = [task.strip() for task in arguments.tasks.split(",") if task.strip()]
  # after the flags: --help and mistakes answer at once
  from policylong.devices import hardware, hosts
  from policylong.evaluation import policy as policies
  from policylong.evaluation import results
  from policylong.evaluation.benchmarks import claimants, evaluate
  from policylong.evaluation.claim import claim
  from policylong.model import stored
  from policylong.storage import lock

  hardware.spread_over_cores()
  claimants(tasks)  # a misspelt name should not wait for the weights
  with hosts.joined(arguments.coordinator_address, arguments.num_processes, arguments.process_id, 0):
    model = stored.open_model(arguments.model, base_model=arguments.base_model)
    slug = re.sub(r"[^\w.-]+", "-", arguments.model).strip("-.") or "model"
    directory = epath.Path(arguments.output or f"runs/evaluate/{slug}")
    with lock.held(directory / "lock", f"--output {directory}", follows=not hosts.is_first(), lost=hosts.end):
      with hosts.first_before_others("claim"):
        if hosts.is_first():
          claim(directory, model.name, {**model.identity(), "dtype": arguments.dtype})
      policy = policies.load_policy(model, dtype=arguments.dtype)
      found = evaluate(policy, tasks, _options(arguments), directory)
      hosts.barrier("done")
    if hosts.is_first():
      print(f"model: {policy.name}\n\n{results.table(found)}\n\nresults: {directory / 'results.json'}")


if __name__ == "__main__":
  run_command(main)
