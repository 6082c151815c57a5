"""Programs compiled for TPUs that are not there: what fits in what, and what is refused."""

import json
import os
import subprocess
import sys

import pytest

from policylong.aot.optimised_hlo import summarise

GIB = 2**30


def run(*arguments):
  """A module in a process of its own, since the compiler's settings are those of the process."""
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, env=environment,
                        check=False)


def aot(*arguments):
  """As a person runs it."""
  return run("policylong.aot", *arguments)


def compiled(tmp_path, *arguments):
  done = aot(*arguments, f"--json={tmp_path / 'found.json'}")
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads((tmp_path / "found.json").read_text()), done.stdout


def test_verification_of_3b_fits_one_v5e_chip_and_is_mostly_matmul(tmp_path):
  found, text = compiled(tmp_path, "--config=configs/qwen3b_128k.py", "--topology=v5e:1x1", "--program=verify")
  assert found["fits"] and found["devices"] == 1 and found["program"] == "verify"
  assert found["peak_bytes"] < 7 * GIB < found["hbm_bytes"]
  # 3.09 billion weights of two bytes
  assert found["argument_bytes"] == pytest.approx(2 * 3.09e9, rel=0.01)
  # 12 rows of 2,560 tokens: 2.77e9 weights outside of the embedding, attention, and the head at 64 anchors a row
  by_hand = 30_720 * 2 * 2.774e9 + 12 * 36 * 2 * 2560**2 * 2048 + 12 * 64 * 2 * 151_936 * 2048
  assert found["model_flops"] == pytest.approx(by_hand, rel=1e-3)
  assert found["estimated_parts_seconds"]["matmul"] > 0.6 * found["estimated_step_seconds"]
  assert 0.3 < found["estimated_mfu"] < 1
  assert ": fits" in text and "of the peak" in text


def test_the_embedder_runs_on_every_chip_of_its_own(tmp_path):
  found, _ = compiled(tmp_path, "--config=configs/qwen3b_128k.py", "--topology=v5e:2x2", "--program=embed")
  assert found["fits"] and found["devices"] == 4 and found["collectives"] == {}
  # 595,776,512 weights of two bytes, as Qwen publishes; 256 texts of 1,024 tokens on each chip
  assert found["argument_bytes"] == pytest.approx(2 * 595_776_512 + 256 * 1025 * 4, rel=0.01)
  assert found["tokens"] == 4 * 256 * 1024
  by_hand = found["tokens"] * 2 * (595_776_512 - 151_669 * 1024) + 4 * 256 * 28 * 2 * 1024**2 * 2048
  assert found["model_flops"] == pytest.approx(by_hand, rel=1e-3)


def test_every_program_is_lowered_for_a_tpu_with_its_flops():
  """What the slow rows compile, up to the compiler."""
  done = run("tests.lowered_for_tpus")
  assert done.returncode == 0, done.stderr[-2000:]
  found = {name: list(map(int, counts)) for name, *counts in map(str.split, done.stdout.splitlines())}
  assert list(found) == ["train", "score", "verify", "embed", "train_packed", "train_weighed"]
  # Tokens and targets; with the documents and the places in them; with the weights.
  for name, arrays in (("train", 2), ("train_packed", 4), ("train_weighed", 3)):
    tokens, model_flops, found_arrays = found[name]
    assert tokens == 32 * 131_072 and found_arrays == arrays
    # 494,032,768 weights as published; attention of 24 layers and 896 columns over 131,072 tokens
    assert model_flops == pytest.approx(tokens * 6 * (494_032_768 + 24 * 131_072 * 896), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("config, topology, fsdp, context, batch, accumulation, most", [
  ("qwen3b_128k", "v5p:4x4x4", 4, 16, 8, 1, 6.5),
  ("qwen1_5b_128k", "v5p:4x4x4", 16, 4, 16, 1, 6.0),
  ("qwen3b_128k", "v5e:8x8", 8, 8, 16, 2, 5.2),
  ("qwen3b_128k", "v5e:8x8", 8, 8, 16, 1, 8.8),  # both sequences of a device at once, as MaxText 0.2.5 in 9.03
  ("qwen3b_128k", "v6e:8x8", 8, 8, 8, 1, 4.9),
])
def test_training_needs_no_more_than_promised(tmp_path, config, topology, fsdp, context, batch, accumulation, most):
  found, _ = compiled(
      tmp_path, f"--config=configs/{config}.py", f"--topology={topology}", f"--config.mesh.fsdp={fsdp}",
      f"--config.mesh.context={context}", f"--config.training.batch_size={batch}",
      f"--config.training.accumulation={accumulation}", "--config.training.remat=full")
  assert (found["argument_bytes"] + found["temp_bytes"]) / GIB <= most
  assert found["collectives"]["all-gather"]["count"] > 0


@pytest.mark.parametrize("arguments, words", [
  (("--topology=v9:4x4",), ["--topology is 'v9:4x4'", "cannot be compiled for"]),
  (("--topology=pod",), ["'pod'", "v5p:4x4x4, v5e:8x8 or 2xv6e:16x16"]),
  (("--topology=v5p:2x2x2",), ["fsdp 16, context 4", "needs 64 devices, but there are 8"]),
  (("--topology=v5e:1x1", "--program=eval"), ["--program is 'eval'", "train, score, verify"]),
  (("--topology=v5p:4x4x4", "--config.mesh.tensor=4", "--config.mesh.fsdp=4"),
   ["kv_heads dimension is 2", "tensor = 4"]),
  (("--topology=v5e:1x1", "--program=embed", "--config.retrieval.embedder=hashed"), ["'hashed'", "qwen3 only"]),
  (("--topology=v5e:1x1", "--program=embed", "--config.retrieval.embedder_path=models/Big-Embedding"),
   ["retrieval.embedder_path", "'Big-Embedding' is none of the known", "Qwen3-Embedding-0.6B"]),
  (("--topology=v5p:4x4x4", "--config.model.path=models/Other-3B"), ["'Other-3B' is none of the known", "Qwen2.5-3B"]),
])
def test_what_cannot_be_compiled_is_one_sentence(arguments, words):
  done = aot("--config=configs/qwen3b_128k.py", *arguments)
  assert done.returncode == 1
  sentence = done.stderr.strip().splitlines()[-1]
  assert sentence.startswith("error: ")
  for word in words:
    assert word in sentence, sentence


def test_the_ring_sends_before_it_computes():
  """The compiler's schedule: keys (and their gradients) are under way while kernels run, in loops and outside."""
  done = run("tests.attention.ring_on_tpu")
  assert done.returncode == 0, done.stderr[-2000:]
  computations = [part.split() for part in done.stdout.split("computation")]
  overlapping = 0
  for operations in computations:
    under_way = 0
    for operation in operations:
      under_way += {"collective-permute-start": 1, "collective-permute-done": -1}.get(operation, 0)
      overlapping += operation.startswith("splash") and under_way > 0
    assert under_way == 0
  # Forward: the own tokens, the loop, the last hop; backward: own, first, loop, last, of two kernels each. While the
  # forward's last hop is computed nothing is left to be sent.
  kernels = sum(operation.startswith("splash") for operations in computations for operation in operations)
  assert kernels == 3 + 2 * 4 and overlapping >= kernels - 3, done.stdout


def test_generation_on_a_tpu_writes_into_its_cache_and_copies_none_of_it():
  """A cache at 128K is gigabytes a row; left alone the compiler keeps a second one in another order of dimensions."""
  done = run("tests.model.generate_on_tpu")
  assert done.returncode == 0, done.stderr[-2000:]
  found = {name: values for name, *values in map(str.split, done.stdout.splitlines())}
  cache = int(found["cache"][0])
  assert cache == 2 * 4 * 2 * 2 * (16384 + 128) * 128 * 2  # k and v, layers, rows of a device, heads
  for name, kernel in (("prefill", "True"), ("insert", "False"), ("decode", "False")):
    assert int(found[name][0]) < 0.1 * cache and found[name][1] == kernel


def test_the_clocks_of_the_chips_agree_with_their_peaks():
  """A large product cannot beat the peak, and the compiler does not expect it to miss it by half."""
  done = run("tests.matmul_on_tpus")
  assert done.returncode == 0, done.stderr[-2000:]
  shares = dict(line.split() for line in done.stdout.splitlines())
  assert len(shares) == 3 and all(0.6 < float(share) <= 1 for share in shares.values()), shares


@pytest.mark.slow
def test_of_two_slices_each_holds_whole_sequences(tmp_path):
  found, _ = compiled(tmp_path, "--config=configs/qwen0_5b_128k.py:v5e:4x4", "--topology=2xv5e:4x4",
                      "--config.mesh.data=2", "--config.training.remat=full")
  assert found["fits"] and found["devices"] == 32


def test_a_loop_counts_its_body_as_often_as_it_runs():
  text = """HloModule m
%product (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %convolution.1 = f32[8,8]{1,0} convolution(%p, %p), dim_labels=bf_io->bf
}
%cond (c: (s32[])) -> pred[] {
  %constant.2 = s32[]{:T(128)} constant(36)
  ROOT %compare = pred[] compare(%i, %constant.2), direction=LT
}
%body (b: (s32[])) -> (s32[]) {
  %fusion.1 = f32[8,8]{1,0} fusion(%x), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"100"}
  %add.1 = f32[8,8]{1,0} add(%x, %x), backend_config={"window_config":{"estimated_cycles":"7"}}
  %all-gather.3 = bf16[16,128]{1,0} all-gather(%y), channel_id=1
  %collective-permute-start.1 = (bf16[4,2]{1,0}, bf16[4,2]{1,0}, u32[], u32[]) collective-permute-start(%y)
  %splash_mha_fwd.4 = bf16[8,8]{1,0} custom-call(%q), custom_call_target="tpu_custom_call"
}
ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %while.1 = (s32[]) while(%t), condition=%cond, body=%body
  %add.9 = f32[8,8]{1,0} add(%x, %x), backend_config={"estimated_cycles":"9223372036854775807"}
  %add.8 = f32[8,8]{1,0} add(%x, %x), backend_config={"estimated_cycles":"5"}
}
"""
  found = summarise(text)
  assert (found.matmul_cycles, found.other_cycles) == (3600, 36 * 7 + 5)
  assert found.collectives == {"all-gather": {"count": 36, "bytes": 36 * 16 * 128 * 2},
                               "collective-permute": {"count": 36, "bytes": 36 * 4 * 2 * 2}}
  assert found.kernels == {"splash_mha_fwd": 36}
