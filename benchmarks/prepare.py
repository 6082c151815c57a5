"""A million dirty documents through `python -m policylong.prepare`: what is found, how fast, in how much memory.

  .venv/prepare/bin/python -m benchmarks.prepare --directory=runs/million [--documents=1000000] [--kill]

Makes its input once (1.1 GB for a million, the same each time): documents of 60 to 250 words of an invented language in
JSONL, 20,000 a file. One record in a hundred is bad, in four ways in turn. One in twenty is a copy of an earlier one
with up to one word in thirty replaced, put in or left out, and with other case, punctuation and line ends; one in a
hundred is an exact copy, and one in a thousand holds a question of a benchmark that is made too. Then it runs the
command, with --kill once more, killed in the middle (SIGKILL, to all its processes) and started again, and counts: what
was planted and found, what was removed beside, and the most memory that all its processes held together (the sum of
their proportional set sizes, every 0.2 s).

A planted copy whose original was itself removed still counts as found, and one that is closer to another is as well:
what counts is that it is gone.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np

PER_FILE = 20_000
BAD = ('{"id": "bad', '["a list"]', '{"id": "no text"}', '{"id": "e", "text": "  "}')
REASONS = {"not JSON", "not a JSON object", "text missing", "empty text"}


def make_input(directory: pathlib.Path, documents: int) -> dict[str, int]:
  """Writes the files and what was planted; returns how many records of each kind there are."""
  planted_path = directory / "planted.json"
  if planted_path.exists():
    return json.loads(planted_path.read_text())
  (directory / "web").mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
  words = np.array(["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(60_000)])
  # Zipf's law, as in any language: the commonest words are everywhere.
  chances = 1 / np.arange(10, len(words) + 10)
  draws = np.cumsum(chances / chances.sum())
  question = " ".join(words[rng.integers(0, len(words), 14)])
  (directory / "asked.jsonl").write_text(json.dumps({"question": question}) + "\n")
  counts = dict.fromkeys(("bad", "near", "exact", "contaminated", "unique"), 0)
  recent: list[list[str]] = []
  with open(directory / "kinds.txt", "w") as kinds:
    for first in range(0, documents, PER_FILE):
      with open(directory / "web" / f"{first // PER_FILE:05d}.jsonl", "w") as file:
        for i in range(first, min(documents, first + PER_FILE)):
          kind, text = _document(i, rng, words, draws, recent, question)
          counts[kind] += 1
          kinds.write(f"{i} {kind}\n")
          file.write(text + "\n")
  planted_path.write_text(json.dumps(counts))
  return counts


def _document(i, rng, words, draws, recent, question) -> tuple[str, str]:
  """(kind, line) of one record; every hundredth is bad, every twentieth nearly a copy, and so on."""
  if i % 100 == 3:
    return "bad", BAD[i // 100 % len(BAD)]
  if i % 20 == 7 and recent:
    return "near", _line(i, _copied(list(recent[rng.integers(len(recent))]), rng))
  if i % 100 == 51 and recent:
    return "exact", _line(i, " ".join(recent[rng.integers(len(recent))]))
  found = words[np.searchsorted(draws, rng.random(rng.integers(60, 250)))].tolist()
  if i % 1000 == 99:
    return "contaminated", _line(i, " ".join([*found[:30], question, *found[30:]]))
  if len(recent) < 50_000:
    recent.append(found)
  else:
    recent[rng.integers(len(recent))] = found
  return "unique", _line(i, " ".join(found))


def _line(i: int, text: str) -> str:
  return json.dumps({"id": f"d{i}", "text": text})


def _copied(words: list[str], rng) -> str:
  """A copy with up to one word in thirty touched, or the same words otherwise written."""
  for _ in range(rng.integers(0, len(words) // 30 + 1)):
    place = int(rng.integers(len(words)))
    what = rng.integers(3)
    if what == 0:
      words[place] = f"new{rng.integers(1000)}"
    elif what == 1:
      words.insert(place, f"new{rng.integers(1000)}")
    else:
      del words[place]
  return ". ".join(" ".join(words[k:k + 12]).capitalize() for k in range(0, len(words), 12)) + ".\r\n"


class Memory:
  """The most memory of a group of processes, bytes: proportional set sizes, where shared pages count once."""

  def __init__(self, group: int):
    self.most, self._group, self._done = 0, group, threading.Event()
    self._thread = threading.Thread(target=self._run)
    self._thread.start()

  def stop(self) -> None:
    """Ends the watching."""
    self._done.set()
    self._thread.join()

  def _run(self):
    while not self._done.wait(0.2):
      total = 0
      for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
          if os.getpgid(int(process.name)) == self._group:
            lines = (process / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError):  # it has just ended
          continue
      self.most = max(self.most, total)


def run(directory: pathlib.Path, name: str, flags: list[str], kill: bool = False) -> tuple[float, int]:
  """(seconds, bytes) that one start takes; with `kill` until it is killed, when half of the shards are signed."""
  source = {"name": "web", "kind": "jsonl", "path": str(directory / "web" / "*.jsonl"), "id_field": "id",
            "text_field": "text", "split": ""}
  (directory / "config.py").write_text(
      "from policylong import paper\n\ndef get_config():\n  config = paper.config()\n"
      f"  config.corpus.sources = ({source!r},)\n  return config\n")
  start = time.monotonic()
  process = subprocess.Popen([sys.executable, "-m", "policylong.prepare", f"--config={directory / 'config.py'}",
                              f"--config.corpus.prepared={directory / name}",
                              f"--benchmark={directory / 'asked.jsonl'}", *flags], start_new_session=True)
  memory = Memory(process.pid)
  work = directory / name / "work"
  while process.poll() is None:
    time.sleep(0.05)
    if kill and 2 * len(list((work / "sign").glob("*.json"))) > len(list((work / "read").glob("*-????.arrow"))) > 0:
      os.killpg(process.pid, signal.SIGKILL)
  memory.stop()
  if process.wait() and not kill:
    sys.exit(f"the command failed with exit code {process.returncode}")
  return time.monotonic() - start, memory.most


def found(directory: pathlib.Path, name: str) -> dict[str, dict[str, int]]:
  """{kind of record as it was planted: {what became of it: how many}}."""
  kinds = dict(line.split() for line in (directory / "kinds.txt").read_text().splitlines())
  became = dict.fromkeys(kinds, "kept")
  with open(directory / name / "removed.jsonl") as file:
    for line in file:
      row = json.loads(line)
      became[row["id"].removeprefix("web/d")] = row["reason"]
  with open(directory / name / "bad_records.jsonl") as file:
    for line in file:
      row = json.loads(line)
      shard, number = row["place"].split(":")
      became[str(int(shard.removesuffix(".jsonl")) * PER_FILE + int(number) - 1)] = row["reason"]
  result: dict[str, dict[str, int]] = {}
  for i, kind in kinds.items():
    row = result.setdefault(kind, {})
    row[became[i]] = row.get(became[i], 0) + 1
  return result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--directory", type=pathlib.Path, required=True, help="for input and output, 5 GB for a million")
  parser.add_argument("--documents", type=int, default=1_000_000, help="records")
  parser.add_argument("--kill", action="store_true", help="also a run that is killed and goes on")
  arguments, flags = parser.parse_known_args()
  directory = arguments.directory
  counts = make_input(directory, arguments.documents)
  print("planted:", counts, flush=True)
  seconds, memory = run(directory, "whole", flags)
  print(f"\n{arguments.documents} records in {seconds:.0f} s: {arguments.documents / seconds:,.0f} a second, "
        f"{memory / 2**30:.2f} GiB on {len(os.sched_getaffinity(0))} cores")
  table = found(directory, "whole")
  for kind, row in table.items():
    print(f"  planted {kind}: {row}")
  gone = 1 - table["near"].get("kept", 0) / counts["near"]
  others = 1 - table["unique"].get("kept", 0) / counts["unique"]
  print(f"of the planted near-duplicates {gone:.3%} are gone, of the others {others:.4%}")
  manifest = json.loads((directory / "whole" / "manifest.json").read_text())
  assert {reason: row["count"] for reason, row in manifest["bad_records"].items()} == {
      reason: counts["bad"] // 4 for reason in REASONS}, manifest["bad_records"]
  assert set(table["bad"]) == REASONS and manifest["records"] == arguments.documents
  assert gone >= 0.98 and others < 0.001 and memory < 3 << 30
  if arguments.kill:
    print(f"\nkilled after {run(directory, 'killed', flags, kill=True)[0]:.0f} s; started again:", flush=True)
    seconds, memory = run(directory, "killed", flags)
    same = all((directory / "whole" / path.name).read_bytes() == path.read_bytes()
               for path in (directory / "killed").iterdir() if path.is_file())
    names = [{path.name for path in (directory / name).iterdir()} for name in ("whole", "killed")]
    print(f"went on for {seconds:.0f} s, {memory / 2**30:.2f} GiB; the same files: {same and names[0] == names[1]}")
    assert same and names[0] == names[1]


if __name__ == "__main__":
  main()
