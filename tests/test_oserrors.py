"""What the operating system says is one sentence with the path and what to do, in whichever dialect it comes."""

import contextlib
import errno
import json
import os
import resource
import socket
import subprocess
import sys

import numpy as np
import pytest

from policylong import errors, oserrors
from policylong.corpus import builder
from policylong.records import Document
from policylong.retrieval import rows
from policylong.storage import lines, workdir

# As each library words it (their own texts, with other paths).
TENSORSTORE = ("PERMISSION_DENIED: Error opening \"zarr\" driver: Error writing local file \"/w/run/a/.zarray\": "
               "Failed to open [os_error_code='13'] [source locations='x.cc:1']")
ARROW = "[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"
RUST = "No space left on device (os error 28)"
RIEGELI = "Failed write of 100 bytes; open('/w/run/part-0.array_record') Disk quota exceeded"


@pytest.mark.parametrize("error, words", [
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/w/table"), ["/w/table", "no space left", "the disk is full"]),
    (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), ["a file", "quota"]),
    (PermissionError(errno.EACCES, "Permission denied", "/w/x"), ["/w/x", "permission denied", "read and write"]),
    (OSError(errno.EROFS, "Read-only file system", "/w/x"), ["/w/x", "only be read", "name a path"]),
    (OSError(errno.ENAMETOOLONG, "File name too long", "/w/" + "x" * 500), ["503 characters", "name a shorter path"]),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "/w/x"), ["/w/x", "it is a folder"]),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", b"/w/x"), ["/w/x", "on the way to it is a file"]),
    (OSError(errno.EMFILE, "Too many open files", "/w/x"), ["/w/x", "ulimit -n"]),
    (OSError(errno.ESTALE, "Stale file handle", "/w/x"), ["/w/x", "mount it again"]),
    (OSError(errno.EXDEV, "Invalid cross-device link", "/w/x"), ["/w/x", "invalid cross-device link"]),
    (ValueError(TENSORSTORE), ["/w/run/a/.zarray", "permission denied"]),
    (OSError(ARROW), ["no space left", "the disk is full"]),
    (Exception(RUST), ["the disk is full"]),
    (RuntimeError(RIEGELI), ["/w/run/part-0.array_record", "quota"]),
    (OSError("Can't load the file"), ["Can't load the file", "whole file"]),
    (MemoryError(), ["host's memory is full"]),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes."), ["devices' memory", "123"]),
])
def test_what_the_system_says_is_a_sentence(capsys, error, words):
  def fails():
    raise error
  with pytest.raises(SystemExit) as stopped:
    errors.run_command(fails)
  said = capsys.readouterr().err
  assert stopped.value.code == 1 and said.count("\n") == 1 and said.startswith("error: ")
  assert all(word in said for word in words), said


def test_the_cause_of_an_error_is_looked_at_too(capsys):
  def fails():
    try:
      raise PermissionError(errno.EACCES, "Permission denied", "/w/x")
    except PermissionError:
      raise RuntimeError("the writer of checkpoints failed")  # noqa: B904 (as libraries do)
  with pytest.raises(SystemExit):
    errors.run_command(fails)
  assert "/w/x" in capsys.readouterr().err


def test_json_that_is_nested_too_deeply_is_a_sentence(capsys):
  with pytest.raises(SystemExit):
    errors.run_command(lambda: json.loads(100_000 * "["))
  assert "more brackets in brackets" in capsys.readouterr().err


@pytest.mark.parametrize("error", [
    RecursionError("of our own"), ValueError("a shape of 3"), KeyError("No space left on device"), IndexError("7")])
def test_a_fault_of_ours_keeps_its_stack_trace(error):
  def fails():
    raise error
  with pytest.raises(type(error)):
    errors.run_command(fails)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_write_that_names_no_path_is_told_with_the_files(monkeypatch, tmp_path, number):
  def write_bytes(self, data):
    raise OSError(number, os.strerror(number))
  monkeypatch.setattr(type(workdir.epath.Path(tmp_path)), "write_bytes", write_bytes)
  with pytest.raises(OSError, match=os.strerror(number)) as caught:
    workdir.write_json(tmp_path / "table.json", {})
  assert f"{tmp_path}/table.json" in oserrors.sentence(caught.value)
  assert list(tmp_path.iterdir()) == []


def _metrics(folder):
  (folder / "metrics.jsonl").symlink_to("/dev/full")
  lines.Growing(folder / "metrics.jsonl").write({"step": 1})


def _metrics_closed(folder):
  (folder / "metrics.jsonl").symlink_to("/dev/full")
  growing = lines.Growing(folder / "metrics.jsonl")
  with contextlib.suppress(OSError):
    growing.write({"step": 1})
  growing.close()  # tries once more


def _corpus(folder):
  (folder / "chunk_end.npy").symlink_to("/dev/full")
  with builder._Writer(folder, 100) as writer:
    writer.add(Document("a", 1000 * "Ten words are enough for a chunk, or for two. ", "s"))


def _rows(folder):
  class Embedder:
    version, dim = "v", 4
    embed_documents = staticmethod(lambda texts: np.ones((len(texts), 4), np.float32))

  class Chunks:
    version, num_chunks = "v", 3
    chunk_text = staticmethod(str)
  stored = rows.StoredRows(Chunks, Embedder, folder)
  temporary = f".00000.npz.{socket.gethostname()}.0.tmp"
  (folder / f"rows-{stored.version}").mkdir()
  (folder / f"rows-{stored.version}" / temporary).symlink_to("/dev/full")
  stored.embed(range(1))


@pytest.mark.parametrize("write, path", [
    (_metrics, "metrics.jsonl"), (_metrics_closed, "metrics.jsonl"), (_corpus, ""), (_rows, "00000.npz")])
def test_so_is_one_of_the_files_that_grow_or_are_written_in_parts(tmp_path, write, path):
  with pytest.raises(OSError, match="No space left") as caught:
    write(tmp_path)
  assert str(tmp_path) in oserrors.sentence(caught.value).split(" (")[0]
  assert oserrors.sentence(caught.value).split(" (")[0].endswith(path)


def _limited_files():
  resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))


def _limited_size():
  import signal
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))


PROGRAM = """
import pathlib, sys
from policylong.errors import run_command
from policylong.storage.workdir import write_json
def main():
  files = []
  for i in range(100):
    write_json(pathlib.Path(sys.argv[1]) / str(i), {"text": i * "long"})
    files.append(open(pathlib.Path(sys.argv[1]) / str(i)))
run_command(main)
"""


@pytest.mark.parametrize("limits, words", [(_limited_files, "ulimit -n"), (_limited_size, "ulimit -f")])
def test_the_limits_of_a_process_are_told(tmp_path, limits, words):
  ended = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path], capture_output=True, text=True, preexec_fn=limits)
  assert ended.returncode == 1 and ended.stderr.count("\n") == 1 and words in ended.stderr, ended.stderr
