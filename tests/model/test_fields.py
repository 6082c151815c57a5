"""Which fields of config.json are read, passed over and refused."""

import json

import families
import make_models_page
import pytest
import transformers

from policylong.errors import UserError
from policylong.model import fields, hf_config

FAMILIES = sorted({values["model_type"]: name for name, values in reversed(families.FAMILIES.items())}.items())


def read(family="Qwen2.5", **changed):
  return hf_config.from_dict(families.fields(family, "default") | changed, "config.json")


@pytest.mark.parametrize(("model_type", "family"), FAMILIES)
def test_every_field_that_transformers_writes_is_known(model_type, family):
  """With its default, by 5 (this environment's) and by 4.57.6 (stored)."""
  stored = json.loads((make_models_page.HERE / "config_fields_4.json").read_text())[model_type]
  live = transformers.AutoConfig.for_model(model_type).to_dict()
  for written in (stored, live):
    assert len(written) > 20
    own = families.fields(family, "default")
    found = {key: value for key, value in written.items() if key not in (
        "rope_parameters", "rope_scaling", "layer_types", "no_rope_layers", "no_rope_layer_interval", "sliding_window",
        "head_dim")}
    assert hf_config.from_dict(found | own, "config.json") == hf_config.from_dict(own, "config.json")


# What libraries and trainers leave in published files, beside the fields of the config classes.
@pytest.mark.parametrize("extra", [
    {"rope_interleaved": False, "is_llama_config": True, "transformers.js_config": {"dtype": "q4"}},  # SmolLM2
    {"use_mrope": False, "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 36},  # Qwen2.5
    {"unsloth_version": "2025.3.1", "unsloth_fixed": True, "unsloth_training_date": "2025-03-01"},
    {"_attn_implementation_autoset": True, "_name_or_path": "Qwen/Qwen2.5-3B", "_commit_hash": "abc"},
    {"max_sequence_length": 4096, "_flash_attn_2_enabled": True, "tokenizer_class": "LlamaTokenizer"},
    {"transformers_version": "4.30.0", "torch_dtype": "bfloat16", "dtype": "bfloat16", "pretraining_tp": 2},
    {"temperature": 0.7, "do_sample": True, "repetition_penalty": 1.1, "suppress_tokens": [5]},
    {"quantization_config": None, "num_experts": 0, "logit_scale": 1.0, "partial_rotary_factor": 1.0},
    {"attention_dropout": 0.1, "resid_pdrop": 0.1, "router_aux_loss_coef": 0.001, "something_new": None, "other": {}},
    {"eos_token_id": [2, 3], "bos_token_id": 1, "pad_token_id": None, "image_token_id": 5},
])
def test_bookkeeping_changes_nothing(extra):
  assert read(**extra) == read()


@pytest.mark.parametrize(("name", "value"), [
    ("query_scaling", 2.0), ("embedding_multiplier", 12.0), ("residual_multiplier", 0.22), ("logits_scaling", 8.0),
    ("logit_scale", 0.0625), ("attention_multiplier", 0.0078), ("final_logit_softcapping", 30.0),
    ("attn_logit_softcapping", 50.0), ("hidden_act", "gelu"), ("hidden_act", "relu2"), ("mlp_bias", True),
    ("partial_rotary_factor", 0.5), ("num_experts", 8), ("num_local_experts", 8), ("n_routed_experts", 64),
    ("quantization_config", {"bits": 4}), ("quantization", {"group_size": 64, "bits": 4}), ("is_causal", False),
    ("dual_chunk_attention_config", {"chunk_size": 262144}), ("attention_chunk_size", 8192), ("clip_qkv", 8.0),
    ("rope_interleaved", True), ("use_mrope", True), ("vision_config", {"depth": 2}), ("attn_output_gate", True),
    ("use_qk_norm", True), ("nope_layer_interval", 4), ("gated", True), ("softmax_offset", 1), ("norm_type", "layer"),
    ("no_rope_layers", [1, 0]), ("layer_types", ["full_attention", "chunked_attention"]), ("layer_types", "full"),
    ("num_nextn_predict_layers", 1), ("alibi", True), ("pruned_heads", {"0": [1]}), ("per_layer_config", {"0": {}}),
    ("rope_local_base_freq", 1e4), ("global_rope_theta", 1e4), ("hidden_act", 1), ("attn_scale_version_of", 3),
])
def test_what_could_change_the_maths_is_refused_by_name(name, value):
  with pytest.raises(UserError, match=name) as caught:
    read(**{name: value})
  assert "\n" not in str(caught.value) and "config.json" in str(caught.value)


@pytest.mark.parametrize("family", ["Llama 3", "Qwen3", "Mistral 0.3", "SmolLM3"])
def test_a_bias_is_refused_where_the_family_has_none(family):
  with pytest.raises(UserError, match="attention_bias = True"):
    read(family, attention_bias=True)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss"])
def test_experts_are_refused_by_name(model_type):
  with pytest.raises(UserError, match=rf"model_type '{model_type}' \(a mixture of experts\); supported are llama"):
    read(model_type=model_type)


@pytest.mark.parametrize("model_type", ["olmo2", "gemma2", "phi3", "gpt2", None, 3, ["llama"]])
def test_other_families_are_refused_by_name(model_type):
  with pytest.raises(UserError, match="supported are llama, mistral, qwen2, qwen3, smollm3"):
    read(model_type=model_type)


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("value", ["yarn", "", ["yarn", 4], [], 4.0, 0, True, False])
def test_rope_settings_that_are_no_object_are_refused_in_one_sentence(spelling, value):
  said = rf"config\.json has {spelling} = .*, wanted an object of RoPE settings"
  with pytest.raises(UserError, match=said) as caught:
    read(**{spelling: value})
  assert "\n" not in str(caught.value)


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}


@pytest.mark.parametrize(("settings", "said"), [
    ({"type": "dynamic", "factor": 2.0}, "'dynamic'; supported are default, linear, llama3, yarn"),
    ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}, "'longrope'"),
    ({"type": "su"}, "'su'"), ({"type": "mrope", "mrope_section": [1, 1]}, "'mrope'"), ({"rope_type": 4}, "scaling 4"),
    ({"rope_type": "proportional", "factor": 2.0}, "'proportional'"), ({"rope_type": ["yarn"]}, "yarn"),
    ({"type": "mrope", "rope_type": "default"}, "rope_type 'default' and type 'mrope'"),
    ({"factor": 4.0}, "factor among its RoPE settings of type default"),
    ({"type": "linear"}, "no factor"),
    ({"type": "linear", "factor": 0.5}, "factor = 0.5, wanted a number of at least 1"),
    ({"type": "linear", "factor": "4"}, "factor = '4'"), ({"type": "linear", "factor": True}, "factor = True"),
    ({"type": "linear", "factor": float("nan")}, "factor = nan"),
    ({"type": "yarn"}, "no factor"),
    (YARN | {"original_max_position_embeddings": 0}, "original_max_position_embeddings"),
    (YARN | {"beta_fast": 0}, "beta_fast = 0"), (YARN | {"attention_factor": "1"}, "attention_factor = '1'"),
    (YARN | {"truncate": "no"}, "truncate = 'no'"), (YARN | {"mscale": -1}, "mscale = -1"),
    (YARN | {"extrapolation_factor": 1.0}, "extrapolation_factor among its RoPE settings of type yarn"),
    (YARN | {"partial_rotary_factor": 0.5}, "partial_rotary_factor"), (YARN | {"rope_theta": 1}, "rope_theta = 1"),
    (YARN | {"rope_theta": "1e6"}, "rope_theta = '1e6'"),
    ({key: value for key, value in LLAMA3.items() if key != "high_freq_factor"}, "no high_freq_factor"),
    (LLAMA3 | {"low_freq_factor": 4.0}, "low_freq_factor = 4, wanted less than its high_freq_factor 4"),
    (LLAMA3 | {"low_freq_factor": None}, "no low_freq_factor"),
    (LLAMA3 | {"attention_factor": 2.0}, "attention_factor"),
    ({"full_attention": YARN}, "full_attention"),
])
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_rope_settings_that_are_not_followed_are_refused_by_name(spelling, settings, said):
  with pytest.raises(UserError, match=said) as caught:
    read(**{spelling: settings})
  assert "\n" not in str(caught.value)


def test_two_spellings_that_differ_are_refused_and_two_that_agree_are_read():
  with pytest.raises(UserError, match="both rope_parameters and rope_scaling, and they differ"):
    read(rope_scaling=YARN, rope_parameters=LLAMA3)
  new = {**YARN, "rope_type": YARN["type"], "rope_theta": 1e6}
  del new["type"]
  assert read(rope_scaling=YARN, rope_parameters=new) == read(rope_scaling=YARN)


@pytest.mark.parametrize(("family", "changed", "used"), [
    ("Mistral 0.3", {"sliding_window": 32}, True), ("Mistral 0.3", {"sliding_window": 64}, False),
    ("Mistral 0.3", {"sliding_window": None}, False),
    ("Mistral 0.3", {"max_position_embeddings": 8192, "sliding_window": 4096, "use_sliding_window": False}, True),
    ("Mistral 0.3", {"sliding_window": 64, "rope_scaling": YARN}, True),
    ("Qwen2.5", {"use_sliding_window": True, "sliding_window": 32}, True),
    ("Qwen2.5", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2}, False),
    ("Qwen2.5", {"use_sliding_window": False, "sliding_window": 32}, False),
    ("Qwen3", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0}, True),
    ("Qwen3", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0,
               "layer_types": ["full_attention"] * 2}, False),
    ("Llama 3", {"sliding_window": 32}, True), ("Llama 3", {"sliding_window": 32, "use_sliding_window": False}, False),
    ("SmolLM3", {"use_sliding_window": True, "sliding_window": 32, "layer_types": None}, True),
])
def test_a_sliding_window_is_refused_where_it_is_in_use(family, changed, used):
  if used:
    with pytest.raises(UserError, match="sliding window of"):
      read(family, **changed)
  else:
    read(family, **changed)


def test_mistral_slides_where_its_file_says_nothing():
  """transformers' default is 4,096 tokens."""
  values = families.fields("Mistral 0.3", "default") | {"max_position_embeddings": 8192}
  del values["sliding_window"]
  with pytest.raises(UserError, match="sliding window of 4096 tokens, less than the model's 8192"):
    hf_config.from_dict(values, "config.json")


@pytest.mark.parametrize(("rotated", "layers"), [([1, 1, 1, 0, 1], (3,)), ([0, 1, 0, 1, 1], (0, 2)), (None, (3,)),
                                                 ([1] * 5, ()), ([1, 1, 1, 0, 1, 0], (3,))])
def test_layers_without_rotation_are_read_from_the_list(rotated, layers):
  assert read("SmolLM3", no_rope_layers=rotated).unrotated == layers


def test_a_list_of_layers_that_is_none_is_refused():
  for value in ([1, 1], "1110", [2] * 5, 4):
    with pytest.raises(UserError, match="no_rope_layers"):
      read("SmolLM3", no_rope_layers=value)


def test_gguf_names_are_in_the_same_table():
  known = {"context_length": 64, "rope.scaling.finetuned": True, "expert_count": 0, "general.name": "x",
           "tokenizer.ggml.model": "gpt2", "attention.causal": True}
  fields.check(known, fields.GGUF, "a.gguf")
  fields.check({"attention.value_length": 16}, fields.GGUF, "a.gguf", {"attention.value_length": (16,)})
  for name, value in (("expert_count", 8), ("final_logit_softcapping", 30.0), ("attention.new", 1), ("rope.new", 2.0),
                      ("attention.causal", False)):
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
      fields.check({name: value}, fields.GGUF, "a.gguf")
  with pytest.raises(UserError, match=r"attention\.value_length = 8"):
    fields.check({"attention.value_length": 8}, fields.GGUF, "a.gguf", {"attention.value_length": (16,)})
