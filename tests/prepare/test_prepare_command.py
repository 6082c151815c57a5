"""The command as a person gives it, on Beam: in one process, in several, killed and started again.

Beam is in an environment of its own (`make beam`), whose Python runs it.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from policylong import config as config_lib
from policylong import paper
from policylong.corpus.store import open_corpus
from tests.prepare import brute_force
from tests.prepare.conftest import write_jsonl
from tests.prepare.test_preparation import dirty_texts, files

REPOSITORY = pathlib.Path(__file__).parents[2]
PYTHON = REPOSITORY / ".venv" / "prepare" / "bin" / "python"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="Beam's environment is not there: make beam")

CONFIG = '''
from policylong import paper

def get_config():
  config = paper.config()
  config.corpus.sources = tuple({{"name": name, "kind": "jsonl", "path": path, "id_field": "id", "text_field": "text",
                                 "split": ""}} for name, path in {paths!r}.items())
  config.corpus.chunk_chars = 200
  return config
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("prepare")
  texts = dirty_texts(200, seed=4)
  for i in range(4):
    write_jsonl(folder / "web" / f"{i}.jsonl", texts[50 * i:50 * i + 50], 50 * i)
  with open(folder / "web" / "3.jsonl", "a") as file:
    file.write("{broken\n")
  (folder / "asked.txt").write_text(" ".join(texts[0].split()[:15]))
  write_config(folder / "c.py", web=folder / "web" / "*.jsonl")
  write_config(folder / "three.py", **{f"part{i}": folder / "web" / f"{i}.jsonl" for i in range(3)})
  return folder


def write_config(path, **paths):
  path.write_text(CONFIG.format(paths={name: str(where) for name, where in paths.items()}))


def start(folder, prepared, *flags, config="c.py", **options):
  return subprocess.Popen(
      [PYTHON, "-m", "policylong.prepare", f"--config={folder / config}",
       f"--config.corpus.prepared={folder / prepared}", *flags],
      cwd=folder, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, **options)


def run(*arguments, **options):
  process = start(*arguments, **options)
  said, _ = process.communicate(timeout=300)
  return process.returncode, said


def workers_of(group):
  """How many of Beam's worker processes a process group has."""
  count = 0
  for path in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):  # it has just ended
      count += os.getpgid(int(path.name)) == group and b"sdk_worker_main" in (path / "cmdline").read_bytes()
  return count


def test_it_makes_the_corpus_says_what_it_did_and_does_it_once(folder):
  code, said = run(folder, "once", f"--benchmark={folder / 'asked.txt'}")
  assert code == 0, said
  values = paper.config()
  texts = dirty_texts(200, seed=4)
  held = [i for i, text in enumerate(texts) if brute_force.contaminated(text, [(folder / "asked.txt").read_text()])]
  clean = [text for i, text in enumerate(texts) if i not in held]
  expected = [clean[i] for i in brute_force.kept(clean, 0.6)]
  values.corpus.update({"sources": ({"name": "web", "kind": "jsonl", "path": "", "id_field": "id", "text_field": "text",
                                     "split": ""},), "chunk_chars": 200, "prepared": str(folder / "once")})
  corpus = open_corpus(config_lib.parse(values).corpus)
  assert [corpus.document(i).text for i in range(corpus.num_documents)] == expected
  rows = {line.rsplit(maxsplit=1)[0].strip(): line.split()[-1] for line in said.splitlines() if "  " in line}
  manifest = json.loads((folder / "once" / "manifest.json").read_text())
  assert rows["records read"] == "201" and rows["bad: not JSON"] == "1" and rows["documents kept"] == str(len(expected))
  assert rows["removed: contaminated by asked.txt"] == str(len(held)) and len(held) >= 1
  assert int(rows["removed: near-duplicate"]) == manifest["removed"]["near-duplicate"]["count"] > 5
  assert "read: 100%" in said and "records/s" in said
  before = files(folder / "once")
  code, said = run(folder, "once", f"--benchmark={folder / 'asked.txt'}")
  assert code == 0 and "documents kept" in said and "sign:" not in said and files(folder / "once") == before


def test_two_processes_that_are_killed_leave_what_one_makes(folder):
  code, said = run(folder, "alone", config="three.py")
  assert code == 0 and "no --benchmark was given" in said, said
  process = start(folder, "killed", "--direct_num_workers=2", config="three.py", start_new_session=True)
  signed = folder / "killed" / "work" / "sign"
  deadline = time.monotonic() + 150
  while not list(signed.glob("*.json")) and time.monotonic() < deadline and process.poll() is None:
    time.sleep(0.01)
  workers = workers_of(process.pid)
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  assert workers == 2 and not (folder / "killed" / "DONE.json").exists()
  code, said = run(folder, "killed", config="three.py")
  assert code == 0 and "read: 100%" not in said and "going on from an earlier start" in said, said
  alone, killed = files(folder / "alone"), files(folder / "killed")
  assert alone.keys() == killed.keys() and [name for name in alone if alone[name] != killed[name]] == []


@pytest.mark.parametrize(("flags", "code", "said"), [
    (["--bla=1"], 2, "usage error: neither this command nor Beam's DirectRunner knows --bla=1"),
    (["--near_duplicates=1.5"], 2, "near_duplicates"), (["stray"], 2, "unexpected argument 'stray'"),
    (["--config.corpus.sorces=1"], 2, "sorces"), (["--benchmark=absent.jsonl"], 1, "error: --benchmark=absent.jsonl"),
    (["--config.corpus.prepared=None"], 1, "error: corpus.prepared is None"),
    (["--direct_num_workers=many"], 1, "error: --direct_num_workers is 'many'")])
def test_mistakes_are_a_sentence(folder, flags, code, said):
  found = run(folder, "mistakes", *flags)
  assert found[0] == code and said in found[1] and "Traceback" not in found[1]


def test_what_a_worker_finds_wrong_with_the_input_is_a_sentence(folder):
  (folder / "cut.jsonl").write_bytes(b"\x1f\x8b\x08\x00")
  write_config(folder / "cut.py", web=folder / "cut.jsonl")
  code, said = run(folder, "cut", config="cut.py")
  assert code == 1 and "error: " in said and "is not a whole gzip file" in said and "Traceback" not in said
