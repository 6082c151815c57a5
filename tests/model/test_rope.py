"""RoPE's frequencies at the real sizes of published models, and what overrides do to a model's own scaling."""

import dataclasses
import json
import logging

import make_models_page
import numpy as np
import pytest

from policylong.errors import UserError
from policylong.model import hf_config, rope
from policylong.model.qwen import ModelConfig

MODEL = ModelConfig(family="llama", vocab_size=97, embed_dim=64, mlp_dim=48, num_layers=2, num_heads=4, num_kv_heads=2,
                    head_dim=16, norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, max_positions=64, tied=True)
LLAMA_31 = rope.Llama3(original_max_positions=8192, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA_32 = dataclasses.replace(LLAMA_31, factor=32.0)


# (head size, base, scaling); the same numbers as in make_family_references.py
@pytest.mark.parametrize(("model", "head_dim", "theta", "scaling"), [
    ("Llama-3.1-8B", 128, 5e5, LLAMA_31), ("Llama-3.2-1B", 64, 5e5, LLAMA_32),
    ("Qwen2.5-3B", 128, 1e6, rope.Yarn(original_max_positions=32_768, factor=4.0)),
    ("Qwen3-8B", 128, 1e6, rope.Yarn(original_max_positions=32_768, factor=4.0)),
    ("Yarn-Llama-2-7b-128k", 128, 1e4, rope.Yarn(original_max_positions=4096, factor=32.0)),
    ("deepseek-coder-6.7b", 128, 1e5, rope.Linear(original_max_positions=16_384, factor=4.0)),
])
def test_frequencies_of_published_models_are_those_of_transformers(model, head_dim, theta, scaling):
  with np.load(make_models_page.HERE / "family_logits.npz") as stored:
    wanted, scale = stored[f"frequencies--{model}"], stored[f"scale--{model}"]
  # three roundings to float32; where llama3 blends, the share of each is a difference of near numbers
  np.testing.assert_allclose(rope.frequencies(head_dim, theta, scaling), wanted, rtol=1e-6, atol=0)
  assert scaling.scale() == pytest.approx(float(scale), abs=1e-12)
  assert np.abs(rope.frequencies(head_dim, theta, None) / wanted - 1).max() > 0.5


def _by_definition(head_dim, theta, scaling):
  """Llama 3's rule, pair by pair, float64."""
  found = []
  for i in range(head_dim // 2):
    own = theta ** (-2 * i / head_dim)
    wavelength = 2 * np.pi / own
    if wavelength < scaling.original_max_positions / scaling.high_freq_factor:
      found.append(own)
    elif wavelength > scaling.original_max_positions / scaling.low_freq_factor:
      found.append(own / scaling.factor)
    else:
      smooth = ((scaling.original_max_positions / wavelength - scaling.low_freq_factor)
                / (scaling.high_freq_factor - scaling.low_freq_factor))
      found.append((1 - smooth) * own / scaling.factor + smooth * own)
  return np.array(found)


@pytest.mark.parametrize("scaling", [LLAMA_31, LLAMA_32, dataclasses.replace(LLAMA_31, original_max_positions=500),
                                     dataclasses.replace(LLAMA_31, low_freq_factor=2.0, high_freq_factor=9.0)])
def test_llama3_is_its_published_rule(scaling):
  for head_dim, theta in ((16, 1e4), (64, 5e5), (128, 5e5)):
    np.testing.assert_allclose(rope.frequencies(head_dim, theta, scaling), _by_definition(head_dim, theta, scaling),
                               rtol=2e-6)


def divided_by(scaling, head_dim, theta):
  """A llama3 rule as a GGUF file of the model has it: float32 divisors, and the stretched window alone."""
  divisors = (theta ** (-np.arange(0, head_dim, 2) / head_dim) / _by_definition(head_dim, theta, scaling))
  return rope.Divided(original_max_positions=131_072, divisors=tuple(map(float, divisors.astype(np.float32))))


@pytest.mark.parametrize("scaling", [LLAMA_31, LLAMA_32, dataclasses.replace(LLAMA_31, original_max_positions=500)])
def test_llama3_is_found_again_in_its_divisors(scaling):
  """As GGUF files keep it: float32 divisors of the frequencies, in which only ratios of the rule's numbers show."""
  for head_dim, theta in ((64, 5e5), (128, 5e5)):
    divided = divided_by(scaling, head_dim, theta)
    np.testing.assert_allclose(rope.frequencies(head_dim, theta, divided), _by_definition(head_dim, theta, scaling),
                               rtol=1e-6)
    assert divided.as_llama3(head_dim, theta) == scaling


def test_divisors_of_no_rule_are_no_llama3_and_cannot_be_exported():
  for divisors in (np.linspace(1, 8, 8), np.ones(8), [1, 3, 2, 8, 8, 8, 8, 8], [1, 1, 1, 1, 8, 8, 8, 8]):
    scaling = rope.Divided(original_max_positions=64, divisors=tuple(map(float, divisors)))
    assert scaling.as_llama3(16, 1e4) is None
    with pytest.raises(UserError, match="divides each RoPE frequency by a number of its own"):
      hf_config.to_dict(dataclasses.replace(MODEL, rope_scaling=scaling), "float32")


@pytest.mark.parametrize("scaling", [
    None, LLAMA_31, rope.Linear(original_max_positions=64, factor=2.0),
    rope.Divided(original_max_positions=8, divisors=(1.0, 2.0)),
    rope.Yarn(original_max_positions=64, factor=2.0, mscale=0.5, truncate=False)])
def test_a_scaling_survives_json(scaling):
  assert rope.from_dict(json.loads(json.dumps(rope.to_dict(scaling)))) == scaling


@pytest.mark.parametrize("own", [LLAMA_31, rope.Linear(original_max_positions=8192, factor=8.0),
                                 rope.Yarn(original_max_positions=8192, factor=8.0, beta_fast=16.0)])
def test_an_override_that_meets_a_scaling_is_said(own, caplog):
  model = dataclasses.replace(MODEL, rope_scaling=own, max_positions=65_536)
  with caplog.at_level(logging.WARNING):
    stretched = model.with_rope(None, 4.0)
    assert stretched.rope_scaling == rope.Yarn(original_max_positions=8192, factor=4.0)
    assert stretched.max_positions == 32_768
    other = model.with_rope(1e6, None)
    assert other == dataclasses.replace(model, rope_theta=1e6)
    assert model.with_rope(None, None) == model
  first, second = (record.getMessage() for record in caplog.records)
  assert f"replaces the model's own RoPE scaling {own}: its window is now 32768 tokens, it was 65536" in first
  assert "model.rope_theta = 1e+06 replaces the model's base 10000" in second and str(own) in second


def test_an_override_of_a_model_without_scaling_is_not_worth_a_word(caplog):
  with caplog.at_level(logging.WARNING):
    assert MODEL.with_rope(1e6, 4.0).max_positions == 256
  assert not caplog.records


OVERRIDES = [(2e8, None), (8e6, None), (1e5, None), (None, 4.0), (8e6, 4.0)]


@pytest.mark.parametrize(("theta", "factor"), OVERRIDES)
@pytest.mark.parametrize(("head_dim", "scaling"), [(128, LLAMA_31), (64, LLAMA_32)])
def test_an_override_makes_the_same_of_a_gguf_files_divisors_as_of_the_rule(head_dim, scaling, theta, factor, caplog):
  model = dataclasses.replace(MODEL, head_dim=head_dim, rope_theta=5e5, rope_scaling=scaling, max_positions=131_072)
  divided = dataclasses.replace(model, rope_scaling=divided_by(scaling, head_dim, 5e5))
  with caplog.at_level(logging.WARNING):
    found = divided.with_rope(theta, factor)
    assert found == model.with_rope(theta, factor)
  first, second = (record.getMessage() for record in caplog.records)
  assert first == second
  if factor is None:
    np.testing.assert_allclose(rope.frequencies(head_dim, found.rope_theta, found.rope_scaling),
                               _by_definition(head_dim, theta, scaling), rtol=2e-6)
    # what the file's divisors, which are those of its own base, would have made of it
    old = rope.frequencies(head_dim, theta, divided.rope_scaling)
    assert np.abs(old / _by_definition(head_dim, theta, scaling) - 1).max() > 0.5
  else:
    assert found.max_positions == 32_768 and found.rope_scaling.original_max_positions == 8192
  written = hf_config.from_dict(hf_config.to_dict(found, "float32"), "config.json")
  assert (written.rope_theta, written.rope_scaling, written.max_positions) == (
      found.rope_theta, found.rope_scaling, found.max_positions)


def test_no_override_and_that_of_the_files_own_base_keep_its_divisors():
  divided = dataclasses.replace(MODEL, rope_scaling=rope.Divided(original_max_positions=64,
                                                                 divisors=tuple(map(float, range(1, 9)))))
  assert divided.with_rope(None, None) is divided and divided.with_rope(1e4, None) is divided


@pytest.mark.parametrize(("theta", "factor", "said"), [
    (1e6, None, r"model\.rope_theta = 1e\+06 cannot"), (None, 4.0, r"model\.yarn_factor = 4 cannot"),
    (1e6, 4.0, r"model\.rope_theta = 1e\+06, model\.yarn_factor = 4 cannot"),
    (1e4, 2.0, r"^model\.yarn_factor = 2 cannot")])
def test_an_override_of_divisors_of_no_rule_is_refused(theta, factor, said):
  divided = rope.Divided(original_max_positions=64, divisors=tuple(map(float, range(1, 9))))
  with pytest.raises(UserError, match=said + ".*rope_freqs.*HF directory"):
    dataclasses.replace(MODEL, rope_scaling=divided).with_rope(theta, factor)
