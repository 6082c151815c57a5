"""The batteries of benchmarks/reliability find what they should, and a small part of each is run here."""

import subprocess
import sys

import pytest

from benchmarks.reliability import disk_full, forked, hostile, rounds
from benchmarks.reliability.world import Case
from tests.devices.test_hosts import run_environment
from tests.test_resume import REPOSITORY

CASE = Case("a kind of mistake", "policylong.score", ())


def run(module, folder, *flags):
  return subprocess.run([sys.executable, "-m", f"benchmarks.reliability.{module}", f"--folder={folder}", *flags],
                        capture_output=True, text=True, cwd=REPOSITORY, env=run_environment(), timeout=600)


@pytest.mark.parametrize("code, err, wrong", [
    (1, "error: the file is missing: name another one\n", ""),
    (2, "usage: score [-h]\nscore.py: error: unrecognized arguments: --x\n", ""),
    (2, "usage error: --config is missing (see --help)\n", ""),
    (0, "", "exit code 0"), (-6, "", "exit code -6"), (139, "error: x\n", "exit code 139"), (None, "", "hangs"),
    (1, "Traceback (most recent call last):\n  File\nValueError\n", "a stack trace"),
    (1, "error: x\nTraceback (most recent call last):\n", "a stack trace"),
    (1, "", "0 sentences"), (1, "error: one\nerror: two\n", "2 sentences")])
def test_what_is_wrong_with_an_end_is_found(code, err, wrong):
  assert hostile.wrong(CASE, forked.Ended(code, 1.0, "", err)).startswith(wrong)
  assert bool(hostile.wrong(CASE, forked.Ended(code, 1.0, "", err))) is bool(wrong)


TOLD = "INFO: at work\nerror: runs/a.parquet (no space left on device): the disk is full: free some space\n"


@pytest.mark.parametrize("ends, wrong", [
    ([(1, TOLD)], ""), ([(1, "error: process 1 of 2 failed: it is as it is\n"), (1, TOLD)], ""),
    ([(1, TOLD), (1, TOLD + "training: 50%\nWARNING: it goes on\n")], ""), ([(1, TOLD), (1, 2 * TOLD)], "code 1"),
    ([(1, TOLD), (0, "")], "code 1"), ([(1, TOLD), (None, "")], "code 1"), ([(1, TOLD), (-6, TOLD)], "code 1"),
    ([(1, TOLD), (1, "Traceback (most recent call last):\n" + TOLD)], "code 1"),
    ([(1, TOLD), (1, "INFO: at work")], "code 1"),
    ([(1, "error: runs/full/a\n"), (1, "error: process 0 of 2 failed: runs/full/a\n")], "it says")])
def test_every_process_must_end_in_a_sentence_and_one_must_say_that_the_disk_is_full(ends, wrong):
  found = disk_full.wrong([forked.Ended(code, 1.0, "", said) for code, said in ends])
  assert found.startswith(wrong) and bool(found) is bool(wrong)


@pytest.mark.parametrize("row, faults", [
    (lambda i: {}, []), (lambda i: {"files": 9 + i}, ["files"]), (lambda i: {"threads": 3 + (i == 20)}, ["threads"]),
    (lambda i: {"arrays": i * 4096}, ["arrays"]), (lambda i: {"memory": i * (3 << 20)}, ["memory, by 3.0 MiB a round"]),
    (lambda i: {"memory": (i < 8) * i << 26}, [])])
def test_what_grows_from_round_to_round_is_found(row, faults):
  flat = {"memory": 1 << 30, "files": 9, "threads": 3, "arrays": 0}
  assert rounds.grows([{**flat, **row(i)} for i in range(24)]) == faults


def test_a_few_hostile_inputs_end_in_a_sentence(tmp_path):
  ended = run("hostile", tmp_path, "--count=16", "--seed=7", "--real=0")
  assert ended.returncode == 0 and "16 hostile inputs" in ended.stdout, ended.stdout + ended.stderr


@pytest.mark.slow
def test_rounds_in_one_process_hold_no_more_files_and_arrays(tmp_path):
  ended = run("rounds", tmp_path, "--rounds=8")
  assert ended.returncode == 0 and "8 rounds" in ended.stdout, ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2,1,4"])
def test_a_run_killed_at_random_ends_with_the_same_bytes(tmp_path, processes):
  ended = run("kills", tmp_path, "--kills=4", f"--processes={processes}")
  assert ended.returncode == 0 and "0 runs ended differently" in ended.stdout, ended.stdout + ended.stderr


@pytest.mark.slow
def test_planted_defects_are_seen_and_flipped_bytes_change_nothing_in_silence(tmp_path):
  ended = run("flips", tmp_path, "--count=2", "--stops=verify:3,training:3", "--defects")
  assert ended.returncode == 0 and "3 defects: all seen" in ended.stdout, ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("count, processes", [(30, "1"), (10, "2,4")])
def test_some_flips_change_nothing_in_silence(tmp_path, count, processes):
  ended = run("flips", tmp_path, f"--count={count}", "--seed=1", f"--processes={processes}")
  assert ended.returncode == 0 and f"{count} flips" in ended.stdout, ended.stdout + ended.stderr


def test_a_full_disk_is_told_and_gone_on_from(tmp_path):
  ended = run("disk_full", tmp_path, "--raised", "--points=the corpus cache,verify-00001.parquet,a checkpoint")
  assert ended.returncode == 0 and "the same bytes at the end" in ended.stdout, ended.stdout + ended.stderr


@pytest.mark.slow
def test_a_full_disk_is_told_by_several_processes_and_gone_on_from(tmp_path):
  ended = run("disk_full", tmp_path, "--raised", "--processes=2,4",
              "--points=the corpus cache,the index cache,verify-*.parquet,the sequences,a checkpoint,DONE.json")
  assert ended.returncode == 0 and "the same bytes at the end" in ended.stdout, ended.stdout + ended.stderr
