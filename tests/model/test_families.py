"""Models as users bring them, from files written by hand: logits, heads and windows are those of transformers."""

import json
import logging

import checkpoints
import families
import jax
import jax.numpy as jnp
import make_models_page
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from policylong import convert
from policylong.errors import UserError
from policylong.model import hf, qwen, stored

# float32 logits up to 17 over two to five layers, as in test_logits.py
TOLERANCE = 1e-4
QUICK = [*((family, "as published") for family in families.FAMILIES),
         *(("Qwen2.5", feature) for feature in ("linear", "yarn, model card", "yarn, all settings", "tied, own head",
                                                "tied, head alone"))]


def _written(family, feature, folder, change=None, weights=None, tokenizer=False):
  """A cell's directory, its fields changed by a dict and its tensors by a function."""
  path = families.write(family, feature, folder / families.key(family, feature))
  if change:
    fields = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(fields))
  if weights:
    tensors = load_file(path / "model.safetensors")
    weights(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
  if tokenizer:
    checkpoints.tokenizer().save_pretrained(path)
  return path


def _loaded(path):
  config = hf.read_model_config(path)
  return hf.load_params(path, config, jnp.float32), config


def _params(cells):
  return [pytest.param(*cell, id="-".join(cell), marks=[] if cell in QUICK else pytest.mark.slow) for cell in cells]


@pytest.fixture(scope="module")
def references():
  with np.load(make_models_page.HERE / "family_logits.npz") as found:
    return dict(found)


@pytest.mark.parametrize(("family", "feature"), _params(families.cells()))
def test_logits_are_those_of_transformers_to_four_times_the_window(family, feature, references, tmp_path):
  params, config = _loaded(_written(family, feature, tmp_path))
  logits = np.asarray(make_models_page.logits_of(params, config, families.tokens(family)))[0]
  wanted = references[families.key(family, feature)]
  np.testing.assert_allclose(logits[families.POSITIONS][:, families.COLUMNS], wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_scaling_shows_in_the_references(family, references):
  """Else a scaling that is not read could pass."""
  default = references[families.key(family, "default")]
  for feature in families.FEATURES:
    if feature.startswith(("linear", "llama3", "yarn")):
      assert np.abs(references[families.key(family, feature)] - default).max() > 50 * TOLERANCE, feature


def test_the_page_has_every_cell_within_the_tolerance():
  lines = make_models_page.PAGE.read_text().splitlines()
  assert "|  | " + " | ".join(families.FAMILIES) + " |" in lines
  for feature in families.FEATURES:
    cells = next(line for line in lines if line.startswith(f"| {feature} |")).strip("| ").split(" | ")[1:]
    assert len(cells) == len(families.FAMILIES)
    assert all(float(cell) < TOLERANCE for cell in cells)


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("feature", families.FEATURES)
def test_the_export_says_the_same_to_transformers(family, feature, tmp_path):
  """By transformers' own reading of both config.json; make_family_references.py compares the logits."""
  path = _written(family, feature, tmp_path)
  config = hf.read_model_config(path)
  params = qwen.abstract_params(config, jnp.float32)
  hf.export_hf(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params), config, checkpoints.tokenizer(),
               tmp_path / "out")
  assert hf.read_model_config(tmp_path / "out") == config
  before, after = (transformers.AutoConfig.from_pretrained(folder) for folder in (path, tmp_path / "out"))
  for read in (before, after):
    read.standardize_rope_params()  # as its model does before it reads them
  kept = {key: value for key, value in before.rope_parameters.items() if key not in ("type", "finetuned")}
  assert {key: after.rope_parameters.get(key) for key in kept} == kept
  assert after.tie_word_embeddings == config.tied
  for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
               "rms_norm_eps", "hidden_act", "layer_types", "no_rope_layers", "model_type"):
    assert getattr(after, name, None) == getattr(before, name, None), name
  assert after.architectures == [type(before).__name__.replace("Config", "ForCausalLM")]


# Windows in tokens: factor x original however max_position_embeddings is written; llama3 says its own.
@pytest.mark.parametrize(("fields", "window"), [
    ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, 256),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64},
      "max_position_embeddings": 80}, 256),  # as Qwen3: 40,960 beside 32,768
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 256),
    ({"rope_scaling": {"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 16, "finetuned": True},
      "max_position_embeddings": 512}, 512),
    ({"rope_scaling": {"rope_type": "yarn", "factor": None}, "original_max_position_embeddings": 16}, 64),
    ({"rope_scaling": None, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.5,
                                                "original_max_position_embeddings": 64}}, 160),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                       "original_max_position_embeddings": 32}}, 64),
    ({"rope_scaling": {"type": "default"}}, 64),
])
def test_the_window_is_what_the_scaling_stretches_to(fields, window, tmp_path):
  assert hf.read_model_config(_written("Qwen2.5", "default", tmp_path, fields)).max_positions == window


def test_the_base_is_read_where_transformers_reads_it(tmp_path):
  def theta(name, fields):
    return hf.read_model_config(_written("Llama 3", "default", tmp_path / name, fields)).rope_theta
  inside = {"rope_type": "default", "rope_theta": 7e4}
  assert theta("inside", {"rope_theta": 5e4, "rope_parameters": inside}) == 7e4
  assert theta("outside", {"rope_theta": 50_000, "rope_parameters": {"rope_type": "default"}}) == 5e4
  assert theta("nowhere", {"rope_theta": None}) == 1e4
  smollm3 = hf.read_model_config(_written("SmolLM3", "default", tmp_path, {"rope_theta": None}))
  assert smollm3.rope_theta == 2e6 and smollm3.unrotated == (3,)


@pytest.mark.parametrize("family", ["Llama 3.2", "Qwen2.5", "Qwen3", "Mistral 0.3", "SmolLM3"])
def test_a_tied_config_keeps_another_head_and_says_so_and_not_a_copy(family, tmp_path, caplog):
  def copied(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

  def nearly(tensors):
    copied(tensors)
    tensors["lm_head.weight"][-1, -1] += 1e-3
  with caplog.at_level(logging.WARNING):
    params, config = _loaded(_written(family, "tied", tmp_path / "copy", weights=copied))
  assert config.tied and "head" not in params and not caplog.records
  with caplog.at_level(logging.WARNING):
    path = _written(family, "tied", tmp_path / "own", weights=nearly)
    params, config = _loaded(path)
  assert [record.getMessage() for record in caplog.records] == [
      f"{path}/config.json says tie_word_embeddings, but the weights hold another lm_head.weight: it is kept as the "
      "model's head"]
  assert not config.tied
  np.testing.assert_array_equal(params["head"], load_file(path / "model.safetensors")["lm_head.weight"])


def test_a_head_of_its_own_goes_through_orbax_and_back(tmp_path):
  source = _written("Llama 3.2", "tied, own head", tmp_path, tokenizer=True)
  assert convert.hf_to_orbax(source, tmp_path / "orbax", jnp.float32) == 0
  assert convert.orbax_to_hf(tmp_path / "orbax", tmp_path / "back", jnp.float32) == 0
  before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "back"))
  assert before.keys() == after.keys()
  np.testing.assert_array_equal(before["lm_head.weight"], after["lm_head.weight"])
  assert json.loads((tmp_path / "back" / "config.json").read_text())["tie_word_embeddings"] is False


def _described(config, folder):
  folder.mkdir()
  stored.describe(config, checkpoints.tokenizer(), frozenset({0}), folder)
  return folder


@pytest.mark.parametrize("feature", families.FEATURES)
@pytest.mark.parametrize("family", ["SmolLM3", "Llama 3.1"])
def test_an_orbax_folder_says_what_the_model_is(family, feature, tmp_path):
  config = hf.read_model_config(_written(family, feature, tmp_path))
  assert stored.open_model(_described(config, tmp_path / "orbax")).config == config


def test_model_json_of_before_there_were_other_scalings_is_read(tmp_path):
  config = hf.read_model_config(_written("Qwen3", "yarn, model card", tmp_path))
  where = _described(config, tmp_path / "orbax") / "model.json"
  values = json.loads(where.read_text())
  del values["unrotated"]
  values["yarn"] = values.pop("rope_scaling")
  del values["yarn"]["rope_type"]
  where.write_text(json.dumps(values))
  assert stored.open_model(where.parent).config == config


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, np.float64])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_float_that_is_none_is_seen_wherever_it_stands(dtype, value):
  for place in (0, 1000, -1):
    array = np.linspace(-3, 3, 2001).astype(dtype)
    limits = jnp.finfo(dtype)
    array[3:5] = limits.max, limits.min
    assert hf.all_finite(array) and hf.all_finite(-np.abs(array))
    array[place] = value
    assert not hf.all_finite(array) and not hf.all_finite(array.reshape(3, 667))
  assert hf.all_finite(np.zeros((0, 4), dtype))


@pytest.mark.parametrize(("name", "value"), [("model.layers.1.mlp.up_proj.weight", np.nan),
                                             ("model.norm.weight", np.inf), ("model.embed_tokens.weight", -np.inf)])
def test_weights_that_are_no_numbers_are_refused_by_name(name, value, tmp_path):
  def spoil(tensors):
    tensors[name].flat[7] = value
  path = _written("Qwen2.5", "default", tmp_path, weights=spoil)
  for dtype in (jnp.float32, jnp.bfloat16):
    with pytest.raises(UserError, match=f"tensor {name} in .* holds NaN or infinite values"):
      hf.load_params(path, hf.read_model_config(path), dtype)


def test_orbax_weights_that_are_no_numbers_are_refused_by_name(tmp_path):
  source = _written("Qwen2.5", "default", tmp_path, tokenizer=True)
  params, config = _loaded(source)
  params["layers"]["gate"] = params["layers"]["gate"].at[1, 2, 3].set(jnp.nan)
  convert.save_orbax(params, config, checkpoints.tokenizer(), frozenset(), tmp_path / "orbax")
  with pytest.raises(UserError, match=r"layers\.gate in .* holds NaN or infinite values"):
    stored.open_model(tmp_path / "orbax").load(None, None)
