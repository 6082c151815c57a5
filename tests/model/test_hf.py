"""Checkpoints in and out: the same weights, HF's own names, and a sentence for whatever is wrong."""

import json
import pathlib
import subprocess
import sys

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from policylong.errors import UserError
from policylong.model import hf, names


def load(path, dtype=jnp.float32, **options):
  return hf.load_params(path, hf.read_model_config(path), dtype, **options)


@pytest.mark.parametrize("case", seeded.CASES)
def test_export_has_transformers_names_shapes_and_values(case, models, tmp_path):
  source = checkpoints.write_hf(models, case, tmp_path / "in")
  config = hf.read_model_config(source)
  hf.export_hf(load(source), config, checkpoints.tokenizer(), tmp_path / "out")
  written = load_file(tmp_path / "out" / "model.safetensors")
  assert {name: list(array.shape) for name, array in written.items()} == models[case]["tensors"]
  for name, array in checkpoints.tensors(models, case).items():
    np.testing.assert_array_equal(written[name], array)
  assert hf.read_model_config(tmp_path / "out") == config
  saved = json.loads((tmp_path / "out" / "config.json").read_text())
  # the window, which YaRN stretches whether the file that was read counts that in or not
  wanted = models[case]["config"] | {"max_position_embeddings": config.max_positions}
  rope = {"rope_theta": saved["rope_theta"], "rope_type": "default"} | saved.get("rope_scaling", {})
  assert wanted["rope_parameters"].items() <= rope.items()
  same = set(wanted) & set(saved)
  assert {key: saved[key] for key in same} == {key: wanted[key] for key in same}


def test_export_in_several_files_reads_back_the_same(models, tmp_path):
  source = checkpoints.write_hf(models, "qwen3", tmp_path / "in")
  config, params = hf.read_model_config(source), load(source)
  hf.export_hf(params, config, checkpoints.tokenizer(), tmp_path / "out", shard_bytes=50_000)
  files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
  assert len(files) > 2
  index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
  assert set(index["weight_map"].values()) == set(files)
  assert set(index["weight_map"]) == set(models["qwen3"]["tensors"])
  assert all((tmp_path / "out" / name).stat().st_size < 60_000 for name in files)
  jax.tree.map(np.testing.assert_array_equal, params, load(tmp_path / "out"))


def test_bfloat16_goes_out_and_in_bit_for_bit(models, tmp_path):
  source = checkpoints.write_hf(models, "llama_tied", tmp_path / "in")
  params = load(source, jnp.bfloat16)
  hf.export_hf(params, hf.read_model_config(source), checkpoints.tokenizer(), tmp_path / "out")
  with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
    assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
  jax.tree.map(np.testing.assert_array_equal, params, load(tmp_path / "out", jnp.bfloat16))


def test_export_leaves_nothing_behind_when_it_fails(models, tmp_path, monkeypatch):
  source = checkpoints.write_hf(models, "llama_tied", tmp_path / "in")
  config, params = hf.read_model_config(source), load(source)
  monkeypatch.setattr(checkpoints.PreTrainedTokenizerFast, "save_pretrained", lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    hf.export_hf(params, config, checkpoints.tokenizer(), tmp_path / "out")
  assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("case", ["llama", "qwen2_tied", "qwen2_untied", "qwen3", "qwen3_tied"])
def test_a_gguf_file_holds_the_same_model(case, models, tmp_path):
  directory = checkpoints.write_hf(models, case, tmp_path / "in")
  file = checkpoints.write_gguf(models, case, tmp_path / "model.gguf")
  assert hf.read_model_config(file) == hf.read_model_config(directory)
  jax.tree.map(np.testing.assert_array_equal, load(file), load(directory))


def test_the_smollm2_file_is_read_as_what_it_is(material):
  config = hf.read_model_config(material / "smollm2.gguf")
  assert (config.num_layers, config.num_heads, config.num_kv_heads, config.embed_dim) == (30, 9, 3, 576)
  assert (config.vocab_size, config.max_positions, config.norm_eps, config.tied) == (49152, 8192, 1e-5, True)


def test_older_fields_of_config_json_mean_the_same(models, tmp_path):
  for case in ("qwen2_tied", "qwen3_yarn"):
    new = checkpoints.write_hf(models, case, tmp_path / case)
    fields = json.loads((new / "config.json").read_text())
    scaling = fields.pop("rope_parameters")
    fields["rope_theta"] = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    old = tmp_path / f"{case}-old"
    old.mkdir()
    (old / "config.json").write_text(json.dumps(fields | {"rope_scaling": scaling if len(scaling) > 1 else None}))
    assert hf.read_model_config(old) == hf.read_model_config(new)


def test_tables_of_rope_and_a_copy_of_a_tied_head_are_left_aside(models, tmp_path):
  def add(weights):
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
  path = checkpoints.write_hf(models, "qwen2_tied", tmp_path / "in", add)
  assert "head" not in load(path)


def test_a_bare_decoder_whose_names_lack_their_prefix_is_the_same_model(models, tmp_path):
  """Qwen3-Embedding's checkpoints are written like that."""
  def strip(weights):
    for name in list(weights):
      weights[name.removeprefix("model.")] = weights.pop(name)
  whole = checkpoints.write_hf(models, "qwen2_tied", tmp_path / "whole")
  bare = checkpoints.write_hf(models, "qwen2_tied", tmp_path / "bare", strip)
  jax.tree.map(np.testing.assert_array_equal, load(whole), load(bare))


def _broken_weights(weights, how, name, array=None):
  match how:
    case "missing":
      del weights[name]
    case "set":
      weights[name] = array


@pytest.mark.parametrize(("case", "how", "name", "array", "said"), [
    ("qwen3", "missing", "model.layers.1.self_attn.k_norm.weight", None, "is missing from"),
    ("qwen2_untied", "missing", "lm_head.weight", None, "is missing from"),
    ("llama", "set", "model.layers.0.self_attn.q_proj.bias", np.zeros(64, np.float32), "fits no weight"),
    ("llama", "set", "model.layers.3.mlp.up_proj.weight", np.zeros((48, 64), np.float32), "fits no weight"),
    ("llama", "set", "model.layers.2.mlp.up_proj.weight", np.zeros((64, 48), np.float32),
     r"shape \[64, 48\], wanted \[48, 64\]"),
    ("llama", "set", "model.norm.weight", np.zeros(64, np.int8), "type I8"),
])
def test_a_wrong_tensor_is_refused_by_name(case, how, name, array, said, models, tmp_path):
  path = checkpoints.write_hf(models, case, tmp_path, lambda weights: _broken_weights(weights, how, name, array))
  with pytest.raises(UserError, match=said) as caught:
    load(path)
  assert name in str(caught.value)


def test_a_tensor_in_two_files_is_refused_by_name(models, tmp_path):
  path = checkpoints.write_hf(models, "llama", tmp_path)
  weights = load_file(path / "model.safetensors")
  (path / "model.safetensors").unlink()
  save_file(weights, path / "a.safetensors")
  save_file({"model.norm.weight": weights["model.norm.weight"]}, path / "b.safetensors")
  weight_map = dict.fromkeys(weights, "a.safetensors") | {"model.norm.weight": "b.safetensors"}
  (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
  with pytest.raises(UserError, match=r"model\.norm\.weight is in .* twice"):
    load(path)


def test_one_file_counts_before_many_as_for_transformers(models, tmp_path, caplog):
  path = checkpoints.write_hf(models, "llama", tmp_path)
  other = {name: 2 * array for name, array in load_file(path / "model.safetensors").items()}
  save_file(other, path / "a.safetensors")
  alone = load(path)
  (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(other, "a.safetensors")}))
  jax.tree.map(np.testing.assert_array_equal, alone, load(path))
  assert "has both model.safetensors and model.safetensors.index.json: the former is read" in caplog.text


def test_an_adapter_is_refused_beside_whole_weights_and_alone(models, tmp_path):
  path = checkpoints.write_hf(models, "llama", tmp_path)
  (path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x/y"}')
  for name in ("config.json", "model.safetensors"):
    with pytest.raises(UserError, match=r"holds an adapter \(adapter_config.json\).*merge"):
      hf.read_model_config(path)
    (path / name).unlink()


@pytest.mark.parametrize(("fields", "said"), [
    ({"model_type": "gpt2"}, "model_type 'gpt2'; supported are"),
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ({"attention_bias": True}, "attention_bias = True"),
    ({"mlp_bias": True}, "mlp_bias = True"),
    ({"hidden_size": None}, "no field hidden_size"),
    ({"hidden_size": "64"}, "hidden_size = '64', wanted a value of type int"),
    ({"num_key_value_heads": 3}, "8 query heads, not divisible by its 3"),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "no low_freq_factor"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 2]}}, "mrope_section"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "sliding_attention"),
    ({"layer_types": None, "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1},
     "sliding window of 32"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
])
def test_an_unsupported_config_is_refused_by_field(fields, said, models, tmp_path):
  path = checkpoints.write_hf(models, "llama", tmp_path, fields=fields)
  with pytest.raises(UserError, match=said) as caught:
    hf.read_model_config(path)
  assert "\n" not in str(caught.value)


def _truncated(path: pathlib.Path) -> None:
  data = path.read_bytes()
  path.write_bytes(data[:len(data) * 2 // 3])


def test_damaged_files_are_refused_by_name(models, tmp_path):
  file = checkpoints.write_gguf(models, "llama", tmp_path / "model.gguf")
  _truncated(file)
  with pytest.raises(UserError, match=r"model\.gguf .* truncated"):
    hf.read_model_config(file)
  path = checkpoints.write_hf(models, "llama", tmp_path / "in")
  _truncated(path / "model.safetensors")
  with pytest.raises(UserError, match=r"model\.safetensors is missing, truncated"):
    load(path)
  (path / "model.safetensors").unlink()
  with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
    load(path)
  _truncated(path / "config.json")
  with pytest.raises(UserError, match=r"config\.json cannot be read"):
    load(path)
  for missing in ("nowhere.gguf", "nowhere"):
    with pytest.raises(UserError, match=f"{missing} cannot be read"):
      hf.read_model_config(tmp_path / missing)
  (path / "text.gguf").write_text("no weights at all, only words")
  with pytest.raises(UserError, match=r"text\.gguf .* no GGUF file"):
    hf.read_model_config(path / "text.gguf")


def test_an_unsupported_gguf_field_is_refused_by_name(models, tmp_path):
  file = checkpoints.write_gguf(models, "qwen3", tmp_path / "a.gguf", [("qwen3.rope.scaling.attn_factor", 2.0)])
  with pytest.raises(UserError, match=r"qwen3\.rope\.scaling\.attn_factor = 2\.0"):
    hf.read_model_config(file)


def test_a_wrong_hash_is_refused_before_anything_is_read(models, tmp_path):
  import hashlib
  path = checkpoints.write_hf(models, "llama", tmp_path)
  right = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
  load(path, sha256=right)
  with pytest.raises(UserError, match=f"sha256 {right}, wanted {'0' * 64}"):
    load(path, sha256="0" * 64)


def test_the_table_of_names_is_one_to_one():
  for column in ("hf", "gguf", "path"):
    values = [getattr(entry, column) for entry in names.NAMES]
    assert len(set(values)) == len(values)


_MEASURE = """
import json, pathlib, resource, sys
import numpy as np
from safetensors.numpy import save_file
import jax.numpy as jnp
from policylong.model import hf, names
path = pathlib.Path(sys.argv[1])
config = hf.read_model_config(path)
jnp.zeros(1).block_until_ready()
params = hf.load_params(path, config, jnp.bfloat16)  # once small, so that the runtime is warm
def high(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
before = high()
config = hf.read_model_config(path.with_name("big"))
params = hf.load_params(path.with_name("big"), config, jnp.float32)
print(high() - before, sum(x.nbytes for x in __import__("jax").tree.leaves(params)),
      max(x.nbytes for x in __import__("jax").tree.leaves(params)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_never_holds_the_model_twice(models, tmp_path):
  """Loads 223 MB of float32 weights stored as float16: memory grows by the model and one stacked weight.

  The pages of the mapped file count as memory too; they are 112 MB of the bound and can be dropped at any time.
  """
  checkpoints.write_hf(models, "llama", tmp_path / "small")
  fields = json.loads((tmp_path / "small" / "config.json").read_text())
  fields |= {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16, "vocab_size": 4096}
  big = tmp_path / "big"
  big.mkdir()
  (big / "config.json").write_text(json.dumps(fields))
  wanted = names.tensors(hf.read_model_config(big), "hf")
  save_file({tensor.name: np.ones(tensor.shape, np.float16) for tensor in wanted}, big / "model.safetensors")
  result = subprocess.run([sys.executable, "-c", _MEASURE, str(tmp_path / "small")], capture_output=True, text=True,
                          check=True)
  grown, model, largest = map(int, result.stdout.split()[-3:])
  mapped = (big / "model.safetensors").stat().st_size
  print(f"{grown=} {model=} {largest=} {mapped=}")
  assert model > 200e6
  # the model twice would be 447 MB beside the mapped file, this is 306: 16 MB for tensors and the allocator
  assert grown < model + largest + mapped + 16e6
