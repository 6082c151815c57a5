"""A config is refused in one sentence that names the field, the value found and the value wanted."""

import json

import pytest

from configs.demo import get_config
from policylong import config as config_lib


def _changed(**changes):
  values = get_config().to_dict()
  for dotted, value in changes.items():
    group = values
    *parents, name = dotted.split("__")
    for parent in parents:
      group = group[parent]
    group[name] = value
  return values


@pytest.mark.parametrize("changes", [{}, {"training__document_masking": True}])
def test_the_demo_config_is_valid_and_survives_json(changes):
  config = config_lib.parse(_changed(**changes))
  assert config_lib.parse(json.loads(config_lib.to_json(config))) == config
  assert config.training.document_masking is bool(changes)


@pytest.mark.parametrize("changes, words", [
    ({"screening__epsilon": -0.1, "screening__epsilon_from_control": None}, ["screening.epsilon is -0.1", "between 0"]),
    ({"method": "given"}, ["'given'", "'django' is of kind text",
                           "token sequences, of kind parquet, mds, array_record"]),
    ({"screening__epsilon": 0.4}, ["screening.epsilon is 0.4", "epsilon_from_control is 0.01", "exactly one"]),
    ({"screening__epsilon_from_control": None}, ["exactly one"]),
    ({"screening__control_chunks": 0}, ["control_chunks is 0"]),
    ({"screening__alphas": 1.0}, ["screening.alphas is not a config field", "screening.alpha?"]),
    ({"screening__top_k": "two"}, ["screening.top_k is 'two'", "type int"]),
    ({"screening__top_k": True}, ["screening.top_k is True", "type int"]),
    ({"screening__negatives": "some"}, ["screening.negatives is 'some'", "positives, rejected, both, none"]),
    ({"screening__skip_tokens": 500}, ["skip_tokens is 500", "min_root_tokens = 96"]),
    ({"screening__tokens_per_batch": 500}, ["tokens_per_batch is 500", "root_tokens = 512", "to 512"]),
    ({"synthesis__sequence_length": 192}, ["sequence_length is 192", "root_tokens = 192"]),
    ({"mesh__context": 3}, ["sequence_length is 4096", "mesh.context = 3"]),
    ({"mesh__data": 4}, ["batch_size / accumulation is 2", "mesh.data * mesh.fsdp = 8"]),
    ({"mesh__data": -1, "mesh__fsdp": -1}, ["-1 on more than one axis"]),
    ({"mesh__simulated_devices": -8}, ["mesh.simulated_devices is -8", "at least 0"]),
    ({"training__accumulation": 3}, ["batch_size is 2", "accumulation = 3"]),
    ({"training__peak_learning_rate": 0.0}, ["peak_learning_rate is 0.0", "above 0"]),
    ({"training__peak_learning_rate": float("nan")}, ["peak_learning_rate is nan", "above 0"]),
    ({"training__clip_norm": float("inf")}, ["clip_norm is inf", "finite"]),
    ({"training__weight_decay": float("inf")}, ["weight_decay is inf", "finite"]),
    ({"training__adam_b1": 1.0}, ["training.adam_b1 is 1.0", "between 0.0 and 0.99999994"]),
    ({"training__adam_b2": 1}, ["training.adam_b2 is 1.0", "between 0.0 and 0.99999994"]),
    ({"training__adam_b2": 1 - 2**-25}, ["training.adam_b2 is 0.99999997", "between 0.0 and 0.99999994"]),
    ({"training__adam_b1": -0.1}, ["training.adam_b1 is -0.1", "between 0.0"]),
    ({"model__rope_theta": 1.0}, ["model.rope_theta is 1.0", "above 1"]),
    ({"model__rope_theta": float("inf")}, ["model.rope_theta is inf", "finite"]),
    ({"model__yarn_factor": float("inf")}, ["model.yarn_factor is inf", "finite"]),
    ({"model__yarn_factor": 0.5}, ["model.yarn_factor is 0.5", "at least 1"]),
    ({"screening__epsilon": 1.0, "screening__epsilon_from_control": None}, ["screening.epsilon is 1.0", "below 1"]),
    ({"method_options__quest_least_score": float("inf")}, ["quest_least_score is inf", "finite"]),
    ({"retrieval__piece_gib": 0.0}, ["retrieval.piece_gib is 0.0", "above 0"]),
    ({"corpus__root_sources": ("books",)}, ["corpus.root_sources is 'books'", "django"]),
    ({"corpus__sources": ()}, ["corpus.sources is empty"]),
    ({"eval__protocol": "lm-eval"}, ["eval.protocol is 'lm-eval'", "nvidia, helmet"]),
    ({"eval__samples": 0}, ["eval.samples is 0", "at least 1"]),
    ({"eval__lengths": ()}, ["eval.lengths is empty", "position_loss"]),
    ({"eval__documents__path": ""}, ["eval.tasks has position_loss", "eval.documents.path is empty"]),
    ({"seed": 2**63}, ["seed is 9223372036854775808", "between 0 and 9223372036854775807"]),
    ({"rounds": 0}, ["rounds is 0", "at least 1"]),
    ({"max_staleness": -1}, ["max_staleness is -1", "at least 0"]),
    ({"method": "policyshort"}, ["method is 'policyshort'", "policylong, entropylong, nextlong"]),
    ({"method": "entropylong"}, ["method is 'entropylong' and rounds is 2", "set rounds to 1"]),
    ({"method": "utk", "training__document_masking": True}, ["'utk'", "training.document_masking is True", "to False"]),
    ({"training__longce": True, "training__document_masking": True}, ["longce is True", "masking is True", "to False"]),
    ({"training__short_window": 0}, ["training.short_window is 0", "at least 1"]),
    ({"training__longce": True, "training__short_window": 4096}, ["training.short_window is 4096", "smaller"]),
    ({"training__longfilter_share": 0.0}, ["training.longfilter_share is 0.0", "between 0 and 1"]),
    ({"training__document_masking": 1}, ["training.document_masking is 1", "type bool"]),
    ({"method_options__search": "grep"}, ["method_options.search is 'grep'", "embeddings, bm25"]),
    ({"method_options__nextlong_k": 0}, ["method_options.nextlong_k is 0", "at least 1"]),
    ({"method_options__nextlong_position": "middle"}, ["nextlong_position is 'middle'", "head, tail, random"]),
    ({"method_options__quest_split_ratio": 1.5}, ["quest_split_ratio is 1.5", "between 0.0 and 1.0"]),
    ({"method_options__utk_share": -0.1}, ["utk_share is -0.1"]),
    ({"model": 3}, ["model is 3", "group of fields"]),
])
def test_a_contradiction_is_named_with_both_values(changes, words):
  with pytest.raises(config_lib.ConfigError) as caught:
    config_lib.parse(_changed(**changes))
  sentence = str(caught.value)
  assert "\n" not in sentence
  for word in words:
    assert word in sentence


def test_a_missing_field_is_named():
  values = get_config().to_dict()
  del values["training"]["adam_b2"]
  with pytest.raises(config_lib.ConfigError, match=r"training\.adam_b2 is missing"):
    config_lib.parse(values)


def test_differences_name_each_field_with_old_and_new_value():
  old, new = _changed(), _changed(screening__alpha=1.5, training__remat="full")
  assert config_lib.differences(old, new) == [
      "screening.alpha: 1.0 -> 1.5", "training.remat: all_but_attention -> full"]
