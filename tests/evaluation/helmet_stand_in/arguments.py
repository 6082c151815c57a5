"""Flags over a YAML file, as in HELMET: any field of the file becomes an attribute, known or not."""

import argparse
import ast

import yaml


def parse_arguments():
  parser = argparse.ArgumentParser()
  for name in ("config", "model_name_or_path", "datasets", "test_files", "demo_files", "output_dir", "system_message"):
    parser.add_argument(f"--{name}", type=str, default=None)
  for name, default in (("max_test_samples", None), ("num_workers", 4), ("shots", 5), ("generation_min_length", 0),
                        ("seed", 42)):
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--tag", type=str, default="eval")
  parser.add_argument("--input_max_length", type=str, default="8192")
  parser.add_argument("--generation_max_length", type=str, default="10")
  for name in ("do_sample", "stop_newline", "use_chat_template"):
    parser.add_argument(f"--{name}", type=ast.literal_eval, choices=[True, False], default=False)
  parser.add_argument("--temperature", type=float, default=1.0)
  parser.add_argument("--top_p", type=float, default=1.0)
  parser.add_argument("--overwrite", action="store_true")
  first = parser.parse_args()
  with open(first.config) as file:
    parser.set_defaults(**yaml.safe_load(file))
  return parser.parse_args()
