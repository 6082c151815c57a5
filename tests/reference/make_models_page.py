"""Makes docs/models.md: how far this package's logits are from transformers', family by feature.

In the project's environment, from the folder of the repository:

  python tests/reference/make_models_page.py
  python tests/reference/make_models_page.py --exports=DIR   # all cells as our exports, for make_family_references.py
"""

import argparse
import functools
import json
import pathlib
import tempfile

import families
import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from policylong.model import hf, qwen

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "models.md"
TEXT = PAGE.with_name("models_text.md")


@functools.partial(jax.jit, static_argnums=1)
def logits_of(params, config, tokens):
  hidden = qwen.hidden_states(params, config, tokens, compute_dtype=jnp.float32)
  return hidden @ qwen.output_matrix(params, config).T


def differences(directory: pathlib.Path, exports: pathlib.Path | None = None) -> dict[tuple[str, str], float]:
  """(family, feature) -> the largest difference in logits from transformers, float32; checkpoints go to `directory`."""
  found = {}
  with np.load(HERE / "family_logits.npz") as stored:
    for family, feature in families.cells():
      name = families.key(family, feature)
      path = families.write(family, feature, directory / name)
      config = hf.read_model_config(path)
      params = hf.load_params(path, config, jnp.float32)
      logits = np.asarray(logits_of(params, config, families.tokens(family)))[0]
      found[family, feature] = np.abs(logits[families.POSITIONS][:, families.COLUMNS] - stored[name]).max()
      if exports is not None:
        hf.export_hf(params, config, _tokenizer(), exports / name)
  return found


def page(found: dict[tuple[str, str], float]) -> str:
  """The page's text around the tables."""
  head = ["", *families.FAMILIES]
  rows = [head, ["---"] * len(head)]
  rows += [[feature, *(f"{found[family, feature]:.1e}" for family in families.FAMILIES)]
           for feature in families.FEATURES]
  said = [[feature, ", ".join(f"{name} = {json.dumps(value)}" for name, value in changes.items())
           or "what the family says"] for feature, changes in families.FEATURES.items()]
  filled = {"differences": _table(rows), "features": _table(said), "cells": len(found), "length": families.LENGTH,
            "original": families.ORIGINAL}
  text = TEXT.read_text()
  for name, value in filled.items():
    text = text.replace("{{" + name + "}}", str(value))
  return text


def _table(rows: list[list[str]]) -> str:
  return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _tokenizer() -> PreTrainedTokenizerFast:
  backend = Tokenizer(WordLevel({f"w{i}": i for i in range(families.VOCAB)}, unk_token="w0"))
  return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0", bos_token="w1", eos_token="w2")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--exports", type=pathlib.Path, help="also write every cell as our export, into this folder")
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    found = differences(pathlib.Path(folder), flags.exports)
  PAGE.write_text(page(found))
  print(f"{len(found)} cells, largest difference {max(found.values()):.1e}; {PAGE}")


if __name__ == "__main__":
  main()
