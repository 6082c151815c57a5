"""`configs/qwen3b_128k.py:runlocal` as a user starts it, as one process and as several: the same results."""

import json

import pytest

from tests.devices.test_hosts import run_together
from tests.test_resume import _files


def run(workdir, processes):
  """The command on every "host"; the first one's stderr."""
  command = ["policylong.main", "--config=configs/qwen3b_128k.py:runlocal", f"--workdir={workdir}",
             f"--config.corpus.cache_dir={workdir.parent / 'cache'}"]
  ended = run_together([command] * processes, workdir)
  assert [code for code, _ in ended] == [0] * processes, ended
  return ended[0][1]


@pytest.fixture(scope="module")
def one(material, tmp_path_factory):
  """The workdir of one process."""
  folder = tmp_path_factory.mktemp("runlocal")
  assert "8 simulated devices" in run(folder / "one", 1)
  return folder / "one"


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
