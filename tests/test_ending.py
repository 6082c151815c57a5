"""Told by a signal or at its own end: a command's process is gone within a bound, with the right code."""

import contextlib
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from policylong import ending
from policylong.storage.progress import Bar

REPOSITORY = pathlib.Path(__file__).parents[1]
PROGRAM = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs inherit as ignored
from policylong import ending
from policylong.errors import UserError, run_command
ending.GRACE, ending.LIMIT = 1.0, 1.0

def main():
  print("ready", flush=True)
  {main}

run_command(main)
print("not reached, or code 0", flush=True)
"""
WAITING = "time.sleep(30)"
# In native code, where no handler of Python's runs.
UNREACHABLE = "import ctypes; ctypes.CDLL(None).usleep(30_000_000)"
CLEANING = """
  try:
    time.sleep(30)
  finally:
    print("closed", flush=True)"""
STEPS = """
  for step in range(100):
    with ending.deferred():
      for part in range(10):
        time.sleep(0.05)
      print("step", flush=True)"""
SWALLOWING = """
  while True:
    try:
      time.sleep(30)
    except Exception:
      pass"""
THREAD = "threading.Thread(target=time.sleep, args=(30,)).start()"
NATIVE_THREAD = "import ctypes; threading.Thread(target=ctypes.CDLL(None).usleep, args=(30_000_000,)).start()"


@contextlib.contextmanager
def start(main):
  """A command that is gone when the test is over, however that ends."""
  with subprocess.Popen([sys.executable, "-c", PROGRAM.format(main=main.strip())], stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
    try:
      yield process
    finally:
      process.kill()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("main, out", [(WAITING, ""), (UNREACHABLE, ""), (CLEANING, "closed\n"), (STEPS, "step\n"),
                                       (SWALLOWING, "")])
def test_a_signal_ends_a_command_in_order_with_its_code(number, code, main, out):
  with start(main) as process:
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(number)
    begin = time.monotonic()
    found, said = process.communicate(timeout=20)
  assert process.returncode == code, said
  assert found == out and time.monotonic() - begin < 5
  assert said.count("\n") == 1 and "start the same command again" in said


def test_a_second_sigterm_changes_nothing_and_a_second_interrupt_ends_at_once():
  with start("with ending.deferred(): time.sleep(3)") as process:
    process.stdout.readline()
    time.sleep(0.2)
    for _ in range(3):
      process.terminate()
      time.sleep(0.1)
    assert process.poll() is None and process.wait(20) == 143
  with start("with ending.deferred(): time.sleep(30)") as process:
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130


@pytest.mark.parametrize("thread", [THREAD, NATIVE_THREAD])
@pytest.mark.parametrize("end, code", [
    ("pass", 0), ("raise UserError('bad input')", 1), ("raise ValueError('a fault')", 1), ("sys.exit(2)", 2)])
def test_a_thread_that_is_left_does_not_keep_the_process(thread, end, code):
  begin = time.monotonic()
  with start(f"{thread}; {end}") as process:
    _, said = process.communicate(timeout=20)
  assert process.returncode == code and time.monotonic() - begin < 10, said


@pytest.mark.parametrize("drawn", [True, False])
def test_what_a_process_ends_with_has_a_line_of_its_own(capsys, drawn):
  with Bar(desc="training", total=3, disable=not drawn) as bar:
    bar.update(1)
    ending.say("the disk\nis full")  # as from a thread: the bar stays open
  said = capsys.readouterr().err.split("error: ")
  assert len(said) == 2 and said[1].startswith("the disk is full\n")
  assert said[0].endswith("\n") and "training" in said[0] if drawn else said[0] == ""
