"""GGUF files: all parts, all that changes a number, all quantised types; the right logits are transformers'."""

import hashlib
import struct

import checkpoints
import families
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded

from policylong.errors import UserError
from policylong.model import hf, hf_config, qwen, rope

SHAPE = {"model_type": "llama", "vocab_size": 32, "max_position_embeddings": 64, "hidden_size": 256,
         "num_hidden_layers": 1, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
         "rms_norm_eps": 1e-5, "rope_theta": 1e4}


@pytest.fixture(scope="module")
def references():
  with np.load(checkpoints.pathlib.Path(families.__file__).with_name("family_logits.npz")) as stored:
    return dict(stored)


def load(path):
  return hf.load_params(path, hf.read_model_config(path), jnp.float32)


def family(name, feature, path, **options):
  """A family's checkpoint of tests/reference as a GGUF file."""
  weights = {key: seeded.weight(name, key, shape) for key, shape in families.shapes(name, feature).items()}
  return checkpoints.write_gguf_of(families.fields(name, feature), weights, path, **options)


def logits(path, name):
  config, params = hf.read_model_config(path), load(path)
  hidden = qwen.hidden_states(params, config, jnp.asarray(families.tokens(name)), compute_dtype=jnp.float32)
  found = np.asarray(hidden[0] @ qwen.output_matrix(params, config).T)
  return found[families.POSITIONS][:, families.COLUMNS]


def llama3_divisors(theta, head, scaling):
  """What the published rule divides each frequency by, as llama.cpp's converter writes it, in float64."""
  divisors = []
  for i in range(0, head, 2):
    turns = scaling["original_max_position_embeddings"] / (2 * np.pi * theta**(i / head))
    low, high, factor = (scaling[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))
    kept = (turns - low) / (high - low)
    divisors.append(1.0 if turns > high else factor if turns < low else 1 / ((1 - kept) / factor + kept))
  return divisors


@pytest.mark.parametrize("name", ["Llama 3.1", "Llama 3.2"])
def test_frequencies_are_divided_by_the_files_tensor(name, references, tmp_path):
  fields = families.fields(name, "as published")
  divisors = llama3_divisors(fields["rope_theta"], fields["head_dim"], fields["rope_scaling"])
  path = family(name, "as published", tmp_path / "m.gguf", rope_freqs=divisors)
  wanted = references[families.key(name, "as published")]
  np.testing.assert_allclose(logits(path, name), wanted, atol=2e-4)
  plain = family(name, "as published", tmp_path / "plain.gguf")
  assert np.abs(logits(plain, name) - wanted).max() > 0.01, "the tensor would not matter here"


def test_a_tensor_of_ones_divides_nothing(tmp_path):
  path = family("Llama 3.2", "default", tmp_path / "m.gguf", rope_freqs=[1.0] * 16)
  assert hf.read_model_config(path) == hf.read_model_config(family("Llama 3.2", "default", tmp_path / "n.gguf"))


@pytest.mark.parametrize(("name", "head", "factor"), [("Llama-3.1-8B", 128, 8.0), ("Llama-3.2-1B", 64, 32.0)])
def test_published_frequencies_are_read_and_written_as_llama3(name, head, factor, references, tmp_path):
  divisors = llama3_divisors(5e5, head, {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": factor,
                                         "original_max_position_embeddings": 8192})
  path = checkpoints.write_gguf_of(SHAPE | {"head_dim": head, "rope_theta": 5e5}, {}, tmp_path / "m.gguf",
                                   rope_freqs=divisors)
  config = hf.read_model_config(path)
  written = hf_config.from_dict(hf_config.to_dict(config, "float32"), "config.json")
  assert isinstance(written.rope_scaling, rope.Llama3)
  for each in (config, written):
    np.testing.assert_allclose(rope.frequencies(head, each.rope_theta, each.rope_scaling),
                               references[f"frequencies--{name}"], rtol=1e-5)
  # with another base, too, the file is the model that its HF directory is
  other = config.with_rope(8e6, None)
  assert other.rope_scaling == written.rope_scaling and hf_config.to_dict(other, "float32")["rope_theta"] == 8e6
  own = 8e6 ** (-np.arange(0, head, 2) / head)
  rule = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": factor, "original_max_position_embeddings": 8192}
  np.testing.assert_allclose(rope.frequencies(head, other.rope_theta, other.rope_scaling),
                             own / llama3_divisors(8e6, head, rule), rtol=1e-5)


@pytest.mark.parametrize(("feature", "added", "window"), [
    ("linear", [("rope.scaling.type", "linear"), ("rope.scaling.factor", 4.0)], 256),
    ("linear", [("rope.scaling.factor", 4.0)], 256),
    ("linear", [("rope.scale_linear", 4.0)], 256),
    ("yarn, model card", [("rope.scaling.type", "yarn"), ("rope.scaling.factor", 4.0), ("rope.scaling.finetuned", True),
                          ("rope.scaling.original_context_length", 64)], 256),
    ("default", [("rope.scaling.type", "none"), ("rope.scaling.factor", 4.0)], 64),
])
def test_scalings_are_those_of_transformers(feature, added, window, references, tmp_path):
  path = family("Qwen2.5", feature, tmp_path / "m.gguf", fields=[(f"qwen2.{key}", value) for key, value in added])
  assert hf.read_model_config(path).max_positions == window
  np.testing.assert_allclose(logits(path, "Qwen2.5"), references[families.key("Qwen2.5", feature)], atol=2e-4)


@pytest.mark.parametrize("case", ["llama", "qwen2_untied", "qwen3"])
def test_a_split_model_is_read_whole_whichever_part_is_named(case, models, tmp_path):
  whole = load(checkpoints.write_gguf(models, case, tmp_path / "whole.gguf"))
  first = checkpoints.write_gguf(models, case, tmp_path / "a [b]" / "m.gguf", split=10)
  paths = sorted(first.parent.iterdir())
  assert len(paths) > 2
  for named in (*paths, first.parent / "m", first.parent / "m.gguf"):
    config = hf.read_model_config(named)
    assert not config.tied, "the head is in the last part"
    jax.tree.map(np.testing.assert_array_equal, hf.load_params(named, config, jnp.float32), whole)
  digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
  hf.load_params(first, hf.read_model_config(first), jnp.float32, sha256=digest)


def test_parts_that_are_not_one_model_are_refused(models, tmp_path):
  def written(name, case, **options):
    return sorted(checkpoints.write_gguf(models, case, tmp_path / name / "m.gguf", **options).parent.iterdir())

  def refused(path, said):
    with pytest.raises(UserError, match=said) as caught:
      load(path)
    assert "\n" not in str(caught.value)
  one, other = written("one", "llama", split=10), written("other", "llama_tied", split=10)
  last = one[-1].read_bytes()
  one[-1].unlink()
  for named in (one[0], one[0].parent / "m"):
    refused(named, rf"{one[-1].name} is missing from .*one: the model m lies in {len(one)} parts")
  one[-1].write_bytes(one[1].read_bytes())
  refused(one[0], rf"says that it is part 2 of {len(one)} .* by its name it is part {len(one)}")
  one[-1].write_bytes(last)
  renamed = one[-1].rename(one[-1].with_name("renamed.gguf"))
  refused(renamed, f"says that it is part {len(one)} of {len(one)} .* by its name it is a whole model")
  renamed.rename(one[-1])
  assert len(one) == len(other)
  one[1].write_bytes(other[1].read_bytes())
  refused(one[0], "is a part of another model than its first part: it has split.tensors.count = 29, wanted 30")
  one[0].with_name("m-00001-of-00009.gguf").write_bytes(b"")
  refused(one[0].parent / "m", "parts of several models m, of 3 and of 9 parts")


@pytest.mark.parametrize(("key", "value", "said"), [
    ("llama.attention.sliding_window", 32, "sliding_window = 32, less than the model's window of 64"),
    ("llama.expert_count", 8, "expert_count = 8"), ("llama.logit_scale", 0.5, "logit_scale = 0.5"),
    ("llama.attention.value_length", 32, "attention.value_length = 32"),
    ("llama.rope.dimension_count", 32, "rope.dimension_count = 32"),
    ("llama.attention.causal", False, "attention.causal = False"),
    ("llama.attn_logit_softcapping", 50.0, "attn_logit_softcapping = 50.0"),
    ("llama.attention.clamp_kqv", 8.0, "attention.clamp_kqv = 8.0"),
    ("llama.attention.scale", 0.5, "attention.scale = 0.5"),
    ("llama.rope.scaling.type", "longrope", "RoPE scaling 'longrope'"),
    ("llama.rope.scaling.type", "yarn", "'yarn' but has no rope.scaling.factor"),
    ("llama.rope.scaling.yarn_attn_factor", 0.7, "yarn_attn_factor = "),
    ("llama.what_comes_next", 3, "what_comes_next = 3, which is not known here"),
    ("general.type", "adapter", "holds a 'adapter'"),
])
def test_metadata_that_changes_the_maths_is_refused_by_name(key, value, said, tmp_path):
  path = checkpoints.write_gguf_of(SHAPE, {}, tmp_path / "m.gguf", fields=[(key, value)])
  with pytest.raises(UserError, match=said) as caught:
    hf.read_model_config(path)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [
    ("llama.attention.sliding_window", 0), ("llama.expert_count", 0), ("llama.expert_used_count", 0),
    ("llama.attention.value_length", 64), ("llama.rope.dimension_count", 64), ("llama.logit_scale", 0.0),
    ("llama.rope.scaling.attn_factor", 1.0), ("llama.attention.scale", 0.125), ("llama.attention.causal", True),
    ("llama.attention.sliding_window", 64), ("llama.pooling_type", 3), ("general.file_type", 7),
    ("quantize.imatrix.file", "x"), ("general.type", "model")])
def test_metadata_that_changes_nothing_is_read_over(key, value, tmp_path):
  plain = hf.read_model_config(checkpoints.write_gguf_of(SHAPE, {}, tmp_path / "a.gguf"))
  assert hf.read_model_config(checkpoints.write_gguf_of(SHAPE, {}, tmp_path / "b.gguf", fields=[(key, value)])) == plain


def weights_with(down):
  """SHAPE's weights, `down` for its ffn_down."""
  shapes = {"model.embed_tokens.weight": (32, 256), "model.norm.weight": (256,)} | {
      f"model.layers.0.{name}.weight": shape for name, shape in {
          "input_layernorm": (256,), "post_attention_layernorm": (256,), "self_attn.q_proj": (256, 256),
          "self_attn.k_proj": (128, 256), "self_attn.v_proj": (128, 256), "self_attn.o_proj": (256, 256),
          "mlp.gate_proj": (256, 256), "mlp.up_proj": (256, 256)}.items()}
  return {name: seeded.weight("quantised", name, shape) for name, shape in shapes.items()} | {
      "model.layers.0.mlp.down_proj.weight": down}


def by_hand(kind, raw):
  """What blocks hold, by the format's own description; None for types that are left to the package's decoder."""
  half = raw[:, :2].copy().view(np.float16).astype(np.float32)
  if kind == "Q8_0":
    return half * raw[:, 2:].view(np.int8)
  if kind == "Q4_0":
    return half * (np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], axis=1).astype(np.float32) - 8)
  if kind == "Q4_1":
    least = raw[:, 2:4].copy().view(np.float16).astype(np.float32)
    return half * np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], axis=1) + least
  if kind == "BF16":
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
  if kind == "F16":
    return raw.view(np.float16).astype(np.float32)
  return raw.view(np.float32) if kind == "F32" else None


@pytest.mark.parametrize("kind", ["F32", "F16", *(kind.name for kind in gguf.quants._type_traits)])
def test_every_type_that_the_package_dequantises_is_read(kind, tmp_path):
  """Blocks of random bytes below 122, so that no half among them is NaN or infinite."""
  qtype = gguf.GGMLQuantizationType[kind]
  block, size = gguf.GGML_QUANT_SIZES[qtype]
  raw = np.random.default_rng(0).integers(0, 122, (256, 256 // block * size), np.uint8)
  stored = raw.view(np.float32 if kind == "F32" else np.float16) if kind in ("F32", "F16") else raw
  wanted = by_hand(kind, raw.reshape(-1, size) if block > 1 else raw)
  wanted = gguf.dequantize(stored, qtype) if wanted is None else wanted
  path = checkpoints.write_gguf_of(SHAPE, weights_with((stored, qtype)), tmp_path / "m.gguf")
  down = np.asarray(load(path)["layers"]["down"])[0]  # [F, D]; the file has [D, F]
  np.testing.assert_array_equal(down.T, wanted.reshape(256, 256))


def test_a_type_that_it_does_not_dequantise_is_refused_by_name(tmp_path):
  _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_1]
  down = np.zeros((256, 256 // 32 * size), np.uint8), gguf.GGMLQuantizationType.Q8_1
  path = checkpoints.write_gguf_of(SHAPE, weights_with(down), tmp_path / "m.gguf")
  with pytest.raises(UserError, match=r"blk\.0\.ffn_down\.weight .* quantised as Q8_1"):
    load(path)


@pytest.mark.parametrize("kind, what", [((8,), "a text"), ((9, 4), "a list of numbers"), ((9, 8), "a list of texts")])
def test_a_value_longer_than_the_file_is_not_looked_for(tmp_path, kind, what):
  head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 3) + b"key"
  (tmp_path / "m.gguf").write_bytes(head + struct.pack(f"<{len(kind)}IQ", *kind, 2**50))
  with pytest.raises(UserError, match="is said to end at byte"):
    hf.read_model_config(tmp_path / "m.gguf")


def test_tensors_lie_inside_the_file_and_not_over_each_other(models, tmp_path):
  path = checkpoints.write_gguf(models, "llama", tmp_path / "m.gguf")
  data = path.read_bytes()
  last = max(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.data_offset)
  offset, length = int(last.field.parts[-1][0]).to_bytes(8, "little"), int(last.n_bytes)
  for cut in (1, length // 2, len(data) // 2, len(data) - 30):
    path.write_bytes(data[:-cut])
    with pytest.raises(UserError, match=r"m\.gguf .* (truncated|damaged)"):
      hf.read_model_config(path)
  assert data.count(offset) == 1
  path.write_bytes(data.replace(offset, (0).to_bytes(8, "little")))
  with pytest.raises(UserError, match=r"damaged: its tensor .* is said to lie at bytes"):
    hf.read_model_config(path)
  checkpoints.write_gguf(models, "llama", tmp_path / "big.gguf", big_endian=True)
  with pytest.raises(UserError, match="big-endian"):
    hf.read_model_config(tmp_path / "big.gguf")
