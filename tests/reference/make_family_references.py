"""Makes family_logits.npz, the references of docs/models.md, with transformers and torch; checks our exports with them.

It runs in the environment of make_references.py (REF there):

  REF/bin/python tests/reference/make_family_references.py --make
  REF/bin/python tests/reference/make_family_references.py --check-export=DIR
  REF/bin/python tests/reference/make_family_references.py --fields=config_fields_4.json

The second loads every folder that `make_models_page.py --exports=DIR` wrote and prints the largest difference from the
stored logits; an environment with transformers 4 (4.57.6 was taken) runs it alike. The third, run there, writes every
field that it puts into a family's config.json, with its default.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import families
import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
TOLERANCE = 1e-4
# RoPE frequencies of published models at their real size: (head size, base, window, rope_scaling).
PUBLISHED = {
    "Llama-3.1-8B": (128, 500_000.0, 131_072, {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}),
    "Llama-3.2-1B": (64, 500_000.0, 131_072, {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}),
    "Qwen2.5-3B": (128, 1_000_000.0, 32_768, {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}),
    "Qwen3-8B": (128, 1_000_000, 40_960, {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}),
    "Yarn-Llama-2-7b-128k": (128, 10_000.0, 131_072, {
        "type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "finetuned": True}),
    "deepseek-coder-6.7b": (128, 100_000, 16_384, {"type": "linear", "factor": 4.0}),
}


@torch.no_grad()
def logits_of(directory: pathlib.Path, family: str) -> np.ndarray:
  """The stored positions and columns of a checkpoint's logits, float32; refuses one that does not load cleanly."""
  model, loading = transformers.AutoModelForCausalLM.from_pretrained(
      directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
  unclean = {name: value for name, value in loading.items() if value}
  assert not unclean, (directory.name, unclean)
  logits = model.eval()(torch.from_numpy(families.tokens(family)), use_cache=False).logits[0].numpy()
  return logits[families.POSITIONS][:, families.COLUMNS]


def frequencies(name: str) -> tuple[np.ndarray, float]:
  """A published model's RoPE frequencies and attention scale."""
  size, theta, window, scaling = PUBLISHED[name]
  config = transformers.LlamaConfig(
      hidden_size=size, num_attention_heads=1, num_key_value_heads=1, head_dim=size, max_position_embeddings=window,
      rope_theta=theta, rope_scaling=dict(scaling))
  rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
  return rotary.inv_freq.numpy(), rotary.attention_scaling


def make() -> None:
  """Writes every reference."""
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    for family, feature in families.cells():
      directory = families.write(family, feature, pathlib.Path(folder) / families.key(family, feature))
      found[directory.name] = logits_of(directory, family)
      print(f"{family}, {feature}: logits up to {np.abs(found[directory.name]).max():.2f}")
  for name in PUBLISHED:
    found[f"frequencies--{name}"], scale = frequencies(name)
    found[f"scale--{name}"] = np.float64(scale)
  np.savez_compressed(HERE / "family_logits.npz", **found)


def check_export(directory: pathlib.Path) -> bool:
  """Loads every export and compares its logits; True if all are within the tolerance."""
  stored, largest = np.load(HERE / "family_logits.npz"), 0.0
  for family, feature in families.cells():
    name = families.key(family, feature)
    if not (directory / name).exists():
      print(f"{name} was not exported")
      return False
    difference = np.abs(logits_of(directory / name, family) - stored[name]).max()
    print(f"{family}, {feature}: {difference:.1e}")
    largest = max(largest, difference)
  print(f"transformers {transformers.__version__}: largest difference {largest:.1e}")
  return largest <= TOLERANCE


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--make", action="store_true", help="make the references")
  parser.add_argument("--check-export", type=pathlib.Path, help="a folder of exported checkpoints to check")
  parser.add_argument("--fields", type=pathlib.Path, help="where to write the fields of this transformers' configs")
  flags = parser.parse_args()
  if flags.fields:
    known = {family["model_type"] for family in families.FAMILIES.values()}
    defaults = {family: transformers.AutoConfig.for_model(family).to_dict() for family in sorted(known)}
    flags.fields.write_text(json.dumps(defaults, sort_keys=True, separators=(",", ":")) + "\n")
  if flags.make:
    make()
  if flags.check_export and not check_export(flags.check_export):
    sys.exit("the exports differ from the references")


if __name__ == "__main__":
  main()
