"""A checkpoint goes to Orbax and back without a change, and the command says so."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "model"))
sys.path.insert(0, str(pathlib.Path(__file__).parent / "reference"))

import checkpoints
from safetensors.numpy import load_file

from policylong import config as config_lib
from policylong import convert
from policylong.devices import mesh
from policylong.errors import UserError, run_command

MODELS = json.loads((pathlib.Path(__file__).parent / "reference" / "models.json").read_text())


def run(monkeypatch, *arguments) -> None:
  monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
  convert.main()


@pytest.mark.parametrize("case", ["qwen2_untied", "qwen3_yarn"])
def test_there_and_back_is_bit_for_bit_the_same(case, tmp_path, monkeypatch, capsys):
  source = checkpoints.write_hf(MODELS, case, tmp_path / "source")
  run(monkeypatch, "hf-to-orbax", f"--model={source}", f"--output={tmp_path / 'orbax'}")
  run(monkeypatch, "orbax-to-hf", f"--model={tmp_path / 'orbax'}", f"--output={tmp_path / 'back'}")
  assert capsys.readouterr().out.count("by at most 0\n") == 2
  before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "back"))
  assert set(before) == set(after)
  for name in before:
    np.testing.assert_array_equal(before[name], after[name])


def test_the_report_tells_the_loss_of_bfloat16(tmp_path):
  source = checkpoints.write_hf(MODELS, "llama_tied", tmp_path / "source")
  difference = convert.hf_to_orbax(source, tmp_path / "orbax", jnp.bfloat16)
  # weights rounded to 8 bits, logits up to 14: visible, and not more than a few per cent
  assert 1e-3 < difference < 0.5


def test_an_orbax_directory_is_restored_onto_a_mesh(tmp_path):
  source = checkpoints.write_hf(MODELS, "qwen3", tmp_path / "source")
  convert.hf_to_orbax(source, tmp_path / "orbax", jnp.float32)
  whole, _, _ = convert.load_orbax(tmp_path / "orbax")
  split, _, _ = convert.load_orbax(tmp_path / "orbax", mesh.make_mesh(config_lib.Mesh(2, 2, 2, 1)))
  assert split["layers"]["gate"].sharding.spec == mesh.partition_spec(("layers", "embed", "mlp"))
  jax.tree.map(np.testing.assert_array_equal, whole, split)


def test_what_is_there_is_not_overwritten(tmp_path):
  source = checkpoints.write_hf(MODELS, "llama_tied", tmp_path / "source")
  with pytest.raises(UserError, match="is there already"):
    convert.hf_to_orbax(source, source, jnp.float32)


def test_a_wrong_source_is_one_sentence_and_exit_code_1(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["convert", "orbax-to-hf", f"--model={tmp_path}", f"--output={tmp_path / 'out'}"])
  with pytest.raises(SystemExit) as caught:
    run_command(convert.main)
  assert caught.value.code == 1
  said = capsys.readouterr().err
  assert "model.json cannot be read" in said and "Traceback" not in said
  assert not (tmp_path / "out").exists()


def test_bad_usage_exits_2(monkeypatch):
  with pytest.raises(SystemExit) as caught:
    run(monkeypatch, "hf-to-tape", "--model=a", "--output=b")
  assert caught.value.code == 2


def test_a_model_on_the_hub_is_converted_and_nothing_else_is_there(tmp_path, monkeypatch, capsys):
  source = checkpoints.write_hf(MODELS, "llama_tied", tmp_path / "snapshot")
  asked = []
  monkeypatch.setattr(convert.hub, "folder", lambda path: asked.append(path) or source)
  run(monkeypatch, "hf-to-orbax", "--model=hf://org/tiny@v1", f"--output={tmp_path / 'orbax'}")
  assert "by at most 0\n" in capsys.readouterr().out and asked == ["hf://org/tiny@v1"]
  with pytest.raises(UserError, match="hf://org/tiny, and what lies on the hub is no Orbax directory and no run"):
    run(monkeypatch, "orbax-to-hf", "--model=hf://org/tiny", f"--output={tmp_path / 'hf'}")
