"""Makes the reference values of tests/model with transformers and torch, and checks our exports with them.

It runs in an environment of its own (Python 3.11), not in the project's:

  python3.11 -m venv REF && REF/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 gguf==0.19.0
  REF/bin/python tests/reference/make_references.py --gguf=material/smollm2.gguf
  REF/bin/python tests/reference/make_references.py --check-export=DIR

The first writes models.json (each case's config.json fields, tensor names and shapes), logits.npz and
smollm2.json beside this file. The second loads every folder of DIR whose name is a case (or "smollm2") with
transformers, prints the largest difference from the stored logits and fails above 1e-4.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import seeded
import torch
import transformers

HERE = pathlib.Path(__file__).parent
TOLERANCE = 1e-4
COLUMNS = 256  # of SmolLM2's 49,152 logits a position

TEXTS = {
    "plain": "The harbour had been quiet since the storm. Fishing boats lay side by side along the wall, their nets "
             "drying in the sun, and a boy sat on the last step mending a basket. Nobody spoke of the ship that was "
             "still missing, but every few minutes someone looked out to sea.",
    "code": "def add(a, b):\n    # the sum of two numbers\n    return a + b\n\n\nprint(add(2, 40))  # 42\n",
    "long": "In the beginning the road was only a path. " * 24 + "Then it was paved, and everything changed.",
}
# texts on which transformers' reading of the file and the model's own tokenizer agree: transformers does not know
# the rule "smollm" (each digit is cut off before anything else), which shows after runs of white space
TOKENIZER_TEXTS = [
    "", " ", "   ", "\n\n\n", "Hello world", "  leading spaces", "trailing spaces  ", "tabs\tand\r\nline ends\n",
    "digits 0123456789 and 3.14159, 1,000,000", "x10 10x 2024-10-08", "It's we'll they'd DON'T I'M",
    "café naïve Zürich Ελληνικά Кириллица", "日本語のテキスト 中文 한국어", "emoji 🙂👍🏽 🇮🇳",
    "math ∑ x² ≤ y — “quotes” …", "if (a[i] != b->c) { return \"x\\n\"; } // ok?!", "    indented:\n        more\n",
    "zero\u200bwidth and nbsp\u00a0here", "e\u0301 stays decomposed", "Hello<|endoftext|>world",
    "<|im_start|>user\nHi!<|im_end|>\n", "<|im_start <|endoftext|",
]


def tensors_of(model: transformers.PreTrainedModel) -> dict[str, tuple[int, ...]]:
  """Names and shapes of what a checkpoint of this model holds: a tied head is not stored."""
  tied = model.config.tie_word_embeddings
  return {name: tuple(value.shape) for name, value in model.state_dict().items()
          if not (tied and name == "lm_head.weight")}


def model_of(case: str) -> transformers.PreTrainedModel:
  """transformers' own model with a case's seeded weights, float32."""
  config = transformers.AutoConfig.for_model(**seeded.fields(case))
  config._attn_implementation = "eager"
  model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
  state = {name: torch.from_numpy(seeded.weight(case, name, shape)) for name, shape in tensors_of(model).items()}
  missing, unexpected = model.load_state_dict(state, strict=False)
  assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
  model.tie_weights()
  return model


@torch.no_grad()
def logits_of(model: transformers.PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
  """Logits [batch, length, vocabulary], float32."""
  return model(torch.from_numpy(tokens), use_cache=False).logits.numpy()


def smollm2_columns() -> np.ndarray:
  """The stored columns of SmolLM2's logits."""
  return np.sort(np.random.default_rng(0).choice(49152, COLUMNS, replace=False))


def make(gguf: pathlib.Path) -> None:
  """Writes every reference."""
  models, logits = {}, {}
  for case in seeded.CASES:
    model = model_of(case)
    logits[case] = logits_of(model, seeded.tokens(case))
    saved = model.config.to_diff_dict()
    saved.pop("transformers_version", None)
    models[case] = {"config": saved, "tensors": tensors_of(model)}
    print(f"{case}: logits up to {np.abs(logits[case]).max():.2f}")
  (HERE / "models.json").write_text(json.dumps(models, indent=1, sort_keys=True) + "\n")

  tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
  model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32,
                                                            attn_implementation="eager").eval()
  texts = {}
  for name, text in TEXTS.items():
    texts[name] = {"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
    full = logits_of(model, np.asarray([texts[name]["ids"]]))[0]
    logits[f"smollm2_{name}"] = full[:, smollm2_columns()]
    logits[f"smollm2_{name}_lse"] = torch.logsumexp(torch.from_numpy(full).double(), -1).numpy()
    print(f"smollm2 {name}: {len(full)} tokens")
  cases = [{"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in TOKENIZER_TEXTS]
  (HERE / "smollm2.json").write_text(
      json.dumps({"texts": texts, "columns": smollm2_columns().tolist(), "tokenizer": cases}) + "\n")
  np.savez_compressed(HERE / "logits.npz", **logits)


def check_export(directory: pathlib.Path) -> bool:
  """Loads every export with transformers and compares logits; True if all are within the tolerance."""
  stored = np.load(HERE / "logits.npz")
  texts = json.loads((HERE / "smollm2.json").read_text())
  good = True
  for folder in sorted(directory.iterdir()):
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    unclean = {key: value for key, value in loading.items() if value}
    if folder.name == "smollm2":
      tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
      good &= all(tokenizer(case["text"], add_special_tokens=False)["input_ids"] == case["ids"]
                  for case in texts["tokenizer"])
      difference = max(np.abs(logits_of(model.eval(), np.asarray([text["ids"]]))[0][:, texts["columns"]]
                              - stored[f"smollm2_{name}"]).max() for name, text in texts["texts"].items())
    else:
      difference = np.abs(logits_of(model.eval(), seeded.tokens(folder.name)) - stored[folder.name]).max()
    print(f"{folder.name}: largest difference {difference:.2e} {unclean or ''}")
    good &= difference <= TOLERANCE and not unclean
  return good


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--gguf", type=pathlib.Path, help="SmolLM2's GGUF file: make the references")
  parser.add_argument("--check-export", type=pathlib.Path, help="a folder of exported checkpoints to check")
  flags = parser.parse_args()
  if flags.check_export:
    sys.exit(0 if check_export(flags.check_export) else "the exports differ from the references")
  if not flags.gguf:
    parser.error("give --gguf or --check-export")
  make(flags.gguf)


if __name__ == "__main__":
  main()
