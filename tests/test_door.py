"""What a run needs is reckoned before it works, and refused with both numbers where it is not there."""

import collections
import math

import jax
import pytest

from policylong import config as config_lib
from policylong import door, loop
from policylong.errors import UserError
from policylong.storage.workdir import Workdir
from tests.small_run import make_small_run, small_config

Usage = collections.namedtuple("Usage", "total used free")
MIB = 2**20


@pytest.fixture
def free(monkeypatch):
  """Sets what is free on every disk, and in the host's memory, in bytes."""
  def make(disk=math.inf, memory=math.inf):
    monkeypatch.setattr(door.shutil, "disk_usage", lambda path: Usage(disk, 0, disk))
    monkeypatch.setattr(door.memory, "available_bytes", lambda: memory)
  return make


def test_folders_on_one_disk_share_its_room(tmp_path, free):
  disks = [door.Disk("--workdir", tmp_path / "run", [door.Need("checkpoints:", 3 * MIB)]),
           door.Disk("corpus.cache_dir", tmp_path / "cache" / "deep", [door.Need("vectors:", 2 * MIB)]),
           door.Disk("--workdir", "gs://bucket/run", [door.Need("checkpoints:", 1e18)])]
  free(disk=5 * MIB)
  door.check_disks(disks)
  free(disk=5 * MIB - 1)
  with pytest.raises(UserError, match=r"at least 5.0 MiB .*--workdir .*run and corpus.cache_dir .*cache/deep "
                                      r"\(checkpoints: 3.0 MiB, vectors: 2.0 MiB\), and its disk has 5.0 MiB free"):
    door.check_disks(disks)


class Device:
  """An accelerator of 1 MiB."""
  platform, device_kind = "gpu", "a small GPU"

  def memory_stats(self):
    return {"bytes_limit": MIB}


def test_both_numbers_of_the_devices_memory_are_told(free):
  door.check_device_memory([door.Need("the state:", MIB)], Device())
  with pytest.raises(UserError, match=r"at least 1.5 MiB of each device's memory .*\(the state: 1.0 MiB, its gradient: "
                                      r"512.0 KiB\), and a small GPU has 1.0 MiB: take more devices"):
    door.check_device_memory([door.Need("the state:", MIB), door.Need("its gradient:", MIB / 2)], Device())
  free(memory=7 * MIB)
  with pytest.raises(UserError, match=r"at least 8.0 MiB of the host's memory .* and 7.0 MiB are free"):
    door.check_device_memory([door.Need("the state:", MIB)], jax.devices()[0])  # eight simulated ones share it


def test_a_run_that_does_not_fit_is_refused_before_any_work(tmp_path, material, free):
  make_small_run(tmp_path, material)
  config = small_config(tmp_path)
  config.mesh.update({"data": 2, "context": 4})
  config.training.keep_checkpoints = 2
  vocabulary = (tmp_path / "model" / "config.json").read_text().split('"vocab_size": ')[1].split(",")[0].split("}")[0]
  # By hand: embedding (tied), two layers of attention (4 query, 2 key and value heads of 8), feed-forward and norms.
  parameters = 32 * int(vocabulary) + 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
  # Parameters and two moments in float32; of two rounds the last and, of the newest two, one more. Two rounds of eight
  # sequences of 256 tokens. What a first start notes is a little less than 100 KB.
  least = 3 * 12 * parameters + 2 * 8 * 256 * 4
  for disk, refused in ((least - 100_000, True), (least + 1000, False)):
    free(disk=disk)
    config.screening.alpha = 50.0  # where the disk is large enough, it ends in the first round
    with pytest.raises(UserError, match="its disk has" if refused else "lower alpha"):
      loop.run(config_lib.parse(config), tmp_path / "run")
    assert (tmp_path / "run" / "rounds").exists() is not refused
  free(memory=10 * MIB)
  with pytest.raises(UserError, match=r"MiB of the host's memory .*the state of training: .* and 10.0 MiB are free"):
    loop.run(config_lib.parse(config), tmp_path / "other")


def test_an_index_that_fits_neither_disk_nor_memory_is_refused(tmp_path, free):
  config = small_config(tmp_path)
  config.retrieval.dim = 64
  retrieval = config_lib.parse(config).retrieval  # exact, of hashed n-grams
  # Half precision, 64 numbers: 128 bytes a chunk on the disk and, while it is built, twice that in memory.
  free(disk=128 * 10_000, memory=256 * 10_000)
  door.check_index(retrieval, 10_000, str(tmp_path / "cache"))
  with pytest.raises(UserError, match=r"the index of 10,001 chunks: 1.2 MiB.*its disk has 1.2 MiB free"):
    door.check_index(retrieval, 10_001, str(tmp_path / "cache"))
  free(memory=256 * 10_000)
  with pytest.raises(UserError, match=r"10,001 chunks, 64 numbers each, takes 0.00 GB of memory to be built"):
    door.check_index(retrieval, 10_001, str(tmp_path / "cache"))
  (tmp_path / "cache" / "rows-abc").mkdir(parents=True)
  door.check_index(retrieval, 10_001, str(tmp_path / "cache"))  # it is there, and half as large while it is searched


def test_what_is_there_already_needs_no_more_room(tmp_path, free):
  assert door.size_of(tmp_path) == 0
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "b").write_bytes(bytes(1000))
  assert door.size_of(tmp_path) == 1000 and door.size_of(Workdir(tmp_path / "nothing").directory) == 0
