"""What each host of a TPU slice puts on its devices, against the batches of one process. Prints the rows of each host.

The devices are a compile-only topology's, in the order of a real slice; no array can be put on them, so what each would
be given is gathered in its place.
"""

import pathlib
import tempfile

import numpy as np

from policylong.aot import compiler

# Topology, (data, fsdp, context), sequences of a microbatch.
CASES = (("v5e:4x4", (1, 16, 1), 16), ("2xv5e:4x4", (2, 16, 1), 32), ("v5p:2x2x4", (1, 16, 1), 16),
         ("v5e:4x4", (1, 4, 4), 8), ("v5p:2x2x6", (1, 4, 6), 4))
LENGTH, SEQUENCES, STEPS = 96, 53, 3


def main():
  compiler.prepare_environment()
  import jax

  from policylong import config as config_lib
  from policylong.devices.mesh import make_mesh
  from policylong.training.batches import Batches, rows_held
  from policylong.training.step import token_sharding
  from tests.training.tiny_training import write_sequences

  def opened(mesh, batch):
    shape = (2, batch, LENGTH)
    return Batches(paths, shape=shape, sharding=token_sharding(mesh, shape), vocab_size=256, seed=3, round_index=1)

  def mesh_of(sizes, devices):
    data, fsdp, context = sizes
    return make_mesh(config_lib.Mesh(data=data, fsdp=fsdp, context=context, tensor=1), devices)

  def given(shape, sharding, part):
    return {device: part(index) for device, index in sharding.devices_indices_map(shape).items()
            if device.process_index == jax.process_index()}

  paths = write_sequences(pathlib.Path(tempfile.mkdtemp()), np.arange(SEQUENCES)[:, None] + np.arange(LENGTH), files=3)
  real_index, real_put = jax.process_index, jax.make_array_from_callback
  for topology, sizes, batch in CASES:
    jax.process_index, jax.make_array_from_callback = real_index, real_put
    one = opened(mesh_of((1, 1, 1), jax.devices()), batch)
    wanted = [np.asarray(next(one).tokens) for _ in range(STEPS)]
    jax.make_array_from_callback = given
    mesh = mesh_of(sizes, compiler.topology_devices(topology))
    shape, held = (2, batch, LENGTH), []
    sharding = token_sharding(mesh, shape)
    where = sharding.devices_indices_map(shape)
    found = [np.full(shape, -1) for _ in range(STEPS)]
    for process in sorted({device.process_index for device in where}):
      jax.process_index = lambda process=process: process
      own = opened(mesh, batch)
      for step in found:
        for device, tokens in next(own).tokens.items():
          step[where[device]] = tokens
      held.append(rows_held(sharding, shape, process))
    order = zigzag_order(sizes[2])
    for step, tokens in zip(found, wanted):
      np.testing.assert_array_equal(step, tokens[..., order], err_msg=f"{topology} {sizes}")
    print(f"{topology}_{'x'.join(map(str, sizes))}", *(",".join(map(str, rows)) for rows in held))


def zigzag_order(context: int) -> np.ndarray:
  """Where the tokens of a device stand in their sequence: of 2 C equal pieces its i-th device has i and 2 C - 1 - i."""
  pieces = np.arange(LENGTH).reshape(2 * context, -1)
  return np.concatenate([pieces[[i, 2 * context - 1 - i]].ravel() for i in range(context)])


if __name__ == "__main__":
  main()
