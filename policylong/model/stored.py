"""A model in any form that it is kept in: HF directory, GGUF file, Orbax directory, or a run's checkpoint.

A run is known by its checkpoints/ folder; it is only read, so it may be a running one. What its checkpoints are
weights of stands in its model/ folder, or else follows from the model that its config.json names.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import transformers

from policylong.errors import UserError
from policylong.model import hf, rope
from policylong.model.qwen import ModelConfig, Params, abstract_params
from policylong.model.tokenizer import end_tokens, load_tokenizer
from policylong.storage.workdir import Workdir, read_json

_MODEL, _TOKENIZER = "model.json", "tokenizer"
# Config, tokenizer and end tokens.
_Description = tuple[ModelConfig, transformers.PreTrainedTokenizerFast, frozenset[int]]


@dataclasses.dataclass(frozen=True)
class StoredModel:
  """A model that was found, its weights not read yet.

  name: where it lies, with the step of a run's checkpoint. end_tokens: what ends a generation. load(dtype, mesh): the
  weights; dtype None: as they are stored (float32 of an HF directory or a GGUF file); mesh None: on the first device.
  """
  name: str
  config: ModelConfig
  tokenizer: transformers.PreTrainedTokenizerFast
  end_tokens: frozenset[int]
  load: Callable[[jnp.dtype | None, jax.sharding.Mesh | None], Params]


def open_model(path: str | os.PathLike, sha256: str = "") -> StoredModel:
  """What lies at `path`: HF directory, GGUF file, Orbax directory, working directory, or one of its checkpoints.

  `sha256`, if not empty, is that of the weight file of an HF directory or a GGUF file, checked when it is loaded.

  Raises:
    UserError: nothing readable is there, or a hash is given for what has none; loading raises it for damaged weights.
  """
  path = pathlib.Path(path)
  run, orbax = is_run(path), (path / _MODEL).exists()
  if sha256 and (run or orbax):
    raise UserError(f"model.sha256 is {sha256}, but {path} is a checkpoint of many files, not one with a hash: set it "
                    "to ''")
  if run:
    return open_run(path)
  if orbax:
    return open_orbax(path)
  config = hf.read_model_config(path)

  def load(dtype, mesh):
    return hf.load_params(path, config, dtype or jnp.float32, mesh, sha256=sha256)
  tokenizer = load_tokenizer(path)
  return StoredModel(str(path), config, tokenizer, end_tokens(tokenizer, path), load)


def describe(config: ModelConfig, tokenizer: transformers.PreTrainedTokenizerFast, directory: pathlib.Path) -> None:
  """Writes all but the weights, model.json and tokenizer/, into a folder that is there."""
  tokenizer.save_pretrained(directory / _TOKENIZER)
  values = dataclasses.asdict(config) | {"rope_scaling": rope.to_dict(config.rope_scaling)}
  (directory / _MODEL).write_text(json.dumps(values, indent=2) + "\n")


def open_orbax(path: str | os.PathLike) -> StoredModel:
  """A folder of `convert hf-to-orbax`; raises as `open_model`."""
  path = pathlib.Path(path).absolute()
  config, tokenizer, ends = _described(path)
  return StoredModel(str(path), config, tokenizer, ends,
                     lambda dtype, mesh: _restore(path / "params", config, dtype, mesh))


def is_run(path: str | os.PathLike) -> bool:
  """Whether it is a run's working directory or one of its checkpoints."""
  path = pathlib.Path(path)
  if path.name.isdigit() and path.parent.name == "checkpoints":
    return path.parent.is_dir()
  return (path / "checkpoints").is_dir() and not (path / "tokenizer.json").exists()


def open_run(path: str | os.PathLike) -> StoredModel:
  """The newest checkpoint of a working directory, or the one that is named; raises as `open_model`."""
  path = pathlib.Path(path).absolute()
  one = path.parent.name == "checkpoints"
  workdir = Workdir(path.parent.parent if one else path)
  steps = ocp.utils.checkpoint_steps(workdir.checkpoints)
  if not steps or (one and int(path.name) not in steps):
    raise UserError(f"{path} is no whole checkpoint; {workdir.checkpoints} has "
                    f"{'step ' + ', '.join(map(str, sorted(steps))) if steps else 'none'}")
  step = int(path.name) if one else max(steps)
  config, tokenizer, ends = _described(workdir.model) if (workdir.model / _MODEL).exists() else _base(workdir)
  folder = pathlib.Path(workdir.checkpoints / str(step) / "state")
  return StoredModel(f"{workdir.directory} (step {step})", config, tokenizer, ends,
                     lambda dtype, mesh: _restore(folder, config, dtype, mesh, of_state=True))


def _base(workdir: Workdir) -> _Description:
  """What the checkpoints of a run in rounds are weights of: its base model, with its RoPE and length."""
  path = workdir.directory / "config.json"
  try:
    values = read_json(path)
    base, theta, factor = (values["model"][name] for name in ("path", "rope_theta", "yarn_factor"))
    length = values["synthesis"]["sequence_length"]
  except (KeyError, TypeError) as error:
    raise UserError(f"{path} is not the config of a run: it lacks {error}") from error
  if not pathlib.Path(base).exists():
    raise UserError(f"the run in {workdir.directory} started from {base}, which is not there (seen from "
                    f"{pathlib.Path.cwd()}): its shape and its tokenizer are needed")
  config = hf.read_model_config(base).with_rope(theta=theta, yarn_factor=factor).trained_on(length)
  tokenizer = load_tokenizer(base)
  return config, tokenizer, end_tokens(tokenizer, base)


def _described(directory: pathlib.Path) -> _Description:
  """What `describe` wrote."""
  path = directory / _MODEL
  try:
    values = json.loads(path.read_text())
    if yarn := values.pop("yarn", None):  # as it was called when there was no other scaling
      values["rope_scaling"] = {"rope_type": "yarn", **yarn}
    config = ModelConfig(**values | {"rope_scaling": rope.from_dict(values.get("rope_scaling")),
                                     "unrotated": tuple(values.get("unrotated", ()))})
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{path} cannot be read ({error}): give a directory made by hf-to-orbax, or a run's") from error
  tokenizer = load_tokenizer(directory / _TOKENIZER)
  return config, tokenizer, end_tokens(tokenizer, directory / _TOKENIZER)


def _restore(folder: pathlib.Path, config: ModelConfig, dtype: jnp.dtype | None, mesh: jax.sharding.Mesh | None,
             of_state: bool = False) -> Params:
  """The parameters in an Orbax folder, which holds them alone or (`of_state`) beside the rest of a TrainState."""
  with ocp.PyTreeCheckpointer() as checkpointer:
    try:
      if dtype is None:
        tree = checkpointer.metadata(folder).item_metadata.tree
        dtype = (tree["params"] if of_state else tree)["embedding"].dtype
      abstract = abstract_params(config, dtype, mesh)
      if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=device), abstract)
      item = {"params": abstract} if of_state else abstract
      found = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(
          item, ocp.checkpoint_utils.construct_restore_args(item), partial_restore=of_state))
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(f"{folder} cannot be read as an Orbax checkpoint of its {config.family} model "
                      f"({(str(error) or repr(error)).splitlines()[0]})") from error
  return found["params"] if of_state else found
