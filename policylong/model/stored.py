"""A model in any form that it is kept in: HF directory, GGUF file, Orbax directory, or a run's checkpoint.

A run is known by its checkpoints/ folder; it is only read, so it may be a running one. What its checkpoints are
weights of stands in its model/ folder, or else follows from the model that its config.json names.
"""

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import transformers

from policylong import paths
from policylong.errors import UserError
from policylong.model import gguf_file, hf, identity, rope
from policylong.model.qwen import ModelConfig, Params, abstract_params
from policylong.model.tokenizer import load_tokenizer, tokenizer_of
from policylong.model.vocabulary import end_tokens, write_end_tokens
from policylong.storage import hub, manifest
from policylong.storage.checksums import sha256_of_files
from policylong.storage.regular import check_regular
from policylong.storage.workdir import Workdir, read_json

log = logging.getLogger(__name__)

_MODEL, _TOKENIZER = "model.json", "tokenizer"
# Config, tokenizer and end tokens.
_Description = tuple[ModelConfig, transformers.PreTrainedTokenizerFast, frozenset[int]]


@dataclasses.dataclass(frozen=True)
class StoredModel:
  """A model that was found, its weights not read yet.

  name: where it lies, with the step of a run's checkpoint. end_tokens: what ends a generation. load(dtype, mesh): the
  weights; dtype None: as they are stored (float32 of an HF directory or a GGUF file); mesh None: on the first device.
  files: those that hold the weights, and of a run's checkpoint the rest of its training state.
  """
  name: str
  config: ModelConfig
  tokenizer: transformers.PreTrainedTokenizerFast
  end_tokens: frozenset[int]
  load: Callable[[jnp.dtype | None, jax.sharding.Mesh | None], Params]
  files: tuple[pathlib.Path, ...]

  def identity(self) -> dict[str, str]:
    """What decides on its answers (`model.identity`); reads all files once (`storage.checksums`)."""
    return {"weights": sha256_of_files(self.files),
            **identity.described(self.config, self.tokenizer, self.end_tokens)}


def open_model(path: str | os.PathLike, sha256: str = "", base_model: str | None = None) -> StoredModel:
  """What lies at `path`: HF directory (also on the hub), GGUF file, Orbax directory, a run or one of its checkpoints.

  `sha256`, if not empty, is that of the weight file of an HF directory or a GGUF file, checked when it is loaded.
  `base_model` says where the model that a run started from lies now, if it has moved.

  Raises:
    UserError: nothing readable is there, a hash is given for what has none, or a base model for what needs none;
      loading raises it for damaged weights.
  """
  path = pathlib.Path(hub.folder(path))
  check_regular(path)
  run, orbax = is_run(path), (path / _MODEL).exists()
  if base_model is not None and not run:
    raise UserError(f"--base_model is {base_model}, and {path} is no run, which started from one: leave it out")
  if sha256 and (run or orbax):
    raise UserError(f"model.sha256 is {sha256}, but {path} is a checkpoint of many files, not one with a hash: set it "
                    "to ''")
  if run:
    return open_run(path, base_model)
  if orbax:
    return open_orbax(path)
  config = hf.read_model_config(path)

  def load(dtype, mesh):
    return hf.load_params(path, config, dtype or jnp.float32, mesh, sha256=sha256)
  tokenizer = tokenizer_of(path, config)
  return StoredModel(str(path), config, tokenizer, end_tokens(tokenizer, path), load, hf.weight_files(path))


def describe(config: ModelConfig, tokenizer: transformers.PreTrainedTokenizerFast, ends: frozenset[int],
             directory: pathlib.Path) -> None:
  """Writes all but the weights, model.json and tokenizer/ with the end tokens, into a folder that is there."""
  tokenizer.save_pretrained(directory / _TOKENIZER)
  write_end_tokens(ends, tokenizer, directory / _TOKENIZER)
  values = dataclasses.asdict(config) | {"rope_scaling": rope.to_dict(config.rope_scaling)}
  (directory / _MODEL).write_text(json.dumps(values, indent=2) + "\n")


def open_orbax(path: str | os.PathLike) -> StoredModel:
  """A folder of `convert hf-to-orbax`; raises as `open_model`."""
  path = pathlib.Path(path).absolute()
  config, tokenizer, ends = _described(path)

  def load(dtype, mesh):
    _check(path, lambda name: name.startswith("params/"))
    return _restore(path / "params", config, dtype, mesh)
  return StoredModel(str(path), config, tokenizer, ends, load, _files(path / "params"))


def is_run(path: str | os.PathLike) -> bool:
  """Whether it is a run's working directory or one of its checkpoints."""
  path = pathlib.Path(path).resolve()  # a checkpoint is known by its name, also where a link leads to it
  if path.name.isdigit() and path.parent.name == "checkpoints":
    return path.parent.is_dir()
  return (path / "checkpoints").is_dir() and not (path / "tokenizer.json").exists()


def open_run(path: str | os.PathLike, base_model: str | None = None) -> StoredModel:
  """The newest checkpoint of a working directory, or the one that is named; arguments and errors as of `open_model`."""
  path = pathlib.Path(path).absolute()
  if path.is_symlink() and path.resolve().parent.name == "checkpoints":
    path = path.resolve()
  one = path.name.isdigit() and path.parent.name == "checkpoints"
  workdir = Workdir(path.parent.parent if one else path)
  steps = ocp.utils.checkpoint_steps(workdir.checkpoints)
  if not steps or (one and int(path.name) not in steps):
    raise UserError(f"{path} is no whole checkpoint; {workdir.checkpoints} has "
                    f"{'step ' + ', '.join(map(str, sorted(steps))) if steps else 'none'}")
  step = int(path.name) if one else max(steps)
  described = (workdir.model / _MODEL).exists()
  if described and base_model is not None:
    raise UserError(f"--base_model is {base_model}, and {workdir.directory} has a description of its model, so that "
                    "it needs none: leave it out")
  config, tokenizer, ends = _described(workdir.model) if described else _base(workdir, base_model)
  folder = pathlib.Path(workdir.checkpoints / str(step))

  def load(dtype, mesh):
    _check(folder, lambda name: name.startswith("state/"))
    return _restore(folder / "state", config, dtype, mesh, of_state=True)
  return StoredModel(f"{workdir.directory} (step {step})", config, tokenizer, ends, load, _files(folder / "state"))


def _check(folder: pathlib.Path, wanted: Callable[[str], bool]) -> None:
  """That the `wanted` files of a manifest hold what was written; of a folder without one nothing is known."""
  if (folder / manifest.NAME).exists():
    manifest.check(folder, wanted)
  else:
    log.warning("%s has no %s, of an earlier version or of a save that was killed: it is read as it is", folder,
                manifest.NAME)


def _files(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
  return tuple(sorted(path for path in folder.rglob("*") if path.is_file()))


def _base(workdir: Workdir, base_model: str | None) -> _Description:
  """What the checkpoints of a run in rounds are weights of: its base model, with its RoPE and length."""
  path = workdir.directory / "config.json"
  try:
    values = read_json(path, checked=False)
    base, theta, factor = (values["model"][name] for name in ("path", "rope_theta", "yarn_factor"))
    length = values["synthesis"]["sequence_length"]
  except (KeyError, TypeError) as error:
    raise UserError(f"{path} is not the config of a run: it lacks {error}") from error
  base = hub.folder(paths.expand(base) if base_model is None else base_model, workdir.hub_json)
  places = [base] if base_model is not None else dict.fromkeys((paths.seen_from(base, workdir.started_in), base))
  found = next((place for place in places if gguf_file.parts(place)[0].exists()), None)
  if found is None:
    said = (f"--base_model is {base}, which is not there" if base_model is not None else
            f"the run in {workdir.directory} started from {base}, which is not there any more (seen from "
            f"{workdir.started_in}): say with --base_model=PATH where it is now")
    raise UserError(f"{said}; its shape and its tokenizer are needed")
  config = hf.read_model_config(found)
  tokenizer = tokenizer_of(found, config)
  ends = end_tokens(tokenizer, found)
  identity.check_base(workdir, found, identity.described(config, tokenizer, ends))
  return config.with_rope(theta=theta, yarn_factor=factor).trained_on(length), tokenizer, ends


def _described(directory: pathlib.Path) -> _Description:
  """What `describe` wrote."""
  path = directory / _MODEL
  _check(directory, lambda name: not name.startswith("params/"))
  try:
    values = json.loads(path.read_text())
    if yarn := values.pop("yarn", None):  # as it was called when there was no other scaling
      values["rope_scaling"] = {"rope_type": "yarn", **yarn}
    config = ModelConfig(**values | {"rope_scaling": rope.from_dict(values.get("rope_scaling")),
                                     "unrotated": tuple(values.get("unrotated", ()))})
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
  params = found["params"] if of_state else found
  _refuse_not_finite(params, folder)
  return params


def _refuse_not_finite(params: Params, folder: pathlib.Path) -> None:
  finite = jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree))(params)
  for path, whole in jax.tree_util.tree_leaves_with_path(jax.device_get(finite)):
    if not whole:
      name = ".".join(str(key.key) for key in path)
      raise UserError(f"{name} in {folder} holds NaN or infinite values: its training went wrong, or the files are "
                      "damaged")
