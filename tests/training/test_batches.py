"""What order sequences come in, where a position is resumed, and what damaged files are answered with."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_training import LENGTH, mesh_of, write_records, write_sequences

from policylong.attention.zigzag import unzigzag
from policylong.errors import UserError
from policylong.training.batches import Batches, read_shuffled
from policylong.training.step import token_sharding

NUMBERED = np.arange(10)[:, None] + np.arange(LENGTH)  # sequence i begins with token i


def open_batches(paths, shape=(1, 2, LENGTH), mesh=None, **changes):
  return Batches(paths, **{"shape": shape, "sharding": token_sharding(mesh or mesh_of(), shape), "vocab_size": 64,
                           "seed": 0, "round_index": 1} | changes)


def first_tokens(batches, count):
  return [int(token) for _ in range(count) for token in np.asarray(next(batches).tokens)[..., 0].ravel()]


@pytest.fixture
def numbered(tmp_path):
  return write_sequences(tmp_path, NUMBERED, files=3)


def test_an_epoch_has_every_sequence_once_and_the_next_has_another_order(numbered):
  tokens = first_tokens(open_batches(numbered), 10)
  assert sorted(tokens[:10]) == sorted(tokens[10:]) == list(range(10))
  assert tokens[:10] != tokens[10:]


def test_a_batch_holds_the_bytes_that_were_written(numbered):
  batch = np.asarray(next(open_batches(numbered, (2, 4, LENGTH))).tokens)
  assert batch.dtype == np.int32
  np.testing.assert_array_equal(batch, NUMBERED[batch[..., 0]])


def test_a_batch_may_be_one_sequence(numbered):
  assert sorted(first_tokens(open_batches(numbered, (1, 1, LENGTH)), 10)) == list(range(10))


def test_rounds_and_seeds_have_their_own_orders_and_the_same_ones_again(numbered):
  orders = [first_tokens(open_batches(numbered, seed=seed, round_index=r), 5) for seed, r in ((0, 1), (0, 2), (1, 1))]
  assert len({tuple(order) for order in orders}) == 3
  assert first_tokens(open_batches(numbered), 5) == orders[0]


@pytest.mark.parametrize("taken", [0, 3, 7])
def test_a_position_read_back_from_json_goes_on_with_the_same_batches(numbered, taken):
  batches = open_batches(numbered)
  first_tokens(batches, taken)
  state = json.loads(json.dumps(batches.get_state()))
  resumed = open_batches(numbered)
  resumed.set_state(state)
  assert first_tokens(resumed, 8) == first_tokens(batches, 8)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 3], [2], [1, 2, 3]])
def test_some_rows_of_a_step_are_those_of_the_whole_step(rows):
  def read(rows):
    return read_shuffled(np.arange(10), seed=5, shape=(2, 4), rows=rows)

  whole, some = read(range(4)), read(rows)
  for _ in range(7):  # eight records a step, of ten in an epoch
    np.testing.assert_array_equal(next(some).reshape(2, -1), next(whole).reshape(2, 4)[:, rows])


def test_on_tpu_slices_the_hosts_together_hold_the_rows_of_one_process():
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  done = subprocess.run([sys.executable, "-m", "tests.training.batches_on_tpus"], capture_output=True, text=True,
                        env=environment, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
  # 16 chips are laid as a ring through the hosts' squares of 2 x 2; with a context axis hosts share rows.
  assert rows == {
      "v5e:4x4_1x16x1": "0,1,6,15 2,3,4,5 7,12,13,14 8,9,10,11",
      "2xv5e:4x4_2x16x1": "0,1,6,15 2,3,4,5 7,12,13,14 8,9,10,11 16,17,22,31 18,19,20,21 23,28,29,30 24,25,26,27",
      "v5p:2x2x4_1x16x1": "0,4,8,12 1,5,9,13 2,6,10,14 3,7,11,15",
      "v5e:4x4_1x4x4": "0,1,2,3 0,1,2,3 4,5,6,7 4,5,6,7",
      "v5p:2x2x6_1x4x6": " ".join(6 * ["0,1,2,3"])}


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "context": 2}, {"context": 8}])
def test_a_mesh_splits_a_batch_and_reorders_only_along_its_context_axis(numbered, sizes):
  shape = (2, 8, LENGTH)
  expected = next(open_batches(numbered, shape))
  found = next(open_batches(numbered, shape, mesh_of(**sizes)))
  for name in ("tokens", "targets"):
    array = getattr(found, name)
    np.testing.assert_array_equal(unzigzag(np.asarray(array), sizes.get("context", 1), -1), getattr(expected, name))
    assert len({shard.device for shard in array.addressable_shards}) == 8
    assert array.addressable_shards[0].data.size == array.size // 8


def test_a_target_is_the_token_that_follows(numbered):
  batch = next(open_batches(numbered))
  np.testing.assert_array_equal(batch.targets[..., :-1], batch.tokens[..., 1:])
  assert np.all(np.asarray(batch.targets)[..., -1] == -1)


def test_a_record_of_the_wrong_length_is_one_sentence(tmp_path):
  path = tmp_path / "part-00000.array_record"
  write_records(path, [NUMBERED[0].astype("<i4").tobytes(), b"\0" * 100])
  with pytest.raises(UserError, match=rf"record 1 of .*part-00000.* holds 100 bytes; a sequence of {LENGTH} .* 128"):
    first_tokens(open_batches([path]), 1)


def test_token_ids_that_the_model_does_not_have_are_one_sentence(numbered):
  with pytest.raises(UserError, match=r"token ids from . to ..; the model has 0 to 15"):
    first_tokens(open_batches(numbered, vocab_size=16), 5)


def test_no_file_no_record_and_a_truncated_file_are_one_sentence_each(tmp_path, numbered):
  with pytest.raises(UserError, match="no training sequence in an empty list"):
    open_batches([])
  write_records(tmp_path / "empty.array_record", [])
  with pytest.raises(UserError, match=r"empty\.array_record"):
    open_batches([tmp_path / "empty.array_record"])
  with pytest.raises(UserError, match=r"missing\.array_record.* cannot be read"):
    open_batches([tmp_path / "missing.array_record"])
  numbered[0].write_bytes(numbered[0].read_bytes()[:-200])
  with pytest.raises(UserError, match=r"part-00000.*cannot be read"):
    first_tokens(open_batches(numbered), 10)


def test_sequences_that_changed_under_a_checkpoint_are_refused(tmp_path, numbered):
  state = open_batches(numbered).get_state()
  fewer = write_sequences(tmp_path / "other", NUMBERED[:8], files=3)
  with pytest.raises(UserError, match="8 in 3 files, wanted 10 in 3 files"):
    open_batches(fewer).set_state(state)
  assert jax.process_count() == 1
