"""`config.json` of an HF directory to `ModelConfig` and back.

Read as transformers 5.23 reads it, in the spelling of transformers 4 or 5. What changes the maths and is not followed
is refused by name (`fields.py`).
"""

import functools
import json
import logging
import math
import pathlib
from typing import Any

from policylong.errors import UserError
from policylong.model import fields, rope
from policylong.model.qwen import FAMILIES, ModelConfig

_CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM", "smollm3": "SmolLM3ForCausalLM"}
# What transformers takes where a family's file says nothing.
_THETA = {"smollm3": 2_000_000.0}
_SLIDING_WINDOW = {"mistral": 4096, "qwen2": 4096, "qwen3": 4096}
_MAX_WINDOW_LAYERS = 28
# A tensor of each is looked for by name: of more, that would be the end of the host's memory.
_MOST_LAYERS = 10_000
_MOE = ("mixtral", "dbrx", "jamba", "deepseek_v2", "deepseek_v3", "gpt_oss", "granitemoe", "phimoe", "llama4")
# The settings of each kind of RoPE scaling, beside rope_theta, rope_type, type and partial_rotary_factor; `finetuned`
# says how a model was made.
_ROPE_KEYS = {
    "default": (), "linear": ("factor", "original_max_position_embeddings", "finetuned"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
             "mscale_all_dim", "truncate", "finetuned")}


def read_config(path: pathlib.Path) -> ModelConfig:
  """What model an HF directory holds, by its config.json.

  Raises:
    UserError: the file is missing or damaged, the architecture is unknown, or a field is not supported.
  """
  where = path / "config.json"
  if (path / "adapter_config.json").exists():
    raise UserError(f"{path} holds an adapter (adapter_config.json), which changes the weights of another model: merge "
                    "the two (peft's merge_and_unload) and give the directory that results")
  try:
    values = json.loads(where.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:  # the last for brackets in brackets without end
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
  if family not in FAMILIES:
    experts = " (a mixture of experts)" if family in _MOE or "moe" in str(family) else ""
    raise UserError(f"{where} says model_type {family!r}{experts}; supported are {', '.join(FAMILIES)}")

  def get(name: str, default=None, kind: type[Any] = int):
    value = values.get(name)
    value = default if value is None else value
    if value is None:
      raise UserError(f"{where} has no field {name}, which a {family} model needs")
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, kind)):
      raise UserError(f"{where} has {name} = {value!r}, wanted a value of type {kind.__name__}")
    if kind is not bool and value <= 0:
      raise UserError(f"{where} has {name} = {value!r}, wanted a number above 0")
    return kind(value)

  fields.check(values, fields.CONFIG, where, {"attention_bias": (True,), "qkv_bias": (True,)} if family == "qwen2" else
               None)  # its bias is no option
  if values.get("auto_map"):
    _say(f"{where} names code of its own (auto_map), which is never run: the model is read as transformers' {family}")
  heads, width, layers = get("num_attention_heads"), get("hidden_size"), get("num_hidden_layers")
  if layers > _MOST_LAYERS:
    raise UserError(f"{where} has num_hidden_layers = {layers}, wanted at most {_MOST_LAYERS}")
  theta, scaling, window = _Rope(values, where).read(get("max_position_embeddings"), _THETA.get(family, 10_000.0))
  _refuse_sliding_window(values, where, family, layers, window)
  return ModelConfig(
      family=family, vocab_size=get("vocab_size"), embed_dim=width, mlp_dim=get("intermediate_size"),
      num_layers=layers, num_heads=heads, num_kv_heads=get("num_key_value_heads", heads),
      head_dim=get("head_dim", 128 if family == "qwen3" else width // heads),
      norm_eps=get("rms_norm_eps", 1e-6, float), rope_theta=theta, rope_scaling=scaling, max_positions=window,
      tied=get("tie_word_embeddings", family == "smollm3", bool),
      unrotated=_unrotated(values, where, family, layers))


def _refuse_sliding_window(values: dict, where: str, family: str, layers: int, window: int) -> None:
  """Refuses layers that see less than the model's window."""
  kinds = values.get("layer_types") or ()
  if not isinstance(kinds, (list, tuple)):
    raise UserError(f"{where} has layer_types = {kinds!r}, wanted a list of one kind a layer")
  sliding = [kind for kind in kinds if kind != "full_attention"]
  if sliding:
    raise UserError(f"{where} has layer_types with {sliding[0]!r}; only full_attention is supported")
  size = values.get("sliding_window", _SLIDING_WINDOW.get(family))
  always = family == "mistral"  # which has no switch for it; in a llama's file nothing else says that it slides
  slides = always or values.get("use_sliding_window", family == "llama")
  # Qwen slides from layer max_window_layers on
  first = values.get("max_window_layers", _MAX_WINDOW_LAYERS) if family in ("qwen2", "qwen3") else 0
  if slides and size and size < window and first < layers and (always or not kinds):
    raise UserError(f"{where} uses a sliding window of {size} tokens, less than the model's {window}, which is not "
                    "supported")


def _unrotated(values: dict, where: str, family: str, layers: int) -> tuple[int, ...]:
  """The layers without rotary positions: every fourth of SmolLM3 where the file does not list them."""
  rotated = values.get("no_rope_layers")
  if family != "smollm3":
    if rotated is not None:
      raise UserError(f"{where} has no_rope_layers, which is not supported for {family}")
    return ()
  if rotated is None:
    interval = values.get("no_rope_layer_interval", 4)
    if not isinstance(interval, int) or interval < 1:
      raise UserError(f"{where} has no_rope_layer_interval = {interval!r}, wanted an integer of at least 1")
    return tuple(range(interval - 1, layers, interval))
  if not isinstance(rotated, list) or len(rotated) < layers or any(value not in (0, 1) for value in rotated):
    raise UserError(f"{where} has no_rope_layers = {rotated!r}, wanted a list of 1 (rotated) or 0 for each of the "
                    f"{layers} layers")
  return tuple(i for i in range(layers) if not rotated[i])


class _Rope:
  """The rotary positions of a config.json: transformers 5's `rope_parameters`, or `rope_theta` and `rope_scaling`."""

  def __init__(self, values: dict, where: str):
    self._values, self._where = values, where
    spelled = {name: values.get(name) for name in ("rope_parameters", "rope_scaling")}
    for name, found in spelled.items():
      if found is not None and not isinstance(found, dict):
        raise UserError(f"{where} has {name} = {found!r}, a {type(found).__name__}, wanted an object of RoPE settings")
    new, old = (found or {} for found in spelled.values())
    if new and old and self._without_names(new) != self._without_names(old):
      raise UserError(f"{where} has both rope_parameters and rope_scaling, and they differ; keep one of them")
    self._found = new or old

  @staticmethod
  def _without_names(settings: dict) -> dict:
    """Settings with the kind under one name and without the base."""
    settings = {key: value for key, value in settings.items() if key != "rope_theta"}
    return settings | {"rope_type": settings.get("rope_type", settings.pop("type", None))}

  def read(self, positions: int, theta: float) -> tuple[float, rope.Scaling | None, int]:
    """The base (`theta` where the file has none), the scaling and the window: `positions`, or what they stretch to.

    YaRN and linear scaling stretch the original context by their factor whether max_position_embeddings counts that in
    or not; transformers' documentation asks to leave it as it was. llama3's max_position_embeddings is the window.
    """
    kind = self._kind()
    if self._found.get("rope_theta") is None and self._values.get("rope_theta") is not None:
      self._found = {**self._found, "rope_theta": self._values["rope_theta"]}
    theta = self._number("rope_theta", theta, above=1)
    if kind == "default":
      return theta, None, positions
    # beside the settings it counts more than in them, as for transformers
    outside = self._values.get("original_max_position_embeddings")
    original = round(self._number("original_max_position_embeddings", positions) if outside is None else
                     self._number("original_max_position_embeddings", None, of=self._values))
    implied = positions / original if kind == "yarn" and positions > original else None
    factor = self._number("factor", implied, above=1, or_equal=True)
    stretched = max(positions, round(factor * original))
    if kind == "linear":
      return theta, rope.Linear(original_max_positions=original, factor=factor), stretched
    if kind == "llama3":
      low, high = self._number("low_freq_factor"), self._number("high_freq_factor")
      if low >= high:
        raise UserError(f"{self._where} has low_freq_factor = {low:g}, wanted less than its high_freq_factor {high:g}")
      return theta, rope.Llama3(original_max_positions=original, factor=factor, low_freq_factor=low,
                                high_freq_factor=high), positions
    truncate = self._found.get("truncate", True)
    if not isinstance(truncate, bool):
      raise UserError(f"{self._where} has truncate = {truncate!r} among its RoPE settings, wanted true or false")
    given = {key: self._number(key) for key in ("beta_fast", "beta_slow", "attention_factor", "mscale",
                                                "mscale_all_dim") if self._found.get(key) is not None}
    return theta, rope.Yarn(original_max_positions=original, factor=factor, truncate=truncate, **given), stretched

  def _kind(self) -> str:
    found = self._found
    kind = found.get("rope_type", found.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
      raise UserError(f"{self._where} uses RoPE scaling {kind!r}; supported are {', '.join(_ROPE_KEYS)}")
    if found.get("type", kind) != kind:
      raise UserError(f"{self._where} says rope_type {kind!r} and type {found['type']!r} of one RoPE scaling")
    known = {"rope_theta", "rope_type", "type", "partial_rotary_factor", *_ROPE_KEYS[kind]}
    unknown = sorted(key for key, value in found.items() if key not in known and value is not None)
    if unknown:
      raise UserError(f"{self._where} has {unknown[0]} among its RoPE settings of type {kind}, which is not supported")
    if (found.get("partial_rotary_factor") or 1.0) != 1.0:
      raise UserError(f"{self._where} has partial_rotary_factor = {found['partial_rotary_factor']}; only 1.0 is "
                      "supported")
    return kind

  def _number(self, name: str, default: float | None = None, *, above: float = 0, or_equal: bool = False,
              of: dict | None = None) -> float:
    value = (self._found if of is None else of).get(name)
    value = default if value is None else value
    if value is None:
      raise UserError(f"{self._where} has no {name} among its RoPE settings, which this type needs")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not (
        value > above or (or_equal and value == above)):
      raise UserError(f"{self._where} has {name} = {value!r}, wanted a number {'of at least' if or_equal else 'above'} "
                      f"{above}")
    return float(value)


def to_dict(config: ModelConfig, dtype: str) -> dict:
  """The fields of a config.json that transformers 4 and 5 both read; `dtype` is that of the weights.

  Raises:
    UserError: its RoPE scaling has no name there.
  """
  values = {
      "architectures": [_CLASSES[config.family]], "model_type": config.family, "vocab_size": config.vocab_size,
      "hidden_size": config.embed_dim, "intermediate_size": config.mlp_dim, "num_hidden_layers": config.num_layers,
      "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
      "head_dim": config.head_dim, "hidden_act": "silu", "max_position_embeddings": config.max_positions,
      "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta, "tie_word_embeddings": config.tied,
      "torch_dtype": dtype, "use_cache": True, "attention_dropout": 0.0,
  }
  if config.family in ("llama", "qwen3", "smollm3"):
    values["attention_bias"] = False
  if config.family in ("llama", "smollm3"):
    values["mlp_bias"] = False
  if config.family in ("qwen2", "qwen3", "smollm3"):
    values["use_sliding_window"] = False
  if config.family == "mistral":
    values["sliding_window"] = None
  if config.family == "smollm3":
    values["no_rope_layers"] = [int(i not in config.unrotated) for i in range(config.num_layers)]
  if config.rope_scaling is not None:
    values["rope_scaling"] = _written(config)
    if isinstance(config.rope_scaling, rope.Linear):  # whose reader multiplies
      values["max_position_embeddings"] = math.ceil(config.max_positions / config.rope_scaling.factor)
  return values


def _written(config: ModelConfig) -> dict[str, Any]:
  """`rope_scaling` in the names of transformers."""
  scaling = config.rope_scaling
  if isinstance(scaling, rope.Divided):
    scaling = scaling.as_llama3(config.head_dim, config.rope_theta)
    if scaling is None:
      raise UserError("the model divides each RoPE frequency by a number of its own, and they follow no rule that "
                      "config.json has a name for: it cannot be written as an HF directory")
  settings = {key: value for key, value in rope.to_dict(scaling).items() if value is not None}
  original = settings.pop("original_max_positions")
  return settings if isinstance(scaling, rope.Linear) else settings | {"original_max_position_embeddings": original}


@functools.cache
def _say(sentence: str) -> None:
  """Logs a sentence once, however often a file is read."""
  logging.warning("%s", sentence)
