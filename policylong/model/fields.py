"""What the fields of a model's files change: one table for config.json and for GGUF metadata.

A reader takes the fields that it knows what to do with and lets `check` judge all of them: a field that would change
the maths in a way that nobody here follows is refused, and so is one that nobody here has heard of, unless it is empty
or its name says that it is bookkeeping. GGUF names stand without the architecture before them (qwen2.context_length is
context_length here); those under "tokenizer." are the tokenizer's business and not in the table.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from policylong.errors import UserError

CONFIG, GGUF = "config", "gguf"


@dataclasses.dataclass(frozen=True)
class Field:
  """One fact about a model and what the two kinds of file call it ("" where one has no name for it).

  changes: "maths", "tokens", "stopping" or "nothing" of what is computed here. only: the values that are supported
  where no reader does anything with the field; () means that a reader does.
  """
  changes: str
  config: str
  gguf: str
  only: tuple[Any, ...] = ()


_READ = (
    ("model_type", "general.architecture"), ("vocab_size", "vocab_size"), ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"), ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"), ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"), ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("max_position_embeddings", "context_length"), ("rope_theta", "rope.freq_base"), ("rope_parameters", ""),
    ("rope_scaling", "rope.scaling.type"), ("", "rope.scaling.factor"), ("", "rope.scale_linear"),
    ("original_max_position_embeddings", "rope.scaling.original_context_length"), ("tie_word_embeddings", ""),
    ("layer_types", ""), ("sliding_window", "attention.sliding_window"), ("use_sliding_window", ""),
    ("max_window_layers", ""), ("no_rope_layers", ""), ("no_rope_layer_interval", ""), ("auto_map", ""),
    ("", "attention.value_length"), ("", "rope.dimension_count"),
    ("", "rope.scaling.attn_factor"), ("", "rope.scaling.yarn_log_multiplier"),
    ("", "rope.scaling.yarn_ext_factor"), ("", "rope.scaling.yarn_attn_factor"),
    ("", "rope.scaling.yarn_beta_fast"), ("", "rope.scaling.yarn_beta_slow"),
)
# With what they would have to say to change nothing.
_NOT_FOLLOWED = (
    # the layer
    ("hidden_act", "", "silu", "swish"), ("hidden_activation", "", "silu", "swish"), ("attention_bias", "", False),
    ("qkv_bias", "", False), ("mlp_bias", "", False), ("use_bias", "", False), ("bias", "", False),
    ("use_qk_norm", "", False), ("qk_layernorm", "", False), ("attn_output_gate", "", False),
    ("use_parallel_residual", "use_parallel_residual", False), ("parallel_attn", "", False), ("alibi", "", False),
    ("is_causal", "attention.causal", True), ("use_bidirectional_attention", "", False),
    ("is_decoder", "", False, True), ("is_encoder_decoder", "", False), ("add_cross_attention", "", False),
    ("pruned_heads", ""), ("clip_qkv", ""),
    ("", "attention.clamp_kqv", 0.0), ("", "attention.max_alibi_bias", 0.0), ("", "attention.layer_norm_epsilon"),
    ("dual_chunk_attention_config", ""), ("attention_chunk_size", ""), ("attn_temperature_tuning", "", False),
    # rotary positions
    ("partial_rotary_factor", "", 1.0), ("rotary_pct", "", 1.0), ("rope_interleaved", "", False),
    ("use_mrope", "", False), ("rope_ratio", "", 1.0), ("", "rope.dimension_sections"),
    # scales
    ("logit_scale", "logit_scale", 1.0), ("logits_scaling", "", 1.0), ("embedding_multiplier", "embedding_scale", 1.0),
    ("residual_multiplier", "residual_scale", 1.0), ("lm_head_multiplier", "", 1.0), ("attention_multiplier", ""),
    ("", "attention.scale"), ("query_pre_attn_scalar", ""), ("scale_emb", "", 1.0),
    ("final_logit_softcapping", "final_logit_softcapping"), ("attn_logit_softcapping", "attn_logit_softcapping"),
    # experts and further heads
    ("num_experts", "expert_count", 0, 1), ("num_local_experts", "", 0, 1), ("n_routed_experts", "", 0),
    ("num_experts_per_tok", "expert_used_count", 0), ("moe_intermediate_size", "expert_feed_forward_length", 0),
    ("num_nextn_predict_layers", "nextn_predict_layers", 0), ("mtp_num_layers", "", 0),
    # how weights are stored
    ("quantization_config", ""), ("quantization", ""), ("compression_config", ""), ("sparsity_config", ""),
    # other than one text model
    ("text_config", ""), ("vision_config", ""), ("audio_config", ""), ("per_layer_config", ""),
)
_TOKENS = (("bos_token_id", ""), ("pad_token_id", ""), ("sep_token_id", ""), ("decoder_start_token_id", ""),
           ("tokenizer_class", ""), ("model_max_length", ""))
_STOPPING = (("eos_token_id", ""),)
# What a library wrote down for itself, what only training reads, and what generation here takes from its own settings.
_NOTHING = (
    "architectures", "is_llama_config", "torch_dtype", "dtype", "use_cache", "use_bfloat16", "torchscript",
    "pretraining_tp", "return_dict", "name_or_path", "initializer_range", "initializer_factor",
    "chunk_size_feed_forward", "output_attentions", "output_hidden_states", "output_scores", "output_router_logits",
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params", "prefix",
    "tie_encoder_decoder", "tie_last_hidden_states", "cross_attention_hidden_size", "tf_legacy_loss",
    "keys_to_ignore_at_inference", "max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping",
    "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "min_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "return_dict_in_generate",
    "max_sequence_length", "max_seq_len", "max_seq_length", "seq_length", "seq_len", "attn_implementation",
    "use_flash_attn", "use_flash_attention", "use_flash_attention_2", "use_fused_rms_norm", "gradient_checkpointing",
    "use_cache_quantization", "neftune_noise_alpha")
TABLE = (
    *(Field("maths", *names) for names in _READ),
    *(Field("maths", config, gguf, (None, *only)) for config, gguf, *only in _NOT_FOLLOWED),
    *(Field("tokens", *names) for names in _TOKENS), *(Field("stopping", *names) for names in _STOPPING),
    *(Field("nothing", name, "") for name in _NOTHING), Field("nothing", "", "rope.scaling.finetuned"),
    Field("nothing", "", "tensor_data_layout"), Field("nothing", "", "pooling_type"),
)
_BY_NAME = {form: {getattr(row, form): row for row in TABLE if getattr(row, form)} for form in (CONFIG, GGUF)}

# Names that say by themselves that the field is bookkeeping.
_BOOKKEEPING = {
    CONFIG: re.compile(r"_name_or_path|_commit_hash|_attn_implementation.*|_experts_implementation.*|_flash_attn.*|"
                       r"_from_model_config|(.*_)?(version|dropout|pdrop|dropout_prob)|.*_dtype|(.*_)?token_ids?|"
                       r"unsloth_.*|transformers[._].*|(.*_)?tokenizer(_.*)?|(.*_)?(license|language|authors?|date|url|"
                       r"comments?|notes?|description)|.*_loss(_.*)?|gradient_.*|init_device"),
    GGUF: re.compile(r"(general|quantize|split|tokenizer|GGUF|imatrix)\..*"),
}


def check(found: Mapping[str, Any], form: str, where: str, only: Mapping[str, Sequence[Any]] | None = None) -> None:
  """Refuses every field that could change the maths and that nothing here follows.

  Args:
    found: the file's fields; of GGUF without the architecture's prefix.
    form: CONFIG or GGUF.
    where: the file, for the sentence.
    only: values that a field may have beside those of the table, for what depends on the model.

  Raises:
    UserError: naming the first such field.
  """
  for name, value in found.items():
    row = _BY_NAME[form].get(name)
    allowed = (*(row.only if row else ()), *(only or {}).get(name, ()))
    if row is None and not allowed:
      if _says_nothing(value) or _BOOKKEEPING[form].fullmatch(name):
        continue
      raise UserError(f"{where} has the field {name} = {_short(value)}, which is not known here and could change what "
                      "the model computes; if it does not, take it out of the file")
    if allowed and not _says_nothing(value) and not any(_same(value, wanted) for wanted in allowed):
      wanted = " or ".join(repr(wanted) for wanted in allowed if wanted is not None) or "none"
      raise UserError(f"{where} has {name} = {_short(value)}, which is not supported (wanted {wanted})")


def _same(value: Any, wanted: Any) -> bool:
  return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _says_nothing(value: Any) -> bool:
  return value is None or (isinstance(value, (str, list, dict, tuple)) and not value)


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else text[:57] + "..."
