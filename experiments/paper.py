"""The top rung: the paper's table. PolicyLong, EntropyLong and NExtLong from Qwen2.5-3B, 4 x 1B tokens each, on a pod.

  python -m experiments.paper                             # hours and cost of each cell, and the table as far as it is
  python -m experiments.grid --grid=experiments/paper.py --workdir=DIR --cell=policylong-seed0

The second command, on every host of a slice, runs one cell and measures it: RULER and HELMET (8K to 128K) of the
extended model, then fine-tuning and LongBench-v2. Started again it goes on. Cells may run on slices of their own at the
same time, with one DIR that all hosts share; `python -m experiments.paper --workdir=DIR` fills the table with what is
there. Needed in the folder that it is started from: models/Qwen2.5-3B and models/Qwen3-Embedding-0.6B, the corpus as
policylong/paper.py names it, a checkout of HELMET with its data (helmet/), UltraChat as chats.jsonl, and LongBench-v2's
data.json.

Hours are estimates, by arithmetic on docs/pods.json (see docs/pods.md): nothing here has run on a pod.
"""

import argparse
import dataclasses
import json
import pathlib

from configs import qwen3b_128k, sft
from experiments.results import markdown_table
from policylong import config as config_lib
from policylong.aot import hours
from policylong.errors import UserError, run_command
from policylong.storage.workdir import read_json

# As configs/qwen3b_128k.py knows them; the grid is laid over the first.
SLICE = next(iter(qwen3b_128k.SLICES))
SEEDS = (0,)
LENGTHS = (8192, 16_384, 32_768, 65_536, 131_072)
# HELMET's max_test_samples: questions a data set and length. Those of RAG and re-ranking lie in its files once for each
# of 6 places of the passage that answers them, or 3 (..._dep6.jsonl, ..._dep3.jsonl), and all rows of a question are
# asked; see princeton-nlp/HELMET's issues 27 and 36.
HELMET_QUESTIONS = {"recall": 100, "rag": 100, "icl": 500, "rerank": 100, "longqa": 100, "ruler": 100}
ROWS = {"nq": 6, "triviaqa": 6, "popqa": 6, "hotpotqa": 3, "msmarco_rerank_psg": 3}
# LongBench-v2: questions, and the most that is read of one (tokens).
QUESTIONS, QUESTION_TOKENS = 503, 120_000
HELMET, CHATS, LONGBENCH = pathlib.Path("helmet"), pathlib.Path("chats.jsonl"), pathlib.Path("data.json")
TABLE = pathlib.Path(__file__).parents[1] / "docs" / "paper_table.md"

# What is published, and of which model. Of PolicyLong's tables nothing is known here but the margin of its abstract.
PUBLISHED = {
    "policylong": ("Qwen2.5-3B, 2604.07809", {"ruler/131072": "+2.54"}),
    "entropylong": ("Llama-3-8B, 2510.02330", {
        "ruler/8192": "91.50", "ruler/16384": "90.11", "ruler/32768": "88.95", "ruler/65536": "85.04",
        "ruler/131072": "81.26", "ruler": "87.37"}),
    "nextlong": ("Llama-3-8B, 2510.02330", {"ruler/131072": "77.99", "ruler": "85.22"}),
}
# Whose HELMET numbers of Qwen2.5-3B itself, before any extension, are released: at 128K.
BASE = {"helmet/recall/131072": 7.5, "helmet/rag/131072": 21.1, "helmet/icl/131072": 32.0, "helmet/rerank/131072": 2.2,
        "helmet/longqa/131072": 20.5}
CATEGORIES = ("recall", "rag", "icl", "rerank", "longqa")
SPLITS = ("", "/easy", "/hard", "/short", "/medium", "/long")


def prepare() -> None:
  """Says what is missing, before a pod is asked for anything.

  Raises:
    UserError: one sentence.
  """
  for path, what in ((HELMET, "a checkout of HELMET with its data"), (CHATS, "UltraChat, one conversation a line"),
                     (LONGBENCH, "LongBench-v2's questions")):
    if not path.exists():
      raise UserError(f"{path} is not there: it must be {what}, in the folder that the grid is started from")


def get_config():
  """PolicyLong as published; what is measured is measured once, at the end."""
  config = qwen3b_128k.get_config(SLICE)
  config.eval.tasks = ()
  return config


def cells():
  """The methods, each with as many tokens and roots as the others; those that ask no later policy have one round."""
  config = qwen3b_128k.get_config(SLICE)
  once = {"rounds": 1, "training.steps_per_round": config.rounds * config.training.steps_per_round,
          "screening.roots_per_round": config.rounds * config.screening.roots_per_round}
  yield "policylong", {}
  for method in ("entropylong", "nextlong"):
    yield method, {"method": method, **once}


def measure(workdir: pathlib.Path) -> dict[str, float]:
  """{task/length: score} of a finished run: ruler and helmet of its policy, longbench2 of that after fine-tuning."""
  from policylong.evaluation.results import Options
  from policylong.sft import tuning
  options = Options(LENGTHS, None, "helmet", seed=42, apply_chat_template=False, helmet_dir=str(HELMET),
                    data_dir=str(LONGBENCH), include_path=None)
  numbers = _scored(workdir, ("ruler", "helmet", *(f"helmet/{category}" for category in CATEGORIES)), options)
  tuning.run(tuning_config(workdir), workdir / "sft")
  return numbers | _scored(workdir / "sft", ("longbench2",), dataclasses.replace(options, apply_chat_template=True))


def tuning_config(workdir: pathlib.Path) -> config_lib.FineTuning:
  """The papers' fine-tuning of a run's last checkpoint, laid over the same slice."""
  values = sft.get_config("paper")
  values.model.path, values.data.path = str(workdir), str(CHATS)
  layout = qwen3b_128k.SLICES[SLICE]
  values.mesh.update({"fsdp": layout["fsdp"], "context": layout["context"]})
  values.training.update({"accumulation": layout["accumulation"] // 2, "remat": layout["remat"]})
  return config_lib.parse(values.to_dict(), config_lib.FineTuning)


def _scored(model: pathlib.Path, tasks: tuple[str, ...], options) -> dict[str, float]:
  from etils import epath

  from policylong.evaluation.benchmarks import evaluate
  from policylong.evaluation.policy import load_policy
  found = evaluate(load_policy(str(model)), tasks, options, epath.Path(model) / "measured")
  return {f"{task}/{length}" if length else task: result.value for task, lengths in found.items()
          for length, result in lengths.items() if result.value is not None}


def prompts() -> list[int]:
  """Of each data set of RULER and HELMET that `measure` runs at a length, how many prompts are read.

  RULER is there twice: by NVIDIA's package, with prompts made for the model's own tokenizer, and with the prompts that
  HELMET's data has, as a part of its mean.
  """
  from policylong.evaluation import helmet, ruler
  return ([ruler.PROTOCOLS["helmet"]] * len(ruler.TASKS) +
          [HELMET_QUESTIONS[category] * ROWS.get(name, 1) for category, name in helmet.data_sets("helmet")])


def cost(method: str, slice_: str, found: dict) -> dict:
  """Hours of a cell on a slice: {"screen", "train", "tune", "measure"}, and its devices.

  Fine-tuning is reckoned at the training's tokens a second, though its conversations do not see each other. The
  prompts of the benchmarks are reckoned at the training's FLOPs a second; what is written as an answer is not counted.

  Args:
    method: a cell's name.
    slice_: of configs/qwen3b_128k.py.
    found: docs/pods.json.
  """
  from policylong.model.shapes import model_shape
  from policylong.training.flops import score_flops
  config = qwen3b_128k.get_config(slice_)
  config.method = method
  programs = {name: found[f"qwen3b_128k {slice_} {name}"] for name in ("train", "score", "verify")}
  run, train = hours.of_run(config, programs, config.screening.budget), programs["train"]
  tuning = sft.get_config("paper")
  tuned = tuning.training.steps * tuning.training.batch_size * tuning.data.sequence_length
  model = model_shape(config.model.path)
  read = sum(sum(prompts()) * score_flops(model, 1, length, 1) for length in LENGTHS)
  read += QUESTIONS * score_flops(model, 1, QUESTION_TOKENS, 1)
  step = train["estimated_step_seconds"] / 3600
  return {"screen": run.scan + run.verify, "train": run.train, "tune": tuned / train["tokens"] * step,
          "measure": read / train["model_flops"] * step, "devices": train["devices"]}


def plan(found: dict, prices: dict[str, float]) -> str:
  """The hours of all cells on all slices, as a table; the cost where the price of a device's hour is given."""
  rows = []
  for slice_ in qwen3b_128k.SLICES:
    price = prices.get(slice_.partition(":")[0])
    for method, _ in cells():
      parts = cost(method, slice_, found)
      devices = parts.pop("devices")
      together = sum(parts.values())
      rows.append((method, slice_, *(f"{value:.1f}" for value in parts.values()), f"{together:.1f}",
                   f"{together * devices:,.0f}", "" if price is None else f"{together * devices * price:,.0f}"))
  return markdown_table(("cell", "slice", "screening h", "training h", "fine-tuning h", "benchmarks h", "together h",
                         "device-hours", "cost"), rows)


def table(measured: dict[str, dict[str, float]]) -> str:
  """A row a benchmark and length; of each method what is published and what was measured, where there is something."""
  from policylong.evaluation import helmet
  names = [name for name, _ in cells()]
  heads = ["benchmark", "base, published", *(head for name in names for head in (
      f"{name}, published ({PUBLISHED[name][0]})", f"{name}, measured"))]
  rows = []
  for task in rows_of_table():
    not_judged = helmet.protocol(task.rpartition("/")[0]).removeprefix("HELMET") if helmet.claims(task) else ""
    cells_ = [f"{BASE[task]:.1f}" + (" (judged)" if not_judged else "") if task in BASE else ""]
    for name in names:
      value = measured.get(name, {}).get(task)
      cells_ += [PUBLISHED[name][1].get(task, ""), "" if value is None else f"{value:.2f}"]
    rows.append((task + not_judged, *cells_))
  return markdown_table(heads, rows)


def rows_of_table() -> list[str]:
  """The numbers of the three benchmarks, by the names that `measure` gives them; "ruler" is the mean over lengths."""
  by_length = [f"{task}/{length}" for task in ("ruler", "helmet", *(f"helmet/{c}" for c in CATEGORIES))
               for length in LENGTHS]
  return [*by_length[:len(LENGTHS)], "ruler", *by_length[len(LENGTHS):], *(f"longbench2{split}" for split in SPLITS)]


def outcomes(workdir: pathlib.Path | None) -> dict[str, dict[str, float]]:
  """{cell: its numbers} of the cells that are over."""
  found = {}
  for name, _ in cells():
    path = workdir and workdir / "outcomes" / f"{name}-seed{SEEDS[0]}.json"
    if path and path.exists() and "numbers" in (outcome := read_json(path)):
      numbers = outcome["numbers"]
      lengths = [numbers[f"ruler/{length}"] for length in LENGTHS if f"ruler/{length}" in numbers]
      found[name] = numbers | ({"ruler": sum(lengths) / len(lengths)} if len(lengths) == len(LENGTHS) else {})
  return found


def page(workdir: pathlib.Path | None, prices: dict[str, float]) -> str:
  """The whole page."""
  found, asked = json.loads((TABLE.parent / "pods.json").read_text()), prompts()
  priced = ", ".join(f"{chip} {price:g}" for chip, price in prices.items())
  costs = (f"Cost at so much for an hour of a device: {priced}." if priced else
           "Nothing is known here of prices: `--price=v5p=4.2` and so on fill the cost.")
  return f"""# The paper's table

Written by `python -m experiments.paper`. Qwen2.5-3B from 32K to 128K, 4.0 billion tokens a method, one seed.

## What it takes

Estimates, by arithmetic on the programs of [pods.md](pods.md): training and screening with the configs'
`screening.budget`; fine-tuning of 250 steps at the training's tokens a second; the {len(asked)} data sets of RULER and
HELMET, {sum(asked):,} prompts at each of five lengths, and LongBench-v2's {QUESTIONS} questions, read at the training's
FLOPs a second (what is written is not counted). The prompts are counted by HELMET's settings: 100 questions a data set,
500 of ICL, those of RAG and re-ranking with the passage that answers them at 6 or 3 places. {costs}

{plan(found, prices)}

## What came out

RULER and HELMET of the extended models by HELMET's protocol, LongBench-v2 after fine-tuning. Empty: not measured yet,
or not published as far as is known here. PolicyLong's abstract gives its margin on RULER at 128K, and that it is ahead
on all three; EntropyLong's paper has itself and NExtLong from Llama-3-8B, which is no comparison with Qwen2.5-3B.

{table(outcomes(workdir))}

HELMET as released has GPT-4 judge the answers to NarrativeQA, one of LongQA's three data sets. No judge is asked here:
ROUGE-L counts them. So LongQA and HELMET's mean as measured are no comparison with published numbers, which were
judged, as the base model's {BASE["helmet/longqa/131072"]:.1f} was; between the measured methods they are one.
"""


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=pathlib.Path, help="the grid's folder, whose outcomes fill the table")
  parser.add_argument("--price", action="append", default=[], metavar="CHIP=PRICE",
                      help="of an hour of a device, e.g. v5p=4.2; may be given for each chip")
  arguments = parser.parse_args()
  prices = {}
  for text in arguments.price:
    chip, _, price = text.partition("=")
    try:
      prices[chip] = float(price)
    except ValueError as error:
      raise UserError(f"--price is {text}, wanted CHIP=PRICE, e.g. v5p=4.2") from error
  text = page(arguments.workdir, prices)
  TABLE.write_text(text)
  print(text)


if __name__ == "__main__":
  run_command(main)
