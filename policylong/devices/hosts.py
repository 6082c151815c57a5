"""Several processes as one run: who is who, waiting for each other, small exchanges, and ending together.

The same command runs on every host, and the processes share the working directory. What follows is
collective unless it says otherwise: every process makes the same calls in the same order, on its main
thread. With one process nothing here costs anything.
"""

import contextlib
import glob
import importlib.util
import itertools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from policylong import ending, oserrors
from policylong.errors import UserError

log = logging.getLogger(__name__)

# The key under which a process that fails tells the others why.
_FAILED = "policylong/failed"
# Nobody waits longer for the others (seconds). A process that dies is noticed much sooner, by its heartbeat.
_PATIENCE = 7 * 24 * 3600
# How long the others are waited for at the start (seconds).
_START = 300
# How long the last ones are waited for when all processes end (seconds).
_GOODBYE = 60
# Numbers the barriers: a name may come again, its number does not.
_numbers = itertools.count()


@contextlib.contextmanager
def joined(coordinator_address: str | None, num_processes: int | None, process_id: int | None,
           simulated_devices: int) -> Iterator[None]:
  """Joins the processes of a run; must be entered before any device is touched.

  Inside, a process that fails takes the others with it: they say why and exit with code 1. So does one that a signal
  asks to leave, with the signal's code, unless it is to end in order (`ending.deferred`).

  Args:
    coordinator_address: host:port of process 0. None, as the next two: the hosts of a TPU pod find each
      other, and elsewhere there is one process.
    num_processes: P.
    process_id: 0 .. P - 1.
    simulated_devices: CPU devices of all processes together that take the place of real ones; 0 for those.

  Raises:
    UserError: the arguments contradict each other, or the other processes were not found.
  """
  _check(coordinator_address, num_processes, process_id, simulated_devices)
  if simulated_devices:
    log.info("on %d simulated devices of the CPU, whatever else is there (mesh.simulated_devices; 0: the real ones)",
             simulated_devices)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", simulated_devices // (num_processes or 1))
  if coordinator_address is None and (simulated_devices or not _on_tpu_pod()):
    yield
    return
  _connect(coordinator_address, num_processes, process_id)
  leaving = threading.Lock()
  follower = threading.Thread(target=_follow, args=(leaving,), daemon=True)
  follower.start()
  try:
    with ending.telling(_leave_with_the_others):
      yield
  except BaseException as error:
    leaving.acquire()  # never given back: where another process failed first, `_follow` ends this one
    _tell_failure(*_told(error))
    raise
  else:
    leaving.acquire()
  finally:
    jax.distributed.shutdown()
    follower.join()  # a thread in native code must not see the interpreter end


def index() -> int:
  """The number of this process, from 0. Not collective."""
  return jax.process_index()


def count() -> int:
  """P, the number of processes. Not collective."""
  return jax.process_count()


def is_first() -> bool:
  """Whether this is the process that writes markers and tables. Not collective."""
  return index() == 0


def share(items: int) -> range:
  """This process's part of 0 .. items - 1: the parts are contiguous and follow each other. Not collective."""
  return range(items * index() // count(), items * (index() + 1) // count())


def barrier(name: str) -> None:
  """Returns when all processes are here. What they wrote before is on the shared storage."""
  if count() > 1:
    client().wait_at_barrier(f"policylong/{next(_numbers)}/{name}", timeout_in_ms=1000 * _PATIENCE)


@contextlib.contextmanager
def first_before_others(name: str) -> Iterator[None]:
  """The first process goes through the block, then all others do."""
  if not is_first():
    barrier(name)
  yield
  if is_first():
    barrier(name)


def all_gather(array: np.ndarray) -> list[np.ndarray]:
  """The arrays of all processes, in the order of their numbers.

  Args:
    array: [n, ...]; n may differ from process to process, the rest of the shape and the dtype may not.
  """
  array = np.ascontiguousarray(array)
  if count() == 1:
    return [array]
  barrier("all_gather")  # collectives of the devices have less patience than we do
  lengths = multihost_utils.process_allgather(np.array([len(array)], np.int32))[:, 0].tolist()
  # Bytes, so that no dtype changes on the way; lengths of powers of two, so that few programs are compiled.
  size = array.dtype.itemsize * int(np.prod(array.shape[1:]))
  padded = np.zeros(1 << max(6, (max(lengths) * size - 1).bit_length()), np.uint8)
  padded[:array.nbytes] = array.reshape(-1).view(np.uint8)
  gathered = multihost_utils.process_allgather(padded)
  return [part[:n * size].view(array.dtype).reshape(n, *array.shape[1:]) for part, n in zip(gathered, lengths)]


def agreed(value: bool | np.ndarray) -> np.ndarray:
  """The first process's `value`: what the files say must be asked once, as one host may see them later."""
  return all_gather(np.asarray(value)[None])[0][0]


def anyone(value: bool) -> bool:
  """Whether it is true in any process."""
  return any(part[0] for part in all_gather(np.array([value])))


def largest(value: int) -> int:
  """The largest `value` of all processes."""
  return max(int(part[0]) for part in all_gather(np.array([value])))


def _check(coordinator_address, num_processes, process_id, simulated_devices) -> None:
  flags = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
  missing = [f"--{name}" for name, value in flags.items() if value is None]
  if missing and len(missing) < len(flags):
    raise UserError(f"{' and '.join(missing)} missing: give all of {', '.join(f'--{name}' for name in flags)}, or none "
                    "on a TPU pod and for one process")
  if not missing:
    if num_processes < 1:
      raise UserError(f"--num_processes is {num_processes}; it must be at least 1")
    if not 0 <= process_id < num_processes:
      raise UserError(f"--process_id is {process_id}; with --num_processes = {num_processes} it must be between 0 and "
                      f"{num_processes - 1}")
    if not coordinator_address.rpartition(":")[2].isdigit() or ":" not in coordinator_address:
      raise UserError(f"--coordinator_address is {coordinator_address!r}; it must be host:port of process 0")
    if simulated_devices % num_processes:
      raise UserError(f"mesh.simulated_devices is {simulated_devices}, not divisible by --num_processes = "
                      f"{num_processes}")


def _connect(coordinator_address, num_processes, process_id) -> None:
  """Finds the other processes."""
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # It would take SIGTERM for a notice and go on; `steps` ends training in order.
  jax.config.update("jax_enable_preemption_service", False)
  log.info("waiting for the other processes, at most %d s", _START)
  if process_id:
    _wait_for_first(coordinator_address)
  try:
    jax.distributed.initialize(coordinator_address, num_processes, process_id, initialization_timeout=_START,
                               shutdown_timeout_seconds=_GOODBYE)
  except RuntimeError as error:
    raise UserError(f"the processes of the run did not find each other at {coordinator_address or 'the TPU pod'} "
                    f"({str(error).splitlines()[0]}): start the same command on every host, with a port that is "
                    "free") from error


def _wait_for_first(coordinator_address: str) -> None:
  """Returns when process 0 answers; of an address where nobody does, JAX would only tell by aborting."""
  host, _, port = coordinator_address.rpartition(":")
  end = time.monotonic() + _START
  while True:
    try:
      socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
      return
    except OSError as error:
      if time.monotonic() > end:
        raise UserError(f"process 0 does not answer at {coordinator_address} ({error.strerror or error}): start the "
                        "same command there with --process_id=0, or correct --coordinator_address") from error
    time.sleep(0.5)


def _on_tpu_pod() -> bool:
  """Whether there may be other hosts that `jax.distributed.initialize()` finds by itself."""
  if (os.environ.get("JAX_PLATFORMS") or "tpu").split(",")[0] != "tpu" or not importlib.util.find_spec("libtpu"):
    return False
  if int(os.environ.get("MEGASCALE_NUM_SLICES") or 1) > 1:
    return True
  # Where the hosts are listed (GKE; notebooks list themselves alone), that answers it.
  if workers := os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES"):
    return "," in workers
  # A TPU VM: its metadata server knows. JAX asks it, and one host is as good as several.
  chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
  return bool(chips) and "TPU_SKIP_MDS_QUERY" not in os.environ


def end(sentence: str) -> None:
  """Ends this process and the others with code 1, from any thread. Not collective."""
  if client() is not None:
    with contextlib.suppress(Exception):  # the others will miss its heartbeat
      _tell_failure(sentence)
  ending.say(sentence)
  os._exit(1)  # a run may be killed at any instant


def client() -> Any:
  """JAX's client of the processes' common service; None where there is one process. Not collective."""
  # JAX has no public name for it, and only its barriers wait as long as we want: Orbax takes it from here too.
  return distributed.global_state.client


def _told(error: BaseException) -> tuple[str, int]:
  """What the others are told of this process's end: (why, the code that they end with)."""
  if isinstance(error, ending.Terminated | KeyboardInterrupt):
    number = ending.requested() or signal.SIGINT
    return ending.sentence(number), ending.CODES[number]
  if isinstance(error, UserError):
    return str(error), 1
  return oserrors.sentence(error) or f"{type(error).__name__}, see what it said", 1


def _tell_failure(reason: str, code: int = 1) -> None:
  happened = "failed: " if code == 1 else "was "
  client().key_value_set(_FAILED, f"{code} {index()} process {index()} of {count()} {happened}{reason}",
                         allow_overwrite=True)


def _leave_with_the_others(number: signal.Signals) -> None:
  """This process was asked to leave: so are the others, at once or (`steps`) after the step that all agree on."""
  if not ending.is_deferred():
    _tell_failure(ending.sentence(number), ending.CODES[number])


def _follow(leaving: threading.Lock) -> None:
  """Ends this process when another one fails: its main thread may wait for that one in native code.

  A run may be killed at any instant, so nothing needs to be put in order here. But the first process, which holds the
  lock of the working directory, is asked as the other one was where it can still leave as asked.
  """
  try:
    code, process, reason = client().blocking_key_value_get(_FAILED, 1000 * _PATIENCE).split(" ", 2)
  except Exception:  # of several kinds: this process has left, or JAX itself ends it as the first one is gone
    return
  if int(process) == index():
    return
  asked = next((number for number, wanted in ending.CODES.items() if wanted == int(code)), None)
  if asked and is_first() and not ending.is_deferred():
    os.kill(os.getpid(), asked)
  elif leaving.acquire(blocking=False):
    ending.say(reason)
    jax.distributed.shutdown()
    os._exit(int(code))
