"""The flags of the commands that live in a working directory and may be several processes, beside --config."""

import contextlib
import logging
from collections.abc import Iterator

from absl import flags

from policylong import config as config_lib
from policylong import paths
from policylong.commands import config_flags
from policylong.errors import UserError

flags.adopt_module_key_flags(config_flags)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; the same folder resumes it.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0, for several processes.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process_id", None, "The number of this one, from 0.")


@contextlib.contextmanager
def started(mesh: config_lib.Mesh) -> Iterator[str]:
  """Says what goes on, joins the processes of the run, and gives its working directory.

  Raises:
    UserError: the flags contradict each other, or the other processes were not found.
  """
  logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
  logging.getLogger("policylong").setLevel(logging.INFO)
  from policylong.devices import hosts  # after the flags: --help and mistakes answer at once

  if not _WORKDIR.value:
    raise UserError("--workdir is empty: name a folder")
  with hosts.joined(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, mesh.simulated_devices):
    yield paths.expand(_WORKDIR.value)
