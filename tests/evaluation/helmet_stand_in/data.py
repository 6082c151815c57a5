"""Data sets as a dictionary of samples, templates and post-processing."""

import json

from utils import calculate_metrics

HUB = {"icl": "Label: {question}\nlabel:", "narrativeqa": "{question}\nAnswer:", "infbench": "{question}\nAnswer:"}


def load_data(args, dataset, path=None, demo_path=None):
  if "broken" in path:
    raise ValueError("this data set\nis broken")
  if path:
    with open(path) as file:
      rows = [json.loads(line) for line in file]
  else:  # these come from the hub
    rows = [{"context": "the letter is h", "question": dataset, "answer": ["(h)"]}]
  user = "{context}\n\nQuestion: {question}"

  def post_process(output, example):
    return calculate_metrics(output["output"], example["answer"]), {"parsed_output": output["output"]}

  return {"data": rows[:args.max_test_samples], "user_template": user, "system_template": "Answer:",
          "prompt_template": user + "\nAnswer:", "post_process": post_process}


class TestItemDataset:

  def __init__(self, data, llm, tokenizer):
    self.data, self.llm, self.tokenizer = data, llm, tokenizer

  def __len__(self):
    return len(self.data["data"])

  def __getitem__(self, index):
    inputs = self.llm.prepare_inputs(self.data["data"][index], self.data)
    text = self.tokenizer.decode(inputs["input_ids"][0]) if "input_ids" in inputs else None
    return inputs, text
