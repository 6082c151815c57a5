"""What a process tells of itself: right at any instant, whole at any instant, gone when its work is done."""

import json
import logging
import subprocess
import sys
import time

import pytest

from policylong.errors import UserError
from policylong.storage import progress

KILLED = """
import os, signal, sys, time
from policylong.storage import progress
progress.EVERY = 0.05
with progress.told(sys.argv[1], 0, 1), progress.Bar(desc="reading", unit="tok", total=50, disable=True) as bar:
  for _ in range(10):
    bar.update(4)
    time.sleep(0.02)
  time.sleep(0.3)
  os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def often(monkeypatch):
  monkeypatch.setattr(progress, "EVERY", 0.02)


def until(condition):
  """Waits for what a thread brings about."""
  end = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_bar_counts_from_where_it_began_whether_it_is_drawn_or_not(hidden):
  with progress.Bar(desc="x", unit="tok", total=100, initial=40, disable=hidden) as bar:
    assert bar.work(time.time()) == progress.Work("x", "tok", 40, 100, None)
    bar.changes[0] = (1000.0, 40)
    bar.update(20)
    assert bar.work(1010.0) == progress.Work("x", "tok", 60, 100, 2.0)
    assert bar.work(1025.0).rate == 2.0  # nothing came: the rate is that of what was done, as it was done
    bar.update(10)
    assert bar.work(1030.0).rate == 1.0


def test_a_rate_forgets_what_was_long_ago():
  with progress.Bar(desc="x", total=10_000, disable=True) as bar:
    bar.changes[0] = (0.0, 0)
    for second in range(10, 2001, 10):
      bar.update(100 if second <= 1000 else 1)
      rate = bar.work(float(second)).rate
    assert rate == pytest.approx(0.1)


def test_a_total_that_grows_is_not_told():
  with progress.Bar(desc="x", total=0, grows=True, disable=True) as bar:
    bar.total += 7
    bar.update(7)
    work = bar.work(time.time())
    assert (work.done, work.total) == (7, None)


def test_the_innermost_bar_is_told_and_then_the_one_around_it(tmp_path, often):
  def working():
    return [told.work and told.work.what for told in progress.read(tmp_path / "progress")]
  with progress.told(tmp_path / "progress", 0, 1):
    assert working() == [None]
    with progress.Bar(desc="outer", disable=True):
      with progress.Bar(desc="inner", disable=True):
        until(lambda: working() == ["inner"])
      until(lambda: working() == ["outer"])
    until(lambda: working() == [None])


def test_life_goes_on_where_nothing_moves_and_a_move_is_told(tmp_path, often):
  def told():
    (each,) = progress.read(tmp_path / "progress")
    return each
  with progress.told(tmp_path / "progress", 0, 1), progress.Bar(desc="x", total=9, disable=True) as bar:
    until(lambda: told().work)
    first = told()
    until(lambda: told().told > first.told + 0.1)
    assert told().moved == first.moved and told().started == first.started
    bar.update()
    until(lambda: told().moved > first.moved and told().work.done == 1)


def test_a_file_goes_when_the_work_is_done_and_keeps_the_reason_when_it_fails(tmp_path, often):
  for error, reason in ((UserError("the disk is gone"), "the disk is gone"), (KeyboardInterrupt(), "interrupted"),
                        (ValueError("bad\nindeed"), "ValueError: bad"), (AssertionError(), "AssertionError")):
    with pytest.raises(type(error)), progress.told(tmp_path / "progress", 0, 1):
      raise error
    assert [told.stopped for told in progress.read(tmp_path / "progress")] == [reason]
  with progress.told(tmp_path / "progress", 0, 1):
    assert [told.stopped for told in progress.read(tmp_path / "progress")] == [None]
  assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_what_it_said_last(tmp_path):
  ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "progress")], timeout=120)
  assert ended.returncode == -9
  (told,) = progress.read(tmp_path / "progress")
  assert told.stopped is None and told.told > told.moved >= told.started
  work = told.work
  assert (work.what, work.unit, work.done, work.total) == ("reading", "tok", 40, 50)
  assert work.rate == pytest.approx(200, rel=0.75)  # 4 in 20 ms, on a machine that may be busy


def test_several_processes_tell_each_its_own_and_an_earlier_start_with_more_is_forgotten(tmp_path, often):
  folder = tmp_path / "progress"
  for process in range(4):
    with pytest.raises(UserError), progress.told(folder, process, 4):
      raise UserError(f"of {process}")
  assert [told.stopped for told in progress.read(folder)] == [f"of {process}" for process in range(4)]
  (folder / ".3.json.tmp").write_text("{")  # killed in the midst of a writing
  with progress.told(folder, 0, 2):
    assert [(told.process, told.stopped) for told in progress.read(folder)] == [(0, None), (1, "of 1")]
    with progress.told(folder, 1, 2):
      assert [told.stopped for told in progress.read(folder)] == [None, None]
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"process": 0}', b"\xff"])
def test_a_damaged_file_is_left_out(tmp_path, damage):
  (tmp_path / "0.json").write_bytes(damage)
  (tmp_path / "1.json").write_text(json.dumps({
      "process": 1, "processes": 2, "started": 1.0, "told": 2.0, "moved": 2.0, "every": 5.0, "work": None,
      "stopped": None}))
  (tmp_path / "notes.txt").write_text("")
  assert [told.process for told in progress.read(tmp_path)] == [1]
  assert progress.read(tmp_path / "nowhere") == []


def test_work_goes_on_where_nothing_can_be_written_and_it_is_said_once(tmp_path, often, caplog):
  (tmp_path / "file").write_text("")
  with caplog.at_level(logging.WARNING), progress.told(tmp_path / "file" / "progress", 0, 1):
    time.sleep(0.3)
  assert len(caplog.records) == 1 and "where the run stands is not told" in caplog.text
