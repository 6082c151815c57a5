"""Several processes make the same run as one: same tables, same sequences, same parameters, killed or not.

The mesh is fsdp 2 x tensor 2, so every sum over devices has two terms, and a + b is b + a to the last bit:
the parameters are the same whichever process a device belongs to. (The gradient's norm sums over all four,
so the runs do not clip by it.) With more terms the order of a sum is the runtime's: see the last test.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from policylong.devices import hosts
from policylong.errors import UserError
from tests.small_run import make_small_run
from tests.test_resume import REPOSITORY, _files, _leaves

SETTINGS = {
    "mesh.fsdp": 2, "mesh.tensor": 2, "mesh.simulated_devices": 4, "training.clip_norm": 1e9,
    "training.steps_per_round": 2, "training.checkpoint_every": 1, "synthesis.sequence_length": 128,
    "screening.bucket_multiple": 64, "screening.tokens_per_batch": 192, "screening.control_chunks": 2}
TABLES = ("rounds/*/*.parquet", "rounds/*/*.json", "rounds/*/sequences/*", "final.json", "offpolicy.parquet",
          "corpus.json", "config.json")


def run(config, workdir, processes, kill=(0, ""), own=lambda process: {}, **settings):
  """Runs the small config in several processes; returns [(exit code, stderr)].

  `kill` is the process that kills itself, and where; all others are killed with it, as on a pod. `own` gives
  a process settings that the others do not have.
  """
  return run_together([
      ["tests.small_run", kill[1] if process == kill[0] else "", f"--config={config}", f"--workdir={workdir}",
       *(f"--config.{key}={value}" for key, value in {**SETTINGS, **settings, **own(process)}.items())]
      for process in range(processes)], workdir)


def run_together(modules, workdir):
  """Runs modules with their arguments as the processes of one run; returns [(exit code, stderr)]."""
  environment = run_environment()
  address, processes = free_address(), len(modules)
  running, logs = [], [Path(f"{workdir}.{process}.log") for process in range(processes)]
  for process, arguments in enumerate(modules):
    flags = [f"--coordinator_address={address}", f"--num_processes={processes}", f"--process_id={process}"]
    with logs[process].open("w") as log:
      running.append(subprocess.Popen([sys.executable, "-m", *arguments, *(flags if processes > 1 else [])],
                                      cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=log))
  end = time.monotonic() + 600
  while any(process.poll() is None for process in running):
    if any(process.poll() == -signal.SIGKILL for process in running) or time.monotonic() > end:
      for process in running:
        process.kill()
    time.sleep(0.02)
  return [(process.returncode, log.read_text()) for process, log in zip(running, logs)]


def run_environment():
  """Without the devices that the tests simulate for themselves."""
  return {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}


def free_address():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return f"localhost:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, material):
  folder = tmp_path_factory.mktemp("hosts")
  make_small_run(folder, material)
  return folder


@pytest.fixture(scope="module")
def one(folder):
  """The workdir of one process that was never killed."""
  ((code, log),) = run(folder / "small.py", folder / "one", 1)
  assert code == 0, log[-3000:]
  return folder / "one"


def check_same(wanted, found):
  for pattern in TABLES:
    a, b = _files(wanted, pattern), _files(found, pattern)
    assert a and list(a) == list(b)
    assert [name for name in a if a[name] != b[name]] == []
  assert not list(found.glob("rounds/*/shards")) and not [path for path in found.rglob("*.tmp")]
  (step, a), (other, b) = _leaves(wanted), _leaves(found)
  assert step == other == 4 and a.keys() == b.keys() and len(a) > 20
  for name, leaf in a.items():
    assert leaf.tobytes() == b[name].tobytes(), name
  lines = [[json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
           for workdir in (wanted, found)]
  assert [line["step"] for line in lines[1]] == [1, 2, 3, 4]
  assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


def test_two_processes_killed_and_started_again_end_with_the_bytes_of_one_that_was_not(folder, one):
  shutil.rmtree(folder / "cache")  # so that the two read the corpus
  killed = run(folder / "small.py", folder / "two", 2, kill=(1, "verify:2"))  # in the midst of a round
  assert [code for code, _ in killed] == [-signal.SIGKILL] * 2, killed
  killed = run(folder / "small.py", folder / "two", 1, kill=(0, "synthesis:2"))  # gone on with by another number
  assert [code for code, _ in killed] == [-signal.SIGKILL], killed
  ended = run(folder / "small.py", folder / "two", 2)
  assert [code for code, _ in ended] == [0, 0], ended
  assert "Traceback" not in ended[0][1] + ended[1][1]
  check_same(one, folder / "two")
  # Bars and messages are the first one's.
  assert "training" in ended[0][1] and "round" not in ended[1][1]


def test_a_method_that_searches_without_a_policy_finds_and_weighs_the_same_in_two_processes(folder):
  settings = {"method": "nextlong", "rounds": 1, "training.longce": True,
              "training.longfilter_share": 0.5, "training.short_window": 64}
  for processes in (1, 2):
    ended = run(folder / "small.py", folder / f"nextlong{processes}", processes, **settings)
    assert {code for code, _ in ended} == {0}, ended
  a, b = (_files(folder / f"nextlong{processes}", "rounds/1/**/*.[ap]*") for processes in (1, 2))
  assert a and a == b and any("array_record" in name for name in a)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(folder, one):
  for processes, kill in ((2, (1, "candidates:1")), (4, (2, "verify:1")), (2, (0, "negatives:1")),
                          (2, (0, "synthesis:1")), (4, (0, "synthesis:1")),
                          (4, (1, "training:1")), (1, (0, "training:1")), (4, (0, "between:1")), (2, (1, "scan:1"))):
    killed = run(folder / "small.py", folder / "many", processes, kill)
    assert [code for code, _ in killed] == [-signal.SIGKILL] * processes, (kill, killed)
  ended = run(folder / "small.py", folder / "many", 2)
  assert [code for code, _ in ended] == [0, 0], ended
  check_same(one, folder / "many")


@pytest.mark.slow
def test_four_processes_make_the_run_of_one(folder, one):
  ended = run(folder / "small.py", folder / "four", 4)
  assert [code for code, _ in ended] == [0] * 4, ended
  check_same(one, folder / "four")


def test_a_mistake_in_one_process_ends_all_with_its_sentence(folder, tmp_path):
  (first, told), (second, sentence) = run(
      folder / "small.py", tmp_path / "run", 2, own=lambda process: {"screening.alpha": 1.0 + process})
  assert (first, second) == (1, 1)
  assert sentence.splitlines()[-1].startswith("error: ") and "screening.alpha: 1.0 -> 2.0" in sentence
  assert told.splitlines()[-1] == sentence.splitlines()[-1].replace("error: ", "error: process 1 of 2 failed: ")
  assert "Traceback" not in told + sentence


@pytest.mark.slow
def test_told_to_end_in_one_process_all_end_with_its_code_and_the_run_goes_on_to_the_same_bytes(folder, one):
  for process, where in ((1, "scan:1"), (0, "training:1")):
    ended = run(folder / "small.py", folder / "told", 2, kill=(process, f"{where}:TERM"))
    assert [code for code, _ in ended] == [143, 143], ended
    assert all(log.splitlines()[-1].endswith("told to end (SIGTERM); start the same command again to go on")
               for _, log in ended), ended
  # Of training what was made is kept.
  assert max(int(path.name) for path in (folder / "told" / "checkpoints").glob("[0-9]*")) >= 1
  ended = run(folder / "small.py", folder / "told", 2)
  assert [code for code, _ in ended] == [0, 0], ended
  check_same(one, folder / "told")


def test_a_process_that_is_told_to_end_ends():
  program = ("import sys, time\nfrom policylong.devices import hosts\n"
             "with hosts.joined(sys.argv[1], 1, 0, 1):\n  print('joined', flush=True)\n  time.sleep(60)")
  environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
  with subprocess.Popen([sys.executable, "-c", program, free_address()], stdout=subprocess.PIPE, text=True,
                        stderr=subprocess.DEVNULL, cwd=REPOSITORY, env=environment) as process:
    assert process.stdout.readline() == "joined\n"
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM  # JAX's preemption service would have swallowed it


@pytest.mark.slow
def test_with_four_terms_a_sum_over_devices_differs_by_its_rounding(folder):
  settings = {"mesh.fsdp": 4, "mesh.tensor": 1, "training.batch_size": 4, "training.accumulation": 1, "rounds": 1}
  for processes in (1, 2):
    ended = run(folder / "small.py", folder / f"order{processes}", processes, **settings)
    assert {code for code, _ in ended} == {0}, ended
  a, b = (_files(folder / f"order{processes}", "rounds/1/*.parquet") for processes in (1, 2))
  assert a and a == b  # no training came before it
  losses = [json.loads((folder / f"order{processes}" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
            for processes in (1, 2)]
  # A float32 sum of D numbers of one sign is within (D - 1) 2^-24 of the true one, relative, in any order.
  assert losses[1] == pytest.approx(losses[0], rel=2 * 3 * 2**-24, abs=0)


@pytest.mark.parametrize("arguments, words", [
    (("localhost:1", 2, None, 0), ["--process_id missing", "give all of"]),
    ((None, None, 0, 0), ["--coordinator_address and --num_processes missing"]),
    (("localhost:1", 2, 2, 0), ["--process_id is 2", "between 0 and 1"]),
    (("localhost:1", 2, -1, 0), ["--process_id is -1"]),
    (("localhost:1", 0, 0, 0), ["--num_processes is 0", "at least 1"]),
    (("localhost", 2, 0, 0), ["--coordinator_address is 'localhost'", "host:port"]),
    (("localhost:1", 3, 0, 8), ["mesh.simulated_devices is 8", "--num_processes = 3"]),
])
def test_flags_that_contradict_each_other_are_told_in_one_sentence(arguments, words):
  with pytest.raises(UserError) as caught, hosts.joined(*arguments):
    pass
  assert "\n" not in str(caught.value)
  for word in words:
    assert word in str(caught.value)


def test_a_first_process_that_does_not_answer_is_told_with_its_address(monkeypatch):
  monkeypatch.setattr(hosts, "_START", 0.1)
  with pytest.raises(UserError, match=r"process 0 does not answer at localhost:1 .*refused"):
    hosts._wait_for_first("localhost:1")


@pytest.mark.parametrize("environment, pod", [
    ({}, False), ({"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"}, False),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False), ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, True), ({"MEGASCALE_NUM_SLICES": "2"}, True),
])
def test_a_pod_is_known_by_its_list_of_hosts(monkeypatch, environment, pod):
  for name in ("JAX_PLATFORMS", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "MEGASCALE_NUM_SLICES"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: object())
  monkeypatch.setattr(hosts.glob, "glob", lambda pattern: [])
  assert hosts._on_tpu_pod() == pod


def test_one_process_has_everything_and_waits_for_nobody():
  assert (hosts.index(), hosts.count(), hosts.is_first(), hosts.share(7)) == (0, 1, True, range(7))
  hosts.barrier("nobody")
  assert hosts.agreed(True) and not hosts.agreed(False) and hosts.anyone(True) and not hosts.anyone(False)
