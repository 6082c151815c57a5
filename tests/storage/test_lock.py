"""A folder has one owner: of many that ask one gets it, the living keep it, the dead do not."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from policylong.errors import UserError
from policylong.storage import lock

REPOSITORY = pathlib.Path(__file__).parents[2]
_HOLDER = """
import sys, time
from policylong.storage import lock
with lock.held(sys.argv[1], "the run"):
  print("held", flush=True)
  time.sleep(60)
"""


def claim_of(folder, name="0000000000000000", **changes):
  """Leaves a claim as if another process had written it."""
  values = {"host": "elsewhere", "machine": "another", "process": 123, "began": 5, "since": "2026-01-01 00:00:00",
            "beat": 7, "holds": True, **changes}
  folder.mkdir(exist_ok=True)
  path = folder / f"{name}.json"
  path.write_text(json.dumps(values))
  return path


def most_at_once(folder, starters):
  """(how many held the lock at the same time at most, how many got it, how many were refused)."""
  gate, inside, most, held, refused = threading.Barrier(starters), [], [], [], []

  def start():
    gate.wait()
    try:
      with lock.held(folder, "the run"):
        inside.append(1)
        most.append(len(inside))
        held.append(1)
        time.sleep(0.4)
        inside.pop()
    except UserError:
      refused.append(1)

  threads = [threading.Thread(target=start) for _ in range(starters)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return max(most, default=0), len(held), len(refused)


@pytest.mark.parametrize("before", ["nothing", "a dead process", "several dead processes"])
def test_of_many_that_start_at_once_exactly_one_holds_the_lock(tmp_path, before):
  for attempt in range(4):
    folder = tmp_path / f"lock{attempt}"
    for i in range({"nothing": 0, "a dead process": 1, "several dead processes": 3}[before]):
      claim_of(folder, f"{i:016x}", machine=lock._machine(), process=2**22 + 1)
    assert most_at_once(folder, 8) == (1, 1, 7)
    assert not folder.exists()


def test_a_lock_that_does_not_lock_is_found_by_that_test(tmp_path, monkeypatch):
  monkeypatch.setattr(lock._Mine, "living", lambda self: {})
  assert most_at_once(tmp_path / "lock", 8)[0] > 1


def test_a_second_start_says_who_holds_it_and_a_killed_one_is_followed_at_once(tmp_path, caplog):
  folder = tmp_path / "run" / "lock"
  with subprocess.Popen([sys.executable, "-c", _HOLDER, folder], stdout=subprocess.PIPE, text=True,
                        cwd=REPOSITORY) as process:
    assert process.stdout.readline() == "held\n"
    begin = time.monotonic()
    with pytest.raises(UserError, match=rf"^the run is held by process {process.pid} on .*stop it") as caught, \
        lock.held(folder, "the run"):
      pass
    assert "\n" not in str(caught.value) and time.monotonic() - begin < 1
    process.send_signal(signal.SIGKILL)
    # Also while its parent has not asked how it ended.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with lock.held(folder, "the run"):
      assert len(list(folder.iterdir())) == 1
    assert time.monotonic() - begin < 2
  assert f"process {process.pid} on" in caplog.text and "taken over" in caplog.text
  assert not folder.exists()


def test_another_process_of_the_same_number_is_not_the_one_that_held_it(tmp_path):
  claim_of(tmp_path / "lock", machine=lock._machine(), process=os.getpid(), began=lock._began(os.getpid()) - 1)
  with lock.held(tmp_path / "lock", "the run"):
    pass
  claim_of(tmp_path / "lock", machine=lock._machine(), process=os.getpid(), began=lock._began(os.getpid()))
  with pytest.raises(UserError, match="held by"), lock.held(tmp_path / "lock", "the run"):
    pass


@pytest.mark.parametrize("holds, name", [(True, "0"), (True, "f"), (False, "0"), (False, "f")])
def test_a_claim_of_another_machine_is_taken_over_when_its_heartbeat_stands_still(tmp_path, monkeypatch, holds, name):
  monkeypatch.setattr(lock, "STALE", 1.5)
  claim_of(tmp_path / "lock", 16 * name, holds=holds)
  begin = time.monotonic()
  with lock.held(tmp_path / "lock", "the run"):
    assert 1.4 < time.monotonic() - begin < 3
    assert 16 * name not in [path.stem for path in (tmp_path / "lock").iterdir()]


def test_a_claim_of_another_machine_is_kept_while_its_heartbeat_goes_on_whatever_its_clock_says(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, "STALE", 2.0)
  claim_of(tmp_path / "lock", beat=0, since="1970-01-01 00:00:00")
  leaving = threading.Event()

  def beats():
    beat = 0
    while not leaving.wait(0.5):
      claim_of(tmp_path / "lock", beat=(beat := beat + 1), since="1970-01-01 00:00:00")
  thread = threading.Thread(target=beats)
  thread.start()
  try:
    begin = time.monotonic()
    with pytest.raises(UserError, match="held by process 123 on elsewhere, since 1970"), \
        lock.held(tmp_path / "lock", "the run"):
      pass
    assert time.monotonic() - begin < 1.5
  finally:
    leaving.set()
    thread.join()


def test_who_was_taken_for_dead_ends_at_its_next_heartbeat(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.1)
  told = []
  with lock.held(tmp_path / "lock", "the run", lost=told.append):
    claim_of(tmp_path / "lock")
    time.sleep(0.5)
  assert len(told) == 1 and told[0].startswith("the run was taken over by process 123 on elsewhere")


def test_the_heartbeat_moves_and_comes_back_where_the_file_was_deleted(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.1)
  with lock.held(tmp_path / "lock", "the run"):
    (path,) = (tmp_path / "lock").iterdir()
    first = path.read_bytes()
    time.sleep(0.4)
    assert json.loads(path.read_bytes())["beat"] > json.loads(first)["beat"]
    path.unlink()
    time.sleep(0.4)
    assert json.loads(path.read_bytes())["holds"]


def test_who_waits_has_the_lock_when_the_other_leaves_it(tmp_path):
  order = []

  def first():
    with lock.held(tmp_path / "lock", "the corpus", wait=True):
      gate.wait()
      time.sleep(0.5)
      order.append("first leaves")
  gate = threading.Barrier(2)
  thread = threading.Thread(target=first)
  thread.start()
  gate.wait()
  with lock.held(tmp_path / "lock", "the corpus", wait=True):
    order.append("second holds")
  thread.join()
  assert order == ["first leaves", "second holds"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[1, 2]", b'{"host": 1}', b"\xff\xfe"])
def test_a_damaged_claim_is_waited_for_as_one_of_another_machine(tmp_path, monkeypatch, damage):
  monkeypatch.setattr(lock, "STALE", 0.5)
  claim_of(tmp_path / "lock").write_bytes(damage)
  with lock.held(tmp_path / "lock", "the run"):
    assert len(list((tmp_path / "lock").iterdir())) == 1


def test_where_nothing_can_be_written_it_is_said(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"the run cannot be locked: .*file/lock cannot be written"), \
      lock.held(tmp_path / "file" / "lock", "the run"):
    pass
