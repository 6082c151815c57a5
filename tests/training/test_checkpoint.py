"""Checkpoints: whole or not there, on any mesh, kept as promised, and one sentence where they are damaged."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest
from tiny_training import TINY, mesh_of, tiny_params, training_config

from policylong.errors import UserError
from policylong.training.checkpoint import Checkpoints
from policylong.training.optimizer import make_optimizer
from policylong.training.state import TrainState, abstract_state, initial_state, restart_optimizer

CHILD = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
OPTIMIZER = make_optimizer(training_config(), 1, TINY)


def state_on(mesh) -> TrainState:
  return initial_state(tiny_params(), OPTIMIZER, abstract_state(TINY, OPTIMIZER, mesh))


def open_checkpoints(path, keep_newest=2, keep=lambda step: False) -> Checkpoints:
  return Checkpoints(path, keep_newest=keep_newest, keep=keep)


def assert_same_bits(found, wanted):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_what_is_saved_is_restored_bit_for_bit_also_when_the_state_is_donated_at_once(tmp_path):
  mesh = mesh_of()
  state = state_on(mesh)
  wanted = jax.tree.map(np.array, state)
  checkpoints = open_checkpoints(tmp_path)
  checkpoints.save(4, state, {"iterator": {"next_index": 4}}, {"round": 1})
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  for _ in range(3):
    state = step(state)
  checkpoints.wait()
  found = checkpoints.restore(abstract_state(TINY, OPTIMIZER, mesh), 4)
  assert_same_bits(found.state, wanted)
  assert (found.data, found.meta) == ({"iterator": {"next_index": 4}}, {"round": 1})


def test_a_checkpoint_of_one_mesh_is_restored_onto_another(tmp_path):
  state = state_on(mesh_of(data=2, fsdp=4))
  checkpoints = open_checkpoints(tmp_path)
  checkpoints.save(1, state, {}, {})
  abstract = abstract_state(TINY, OPTIMIZER, mesh_of(fsdp=2, context=2, tensor=2))
  found = checkpoints.restore(abstract, 1).state
  assert_same_bits(found, state)
  assert jax.tree.all(jax.tree.map(lambda x, want: x.sharding == want.sharding, found, abstract))


def test_moments_lie_as_their_parameters_do():
  state = state_on(mesh_of(data=2, fsdp=4))
  adam = state.opt_state[1][0]  # of chain(clip, chain(adam, decay, rate))
  for moments in (adam.mu, adam.nu):
    assert jax.tree.all(jax.tree.map(lambda m, p: m.sharding == p.sharding, moments, state.params))
  assert len(state.params["embedding"].sharding.device_set) == 8


def test_restarting_the_optimizer_keeps_parameters_and_step():
  mesh = mesh_of()
  state = state_on(mesh)
  moved = jax.tree.map(lambda x: x + 1, state)
  kept = jax.tree.map(np.array, (moved.params, moved.step))
  restarted = restart_optimizer(moved, OPTIMIZER, abstract_state(TINY, OPTIMIZER, mesh))
  assert_same_bits((restarted.params, restarted.step), kept)
  assert_same_bits(restarted.opt_state, state_on(mesh).opt_state)


def test_the_newest_and_the_ends_of_rounds_are_kept(tmp_path):
  checkpoints = open_checkpoints(tmp_path, keep_newest=2, keep=lambda step: step % 4 == 0)
  state = state_on(mesh_of())
  for step in range(1, 8):
    checkpoints.save(step, state, {}, {})
  checkpoints.wait()
  assert checkpoints.steps() == [4, 6, 7]
  assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "6", "7"]


KILLED = """
    import os, sys, threading, time
    import jax.numpy as jnp
    from policylong.training.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], keep_newest=5, keep=lambda step: False)
    checkpoints.save(1, {"x": jnp.arange(10)}, {}, {})
    print("saving", flush=True)
    checkpoints.save(2, {"x": jnp.ones((20_000_000,))}, {}, {})
    time.sleep(60)
"""


def test_a_save_that_was_killed_is_not_taken_for_a_whole_one(tmp_path):
  process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], stdout=subprocess.PIPE,
                             env=CHILD)
  assert process.stdout.readline() == b"saving\n"
  while not (halves := [path for path in tmp_path.iterdir() if path.name != "1"]):
    time.sleep(0.0005)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert "tmp" in halves[0].name and not (tmp_path / "2").exists()
  checkpoints = open_checkpoints(tmp_path)
  assert checkpoints.latest_step() == 1
  assert [path.name for path in tmp_path.iterdir()] == ["1"]  # what the kill left behind is gone


def test_a_save_that_was_killed_at_its_very_start_does_not_stand_in_the_way_of_the_next(tmp_path):
  (tmp_path / "3.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
  checkpoints = open_checkpoints(tmp_path)
  assert checkpoints.latest_step() is None
  checkpoints.save(3, state_on(mesh_of()), {}, {})
  assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_damaged_checkpoint_is_one_sentence(tmp_path):
  checkpoints = open_checkpoints(tmp_path)
  checkpoints.save(3, state_on(mesh_of()), {}, {})
  abstract = abstract_state(TINY, OPTIMIZER, mesh_of())
  largest = max((path for path in (tmp_path / "3").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:1000])
  with pytest.raises(UserError, match=rf"{largest} cannot be read, as it is damaged \(its bytes are not") as caught:
    open_checkpoints(tmp_path).restore(abstract, 3)
  assert "\n" not in str(caught.value)
  shutil.rmtree(tmp_path / "3" / "state")
  with pytest.raises(UserError, match=r"3/state/.* cannot be read, as it is damaged \(it is missing\)"):
    open_checkpoints(tmp_path).restore(abstract, 3)


def test_a_checkpoint_of_another_model_is_one_sentence(tmp_path):
  checkpoints = open_checkpoints(tmp_path)
  checkpoints.save(3, state_on(mesh_of()), {}, {})
  other = type(TINY)(**{**vars(TINY), "mlp_dim": 128})
  optimizer = make_optimizer(training_config(), 1, other)
  with pytest.raises(UserError, match="of another model"):
    checkpoints.restore(abstract_state(other, optimizer, mesh_of()), 3)


FULL = """
    import os, sys, jax.numpy as jnp
    from policylong.training.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1] + "/checkpoints", keep_newest=5, keep=lambda step: False)
    checkpoints.save(1, {"x": jnp.arange(10)}, {}, {})
    with open(sys.argv[1] + "/ballast", "wb") as file:
      room = os.fstatvfs(file.fileno())
      os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
    try:
      checkpoints.save(2, {f"x{i}": jnp.arange(10_000) for i in range(60)}, {}, {})
      checkpoints.wait()
    except OSError as error:
      print("errno", error.errno, checkpoints.steps())
"""


def test_a_full_disk_is_an_oserror_and_leaves_the_checkpoint_before(tmp_path):
  """On a file system of 8 MB, mounted for one process where the system lets us."""
  (tmp_path / "full.py").write_text(textwrap.dedent(FULL))
  (tmp_path / "small").mkdir()
  script = (f"mount -t tmpfs -o size=8m tmpfs {tmp_path}/small && echo mounted && "
            f"{sys.executable} {tmp_path}/full.py {tmp_path}/small")
  if shutil.which("unshare") is None:
    pytest.skip("no unshare here")
  result = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True,
                          env=CHILD)
  if "mounted" not in result.stdout:
    pytest.skip("mounting is not allowed here")
  assert f"errno {errno.ENOSPC} [1]" in result.stdout, result.stderr
  # Nor do the other writes of that save, which are left in their midst, print a stack trace.
  assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr


@pytest.mark.parametrize("item", ["state", "data", "meta", "MANIFEST.json"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_is_taken(tmp_path, caplog, item):
  state, checkpoints = state_on(mesh_of()), open_checkpoints(tmp_path, keep_newest=3)
  for step in (1, 2, 3):
    checkpoints.save(step, state, {"step": step}, {})
  checkpoints.close()
  for step in (2, 3):
    place = tmp_path / str(step) / item
    path = place if place.is_file() else max(place.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
  checkpoints = open_checkpoints(tmp_path, keep_newest=3)
  assert checkpoints.latest_step() == 1 and checkpoints.steps() == [1]
  assert checkpoints.restore(abstract_state(TINY, OPTIMIZER, mesh_of()), 1).data == {"step": 1}
  assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "damaged-2", "damaged-3"]
  assert [record.getMessage() for record in caplog.records if "set aside as damaged-3" in record.getMessage()]
  checkpoints.save(2, state, {"step": 2}, {})
  assert open_checkpoints(tmp_path, keep_newest=3).latest_step() == 2


def test_a_checkpoint_whose_save_was_killed_before_its_manifest_is_given_one(tmp_path, caplog):
  checkpoints = open_checkpoints(tmp_path)
  checkpoints.save(3, state_on(mesh_of()), {}, {})
  checkpoints.close()
  told = (tmp_path / "3" / "MANIFEST.json").read_bytes()
  (tmp_path / "3" / "MANIFEST.json").unlink()
  assert open_checkpoints(tmp_path).latest_step() == 3
  assert (tmp_path / "3" / "MANIFEST.json").read_bytes() == told and "is taken as it is, and given one" in caplog.text
