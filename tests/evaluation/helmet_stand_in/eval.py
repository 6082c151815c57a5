"""One data set after the other: prompts, answers, metrics, files; an error is logged, and the next one is run."""

import json
import logging
import os
from collections import defaultdict

from arguments import parse_arguments
from data import TestItemDataset, load_data
from model_utils import load_LLM

logger = logging.getLogger(__name__)


def run_test(args, model, dataset, test_file, demo_file):
  name = os.path.splitext(os.path.basename(test_file))[0]
  path = os.path.join(args.output_dir, f"{dataset}_{args.tag}_{name}_in{args.input_max_length}_size"
                      f"{args.max_test_samples}_t{args.temperature}_chat{args.use_chat_template}_{args.seed}.json")
  if os.path.exists(path) and not args.overwrite:
    return
  assert args.num_workers == 0, "workers would be forks of a process with threads"
  data = load_data(args, dataset, test_file, demo_file)
  items = TestItemDataset(data, model, model.tokenizer)
  inputs = [items[i][0] for i in range(len(items))]
  metrics, results = defaultdict(list), []
  for sample, output in zip(data["data"], model.generate_batch(inputs)):
    if not args.use_chat_template:
      output["output"] = data["system_template"].format(**sample) + output["output"]
    found, others = data["post_process"](output, sample)
    for key, value in found.items():
      metrics[key].append(value)
    metrics["input_len"].append(output["input_len"])
    metrics["output_len"].append(output["output_len"])
    result = {**sample, **output, **others, **found}
    result.pop("context")
    results.append(result)
  averaged = {key: sum(values) / len(values) * (1 if "_len" in key else 100) for key, values in metrics.items()}
  with open(path, "w") as file:
    json.dump({"args": args.__dict__, "data": results, "metrics": metrics, "averaged_metrics": averaged}, file)
  with open(path + ".score", "w") as file:
    json.dump(averaged, file)


def main():
  args = parse_arguments()
  assert args.model_name_or_path is not None
  os.makedirs(args.output_dir, exist_ok=True)
  model = load_LLM(args)
  lists = [str(value).split(",") for value in (args.datasets, args.test_files, args.demo_files, args.input_max_length,
                                               args.generation_max_length)]
  for dataset, test_file, demo_file, length, new in zip(*lists):
    args.datasets, args.test_files, args.demo_files = dataset, test_file, demo_file
    args.input_max_length = model.max_length = int(length)
    args.generation_max_length = model.generation_max_length = int(new)
    try:
      run_test(args, model, dataset, test_file, demo_file)
    except Exception as error:
      logger.exception(error)


if __name__ == "__main__":
  main()
