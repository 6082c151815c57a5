"""The device mesh, the logical axes of arrays, and the one table that maps these onto that.

Weights and activations name their dimensions ("embed", "heads", "batch", ...); `RULES` says over which
mesh axes each is split. Weights are split over fsdp and context together, so that a long-context mesh
holds no weight twice; heads, MLP columns and the vocabulary over tensor; batches over data and fsdp.
"""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from policylong import config
from policylong.errors import UserError

AXES = ("data", "fsdp", "context", "tensor")

# logical axis -> mesh axes; an axis that is None in a declaration is whole on every device
RULES = (
    ("batch", ("data", "fsdp")),
    ("sequence", ("context",)),
    ("layers", ()),
    ("vocab", ("tensor",)),
    ("embed", ("fsdp", "context")),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("head_dim", ()),
    ("mlp", ("tensor",)),
)


def make_mesh(sizes: config.Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """A mesh with the axes `AXES` over `devices` (all of them by default); a size of -1 takes what is left.

  Neighbours on an axis are neighbours in the machine; of several TPU slices each holds whole parts of data.

  Raises:
    UserError: the sizes do not multiply to the number of devices, or data to that of the slices.
  """
  devices = jax.devices() if devices is None else devices
  shape = [getattr(sizes, axis) for axis in AXES]
  fixed = math.prod(size for size in shape if size != -1)
  named = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, shape))
  if -1 in shape:
    if len(devices) % fixed:
      raise UserError(f"mesh ({named}) needs a multiple of {fixed} devices, but there are {len(devices)}")
    shape[shape.index(-1)] = len(devices) // fixed
  elif fixed != len(devices):
    raise UserError(f"mesh ({named}) needs {fixed} devices, but there are {len(devices)}")
  return jax.sharding.Mesh(_arranged(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: list[int], devices: Sequence[jax.Device]) -> np.ndarray:
  if devices[0].platform != "tpu":
    return np.asarray(devices).reshape(shape)
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  # An axis may be part of an axis of the machine, as 8 is of 4 x 4 x 4.
  if slices == 1:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  data, *rest = shape
  if data % slices:
    raise UserError(f"mesh.data is {data}, but there are {slices} slices: between slices only the axis data is split, "
                    f"so make it a multiple of {slices}")
  return mesh_utils.create_hybrid_device_mesh((data // slices, *rest), (slices, 1, 1, 1), devices,
                                              allow_split_physical_axes=True)


def local_mesh(mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
  """This process's devices of `mesh`, in its order, all along the axis data: for work without the other processes."""
  return data_mesh([device for device in mesh.devices.flat if device.process_index == jax.process_index()])


def data_mesh(devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
  """These devices in their order, all along the axis data."""
  return jax.sharding.Mesh(np.reshape(devices, (len(devices),) + (1,) * (len(AXES) - 1)), AXES,
                           axis_types=(AxisType.Auto,) * len(AXES))


def on_each_device(function: Callable, mesh: jax.sharding.Mesh, arrays: int) -> jax.stages.Wrapped:
  """`function(whole, *arrays)` compiled such that every device of `mesh` computes its own rows of the arrays.

  `whole`, such as weights, lies on each device, and nothing is sent between them.
  """
  whole, rows = PartitionSpec(), PartitionSpec(AXES)
  # One device's rows are nobody else's business: inside shard_map nothing can be spread by the compiler.
  local = jax.shard_map(function, mesh=mesh, in_specs=(whole,) + (rows,) * arrays, out_specs=rows, check_vma=False)
  whole, rows = NamedSharding(mesh, whole), NamedSharding(mesh, rows)
  return jax.jit(local, in_shardings=(whole,) + (rows,) * arrays, out_shardings=rows)


def local_copy(x: jax.Array, mesh: jax.sharding.Mesh) -> jax.Array:
  """An array that is whole on every device of all processes, as one on this process's `local_mesh` alone."""
  held = {shard.device: shard.data for shard in x.addressable_shards}
  return jax.make_array_from_single_device_arrays(x.shape, NamedSharding(mesh, PartitionSpec()),
                                                  [held[device] for device in mesh.devices.flat])


def partition_spec(logical_axes: Sequence[str | None]) -> PartitionSpec:
  """The mesh axes of each dimension, by `RULES`; None is whole on every device."""
  rules = dict(RULES)
  return PartitionSpec(*(None if axis is None else rules[axis] or None for axis in logical_axes))


def sharding(mesh: jax.sharding.Mesh, logical_axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
  """How an array of `shape` with these logical axes lies on `mesh`.

  Raises:
    UserError: a dimension is not divisible by the devices that it is split over.
  """
  rules = dict(RULES)
  for logical, size in zip(logical_axes, shape, strict=True):
    axes = rules[logical] if logical else ()
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if size % parts:
      raise UserError(f"the model's {logical} dimension is {size}, not divisible by mesh.{' * mesh.'.join(axes)} = "
                      f"{parts}: choose mesh sizes that divide it")
  return NamedSharding(mesh, partition_spec(logical_axes))


def constrain(x: jax.Array, logical_axes: Sequence[str | None]) -> jax.Array:
  """Fixes how an activation lies on the mesh of `jax.set_mesh`; the array itself where none is set.

  Inside `jax.shard_map` an array is already one device's share, so nothing is asked of it there.
  """
  if current() is None:
    return x
  return jax.lax.with_sharding_constraint(x, partition_spec(logical_axes))


def current() -> jax.sharding.AbstractMesh | None:
  """The mesh of `jax.set_mesh`, if arrays lie on several devices by `RULES`; None inside `jax.shard_map`, too."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size > 1 and mesh.axis_names == AXES and set(mesh.axis_types) == {AxisType.Auto}:
    return mesh
  return None


def platform() -> str:
  """What computes the program being traced: "cpu", "gpu" or "tpu"; also if it is compiled for devices elsewhere."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def varying_as(x: jax.Array, *others: jax.Array) -> jax.Array:
  """Inside `jax.shard_map`: marks x as differing between devices wherever one of the others does."""
  axes = frozenset().union(*(jax.typeof(other).mat.varying for other in others)) - jax.typeof(x).mat.varying
  return jax.lax.pcast(x, tuple(sorted(axes)), to="varying") if axes else x
