"""Converts checkpoints: an HF directory or GGUF file to an Orbax directory, and an Orbax directory or a run to HF.

  python -m policylong.convert hf-to-orbax --model=DIR_OR_GGUF --output=DIR
  python -m policylong.convert orbax-to-hf --model=DIR --output=DIR

An Orbax directory holds params/ (Orbax), model.json (what the model is), tokenizer/ and the hashes of their files: all
that the way back needs. Of a run's working directory the newest checkpoint is taken, or name one:
WORKDIR/checkpoints/STEP. What was written is read again, and its logits on a fixed text are compared with the source's.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from policylong import paths
from policylong.errors import UserError, run_command
from policylong.model import hf, qwen, stored, tokenizer, vocabulary
from policylong.storage import hub, manifest
from policylong.storage.workdir import check_output, new_directory

TEXT = ("The survey of 1923 counted 412 houses, three mills and one bridge. By the next spring the bridge was gone, "
        "and the ferryman's daughter had learned to row before she could read.\n\n"
        "def ferry(n):\n  return n * 2  # there and back\n")


def save_orbax(params: qwen.Params, config: qwen.ModelConfig, tokenizer_, ends: frozenset[int],
               directory: pathlib.Path) -> None:
  """Writes params/, model.json and tokenizer/ to a temporary folder, which becomes `directory` at the end.

  `ends` are the tokens that end a generation.

  Raises:
    UserError: `directory` is there already.
  """
  with new_directory(directory) as temporary:
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(temporary / "params", params)
    stored.describe(config, tokenizer_, ends, temporary)
    manifest.write(temporary)


def load_orbax(directory: pathlib.Path, mesh: jax.sharding.Mesh | None = None, base_model: str | None = None):
  """The parameters (in the dtype that they were stored in), ModelConfig and tokenizer of `save_orbax` or of a run.

  `base_model` is as of `stored.open_model`.

  Raises:
    UserError: the directory is not one of these, or is damaged.
  """
  model = _open(directory, base_model)
  return model.load(None, mesh), model.config, model.tokenizer


def _open(directory: pathlib.Path, base_model: str | None) -> stored.StoredModel:
  return stored.open_run(directory, base_model) if stored.is_run(directory) else stored.open_orbax(directory)


def logits(params: qwen.Params, config: qwen.ModelConfig, tokenizer_) -> np.ndarray:
  """float32 logits [T, V] on the first 64 tokens of `TEXT`."""
  ids = jnp.asarray(tokenizer.encode(tokenizer_, TEXT)[0][None, :64])

  @jax.jit
  def compute(params, ids):
    hidden = qwen.hidden_states(params, config, ids, compute_dtype=jnp.float32)
    return hidden[0] @ qwen.output_matrix(params, config).T.astype(jnp.float32)
  return np.asarray(compute(params, ids))


def hf_to_orbax(source: pathlib.Path, output: pathlib.Path, dtype: jnp.dtype) -> float:
  """Converts; returns the largest absolute difference of the logits between source (float32) and result."""
  _refuse_existing(output)
  config = hf.read_model_config(source)
  words = tokenizer.tokenizer_of(source, config)
  ends = vocabulary.end_tokens(words, source)
  params = hf.load_params(source, config, jnp.float32)
  before = logits(params, config, words)
  save_orbax(jax.tree.map(lambda leaf: leaf.astype(dtype), params), config, words, ends, output)
  del params
  return float(np.abs(logits(*load_orbax(output)) - before).max())


def orbax_to_hf(source: pathlib.Path, output: pathlib.Path, dtype: jnp.dtype, base_model: str | None = None) -> float:
  """Converts; returns the largest absolute difference of the logits between source and result."""
  _refuse_existing(output)
  model = _open(source, base_model)
  params = model.load(None, None)
  before = logits(params, model.config, model.tokenizer)
  hf.export_hf(jax.tree.map(lambda leaf: leaf.astype(dtype), params), model.config, model.tokenizer, output,
               model.end_tokens)
  del params
  config = hf.read_model_config(output)
  words = tokenizer.tokenizer_of(output, config)
  return float(np.abs(logits(hf.load_params(output, config, dtype), config, words) - before).max())


def _refuse_existing(output: pathlib.Path) -> None:
  if output.exists():
    raise UserError(f"--output {output} is there already: give a directory that does not exist, or remove it")
  check_output(output, "--output")


def main() -> None:
  """Command line: see the module."""
  parser = argparse.ArgumentParser(prog="python -m policylong.convert", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("direction", choices=("hf-to-orbax", "orbax-to-hf"))
  parser.add_argument("--model", type=paths.flag, required=True,
                      help="what to convert: an HF directory, GGUF file or hf://ORG/NAME; an Orbax directory, a run's "
                           "working directory or one of its checkpoints")
  parser.add_argument("--output", type=paths.flag, required=True, help="a directory that does not exist yet")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                      help="of the written weights (default: float32, which holds any source exactly)")
  parser.add_argument("--base_model", type=paths.flag,
                      help="where the model that a run started from is now, if it has moved since")
  flags = parser.parse_args()
  if flags.direction == "hf-to-orbax":
    model = pathlib.Path(hub.folder(flags.model))
  elif flags.model.startswith(hub.PREFIX):
    raise UserError(f"--model is {flags.model}, and what lies on the hub is no Orbax directory and no run")
  else:
    model = pathlib.Path(flags.model)
  if flags.base_model is not None and (flags.direction == "hf-to-orbax" or not stored.is_run(model)):
    raise UserError(f"--base_model is {flags.base_model}, and {flags.model} is no run, which started from one: leave "
                    "it out")
  dtype = jnp.dtype(flags.dtype)
  if flags.direction == "hf-to-orbax":
    difference = hf_to_orbax(model, pathlib.Path(flags.output), dtype)
  else:
    difference = orbax_to_hf(model, pathlib.Path(flags.output), dtype, flags.base_model)
  print(f"written: {flags.output} ({flags.dtype}); read again, its logits on a fixed text differ from the source's "
        f"by at most {difference:.3g}")


if __name__ == "__main__":
  run_command(main)
