"""`configs/qwen3b_128k.py:runlocal` as a user starts it, as one process and as several: the same results."""

import json
import os
import subprocess
import sys

import pytest

from tests.test_hosts import free_address
from tests.test_resume import REPOSITORY, _files


def run(workdir, processes):
  """The command on every "host"; their stderr."""
  environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
  command = [sys.executable, "-m", "policylong.main", "--config=configs/qwen3b_128k.py:runlocal",
             f"--workdir={workdir}", f"--config.corpus.cache_dir={workdir.parent / 'cache'}"]
  address = free_address()
  together = [[f"--coordinator_address={address}", f"--num_processes={processes}", f"--process_id={process}"]
              for process in range(processes)] if processes > 1 else [[]]
  running = [subprocess.Popen([*command, *flags], cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True) for flags in together]
  told = [process.communicate(timeout=1800)[1] for process in running]
  assert [process.returncode for process in running] == [0] * processes, told
  return told


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_find_verify_and_train_what_one_does(processes, one, tmp_path):
  run(tmp_path / "run", processes)
  for pattern in ("rounds/1/*.parquet", "rounds/1/sequences/*"):  # before any sum over devices has entered
    wanted, found = _files(one, pattern), _files(tmp_path / "run", pattern)
    assert wanted and wanted == found, pattern
  losses = [[json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
            for workdir in (one, tmp_path / "run")]
  assert len(losses[0]) == len(losses[1]) == 2
  # Sums over eight devices of float32 numbers of one sign are within 7 * 2^-24 of the true one, relative, in any order.
  assert losses[1][0] == pytest.approx(losses[0][0], rel=2 * 7 * 2**-24, abs=0)


@pytest.fixture(scope="module")
def one(material, tmp_path_factory):
  folder = tmp_path_factory.mktemp("runlocal")
  (told,) = run(folder / "one", 1)
  assert "8 simulated devices" in told
  return folder / "one"
