"""Whichever process is asked to leave, and whenever: all end after the same step, and none waits for ever."""

import re
import subprocess
import sys

from tests.devices.test_hosts import free_address, run_environment
from tests.test_resume import REPOSITORY

PROCESSES, SPANS = 3, 16
# A step is a barrier that all must come to, as they must to the sums of a training step; a process may be one ahead.
PROGRAM = f"""
import random, signal, sys, threading, time
import numpy as np
from policylong import ending
from policylong.devices import hosts, steps
steps._LOOK = 0.02
address, process = sys.argv[1], int(sys.argv[2])
rng = random.Random(process)
with hosts.joined(address, {PROCESSES}, process, 0):
  for span in range({SPANS}):
    last = 0
    asked = threading.Timer(0.3 * rng.random(), ending.request, [signal.SIGTERM])
    # In each fourth span nobody is asked, in each fifth all are.
    if span % 4 and (span % 5 == 0 or span % {PROCESSES} == process):
      asked.start()
    try:
      with steps.Steps(0) as these:
        for step in range(1, 20):
          if not these.may_begin(step):
            break
          time.sleep(0.02 * rng.random())
          hosts.client().wait_at_barrier(f"span {{span}} step {{step}}", 20_000)
          last = step
        hosts.barrier("saved")
      left = False
    except ending.Terminated:
      left = True
    asked.cancel()
    asked.join() if asked.ident else None
    ending._State.requested = None
    found = [int(part[0]) for part in hosts.all_gather(np.array([last]))]
    if process == 0:
      print(f"span {{span}}: {{found}} left {{left}}", flush=True)
"""


def test_all_processes_end_after_the_same_step(tmp_path):
  address = free_address()
  logs = [(tmp_path / f"{i}.log").open("w+") for i in range(PROCESSES)]
  running = [subprocess.Popen([sys.executable, "-c", PROGRAM, address, str(i)], stdout=log, stderr=subprocess.STDOUT,
                              cwd=REPOSITORY, env=run_environment()) for i, log in enumerate(logs)]
  codes = [process.wait(120) for process in running]
  for log in logs:
    log.seek(0)
  said = [log.read() for log in logs]
  assert codes == [0] * PROCESSES, said
  spans = re.findall(r"span (\d+): \[(.*)\] left (\w+)", said[0])
  assert len(spans) == SPANS
  ends = [{int(step) for step in steps.split(",")} for _, steps, _ in spans]
  assert all(len(found) == 1 for found in ends), said[0]
  assert all(found == {19} for found in ends[::4])  # nobody was asked
  assert sum(found < {19} or min(found) < 19 for found in ends) >= SPANS // 2  # and mostly in the midst of the span
