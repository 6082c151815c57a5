"""What a run will need, against what is there, before it works: disk, host memory, the devices' memory.

Only what follows from the config, the model and the corpus by arithmetic is counted, so that what is refused here could
not have ended well; tables, logs and what programs need for themselves come on top. Both numbers are in the sentence.
"""

import dataclasses
import math
import os
import pathlib
import shutil
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from policylong import config as config_lib
from policylong import paths
from policylong.devices import hosts
from policylong.errors import UserError
from policylong.retrieval import memory
from policylong.retrieval.embedders import embedder_dim
from policylong.retrieval.pieces import index_memory
from policylong.retrieval.store import check_memory
from policylong.storage.workdir import Workdir
from policylong.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Need:
  """So many bytes for something, e.g. "3 checkpoints"."""
  what: str
  bytes: float


@dataclasses.dataclass(frozen=True)
class Disk:
  """What will be written below a folder, which the flag or field `name` names."""
  name: str
  folder: str | os.PathLike
  needs: Sequence[Need]


def check_training(training: config_lib.Training, state: TrainState, workdir: Workdir, *, rounds: int, sequences: int,
                   length: int, scored_in: str | None = None) -> None:
  """Whether a training's checkpoints and sequences find room on the disk, and its state on the devices.

  Args:
    training: the recipe of a round.
    state: abstract, with its shardings.
    workdir: where it writes; what is there already needs no more room.
    rounds: how many there are.
    sequences: that a round writes.
    length: tokens of a sequence.
    scored_in: dtype of the copy of the parameters that each device holds for screening; None: there is none.

  Raises:
    UserError: they do not.
  """
  leaves, params = jax.tree.leaves(state), jax.tree.leaves(state.params)
  one = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
  between = math.ceil(training.steps_per_round / training.checkpoint_every) - 1  # of a round, before its last
  kept = rounds + min(training.keep_checkpoints - 1, rounds * between)
  records = rounds * sequences * length * 4 * training.record_rows
  there = 0 if paths.is_url(workdir.directory) else size_of(workdir.directory)
  check_disks([Disk("--workdir", workdir.directory, [
      Need(f"{kept} checkpoints of {in_units(one)}:", max(0, kept * one - there)),
      Need("sequences:", max(0, records - max(0, there - kept * one)))])])
  device = jax.local_devices()[0]
  share = sum(map(_bytes_on_a_device, leaves))
  check_device_memory([Need("the state of training:", share),
                       Need("its gradient:", sum(map(_bytes_on_a_device, params)))], device)
  if scored_in is not None:
    copy = sum(math.prod(leaf.shape) for leaf in params) * jnp.dtype(scored_in).itemsize
    check_device_memory([Need("the state of training:", share), Need("the policy that screens:", copy)],
                        device)


def check_index(config: config_lib.Retrieval, chunks: int, cache_dir: str) -> None:
  """Whether the vectors and the index of so many chunks find room on the disk and, at its peak, in this host's memory.

  What lies in `cache_dir` already, whichever corpus's it is, needs no more room; where an index does, none is built.

  Raises:
    UserError: they do not.
  """
  needed = index_memory(config, chunks, embedder_dim(config), hosts.count())
  found = [path for kind in ("rows-*", "index-*") for path in paths.local(cache_dir).glob(kind) if path.is_dir()]
  check_disks([Disk("corpus.cache_dir", cache_dir, [
      Need(f"the index of {chunks:,} chunks:", max(0, needed.disk - sum(map(size_of, found))))])])
  check_memory(config, chunks, embedder_dim(config), built=bool(found))


def check_disks(disks: Sequence[Disk]) -> None:
  """Whether what will be written finds room; folders on one disk share it. What no disk holds is not looked at.

  Raises:
    UserError: it does not.
  """
  together: dict[int, list[Disk]] = {}
  for disk in disks:
    if not paths.is_url(disk.folder):
      together.setdefault(_there(disk.folder).stat().st_dev, []).append(disk)
  for sharing in together.values():
    free = shutil.disk_usage(_there(sharing[0].folder)).free
    needs = [need for disk in sharing for need in disk.needs]
    if (wanted := _total(needs)) > free:
      where = " and ".join(f"{disk.name} {os.fspath(disk.folder)}" for disk in sharing)
      raise UserError(f"at least {in_units(wanted)} will be written to {where} ({_listed(needs)}), and its disk has "
                      f"{in_units(free)} free: free some space, or name a folder on another disk")


def check_host_memory(needs: Sequence[Need]) -> None:
  """Whether the host's memory holds `needs` at once, of this machine or of the part of it that a container may use.

  Raises:
    UserError: it does not.
  """
  free = memory.available_bytes()
  if (wanted := _total(needs)) > free:
    raise UserError(f"at least {in_units(wanted)} of the host's memory are needed at once ({_listed(needs)}), and "
                    f"{in_units(free)} are free: take a machine or a container with more, or more hosts")


def check_device_memory(needs: Sequence[Need], device: jax.Device) -> None:
  """Whether a device's memory holds `needs` at once; a CPU's is the host's, where all its devices share it.

  Raises:
    UserError: it does not.
  """
  if device.platform == "cpu":
    here = jax.local_device_count()
    check_host_memory([Need(need.what, need.bytes * here) for need in needs])
    return
  there = (device.memory_stats() or {}).get("bytes_limit", math.inf)
  if (wanted := _total(needs)) > there:
    raise UserError(f"at least {in_units(wanted)} of each device's memory are needed at once ({_listed(needs)}), and "
                    f"{device.device_kind} has {in_units(there)}: take more devices along mesh.fsdp or mesh.tensor")


def _bytes_on_a_device(leaf: jax.ShapeDtypeStruct) -> int:
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def size_of(folder: os.PathLike) -> int:
  """The bytes of all files below a local folder."""
  return sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())


def in_units(size: float) -> str:
  """Bytes as a person reads them."""
  for unit, of in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
    if size >= of:
      return f"{size / of:.1f} {unit}"
  return f"{size / 2**10:.1f} KiB"


def _total(needs: Sequence[Need]) -> float:
  return sum(need.bytes for need in needs)


def _listed(needs: Sequence[Need]) -> str:
  return ", ".join(f"{need.what} {in_units(need.bytes)}" for need in needs)


def _there(folder: str | os.PathLike) -> pathlib.Path:
  """The folder, or what of the way to it is there."""
  path = pathlib.Path(folder).absolute()
  while not path.exists() and path != path.parent:
    path = path.parent
  return path
