"""`config.json` of an HF directory to `ModelConfig` and back.

What changes the maths and is not supported is refused by name.
"""

import json
import pathlib

from policylong.errors import UserError
from policylong.model import rope
from policylong.model.qwen import ModelConfig

_CLASSES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
_YARN_KEYS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
              "mscale_all_dim", "truncate")


def read_config(path: pathlib.Path) -> ModelConfig:
  """What model an HF directory holds, by its config.json.

  Raises:
    UserError: the file is missing or damaged, the architecture is unknown, or a field is not supported.
  """
  where = path / "config.json"
  try:
    values = json.loads(where.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{where} cannot be read as JSON ({error}): give an HF model directory or a GGUF file") from error
  if not isinstance(values, dict):
    raise UserError(f"{where} holds a {type(values).__name__}, wanted an object of fields")
  return from_dict(values, str(where))


def from_dict(values: dict, where: str) -> ModelConfig:
  """The model that the fields of a config.json describe; `where` names the file in errors.

  Raises:
    UserError: the architecture is unknown, or a field is missing, of the wrong type or not supported.
  """
  family = values.get("model_type")
  if family not in _CLASSES:
    raise UserError(f"{where} says model_type {family!r}; supported are {', '.join(_CLASSES)}")

  def get(name: str, default=None, kind: type = int):
    value = values.get(name)
    value = default if value is None else value
    if value is None:
      raise UserError(f"{where} has no field {name}, which a {family} model needs")
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, kind)):
      raise UserError(f"{where} has {name} = {value!r}, wanted a value of type {kind.__name__}")
    return kind(value)

  heads, width, layers = get("num_attention_heads"), get("hidden_size"), get("num_hidden_layers")
  positions = get("max_position_embeddings")
  _refuse_unsupported(values, where, family, layers)
  theta, yarn = _read_rope(values, where, positions)
  return ModelConfig(
      family=family, vocab_size=get("vocab_size"), embed_dim=width, mlp_dim=get("intermediate_size"),
      num_layers=layers, num_heads=heads, num_kv_heads=get("num_key_value_heads", heads),
      head_dim=get("head_dim", 128 if family == "qwen3" else width // heads),
      norm_eps=get("rms_norm_eps", 1e-6, float), rope_theta=theta, yarn=yarn, max_positions=positions,
      tied=get("tie_word_embeddings", False, bool))


def _refuse_unsupported(values: dict, where: str, family: str, layers: int) -> None:
  wanted = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0,
            "quantization_config": None}
  if family == "qwen2":
    wanted.pop("attention_bias")  # its q/k/v bias is no option
  for name, value in wanted.items():
    found = values.get(name, value)
    if found is not None and found != value:
      raise UserError(f"{where} has {name} = {found!r}, which is not supported for {family} (wanted {value!r})")
  kinds = values.get("layer_types") or ()
  sliding = [kind for kind in kinds if kind != "full_attention"]
  if sliding:
    raise UserError(f"{where} has layer_types with {sliding[0]!r}; only full_attention is supported")
  window = values.get("sliding_window")
  # transformers slides from layer max_window_layers (28 where the file does not say) on
  if values.get("use_sliding_window") and window and values.get("max_window_layers", 28) < layers and not kinds:
    raise UserError(f"{where} uses a sliding window of {window} tokens, which is not supported")


def _read_rope(values: dict, where: str, positions: int) -> tuple[float, rope.Yarn | None]:
  """RoPE's base and scaling, from transformers 5's `rope_parameters` or the older `rope_theta`, `rope_scaling`."""
  found = values.get("rope_parameters") or values.get("rope_scaling") or {}
  theta = found.get("rope_theta", values.get("rope_theta"))
  theta = 10000.0 if theta is None else theta
  if not isinstance(theta, (int, float)):
    raise UserError(f"{where} has rope_theta = {theta!r}, wanted a number")
  kind = found.get("rope_type", found.get("type", "default"))
  known = {"rope_theta", "rope_type", "type", "partial_rotary_factor", *_YARN_KEYS}
  if kind not in ("default", "yarn"):
    raise UserError(f"{where} uses RoPE scaling {kind!r}; supported are 'default' and 'yarn'")
  unknown = sorted(set(found) - known)
  if unknown:
    raise UserError(f"{where} has {unknown[0]} among its RoPE settings, which is not supported")
  if found.get("partial_rotary_factor", 1.0) != 1.0:
    raise UserError(f"{where} has partial_rotary_factor = {found['partial_rotary_factor']}; only 1.0 is supported")
  if kind == "default":
    return float(theta), None
  stored = "original_max_position_embeddings"
  original = values.get(stored) or found.get(stored) or positions
  given = {key: found[key] for key in _YARN_KEYS if found.get(key) is not None}
  given.pop(stored, None)
  given.setdefault("factor", positions / original)
  return float(theta), rope.Yarn(original_max_positions=original, **given)


def to_dict(config: ModelConfig, dtype: str) -> dict:
  """The fields of a config.json that transformers 4 and 5 both read; `dtype` is that of the weights."""
  values = {
      "architectures": [_CLASSES[config.family]], "model_type": config.family, "vocab_size": config.vocab_size,
      "hidden_size": config.embed_dim, "intermediate_size": config.mlp_dim, "num_hidden_layers": config.num_layers,
      "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
      "head_dim": config.head_dim, "hidden_act": "silu", "max_position_embeddings": config.max_positions,
      "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta, "tie_word_embeddings": config.tied,
      "torch_dtype": dtype, "use_cache": True, "attention_dropout": 0.0,
  }
  if config.family != "qwen2":
    values["attention_bias"] = False
  if config.family != "llama":
    values["use_sliding_window"] = False
  if config.yarn is not None:
    yarn = config.yarn
    scaling = {"rope_type": "yarn", "factor": yarn.factor, "beta_fast": yarn.beta_fast, "beta_slow": yarn.beta_slow,
               "original_max_position_embeddings": yarn.original_max_positions, "truncate": yarn.truncate,
               "attention_factor": yarn.attention_factor, "mscale": yarn.mscale,
               "mscale_all_dim": yarn.mscale_all_dim}
    values["rope_scaling"] = {key: value for key, value in scaling.items() if value is not None}
  return values
