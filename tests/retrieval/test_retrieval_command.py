"""`python -m policylong.index`: build, search, and the sentences for mistakes."""

import json
import subprocess
import sys

import pytest

from policylong import index as command
from policylong.errors import UserError
from policylong.storage.workdir import write_json

STORIES = {
    "canal": "The canal was dug by hand through nine miles of clay.",
    "bees": "Bees return to the hive before the rain begins.",
    "clock": "The clock in the tower lost four minutes every winter.",
    "bread": "Rye bread keeps for weeks when it is wrapped in linen.",
}


@pytest.fixture
def built(tmp_path, monkeypatch):
  """A folder with an index over the stories, by the hashed embedder; the input is gone."""
  path = tmp_path / "stories.jsonl"
  lines = [json.dumps({"id": name, "text": text}) for name, text in STORIES.items()]
  path.write_text("\n".join([*lines, "not json", ""]))
  run(monkeypatch, "build", f"--input={path}", f"--output={tmp_path / 'index'}", "--embedder=hashed")
  path.unlink()
  return tmp_path / "index"


def run(monkeypatch, *arguments):
  monkeypatch.setattr(sys, "argv", ["index", *map(str, arguments)])
  command.main()


def test_a_build_says_what_was_read_and_what_was_not(tmp_path, monkeypatch, capsys):
  path = tmp_path / "stories.jsonl"
  path.write_text('{"id": "a", "text": "A story."}\nnot json\n{"id": "b"}\n')
  run(monkeypatch, "build", f"--input={path}", f"--output={tmp_path / 'index'}", "--embedder=hashed", "--index=exact")
  said = capsys.readouterr().out
  assert "1 chunks of 1 documents" in said and "exact search" in said and "skipped: " in said


def test_the_chunk_that_answers_is_printed_first(built, monkeypatch, capsys):
  run(monkeypatch, "search", f"--index={built}", "--query=who dug the canal", "--k=2")
  first, second = capsys.readouterr().out.splitlines()
  rank, score, place, text = first.split(maxsplit=3)
  assert (rank, place, text) == ("1", f"canal[0:{len(STORIES['canal'])}]", STORIES["canal"])
  assert float(score) > float(second.split()[1])


def test_a_file_of_queries_is_answered_in_order(built, monkeypatch, capsys, tmp_path):
  queries = tmp_path / "queries.jsonl"
  queries.write_text("\n".join(json.dumps({"id": f"q/{name}", "text": text}) for name, text in STORIES.items()))
  capsys.readouterr()
  run(monkeypatch, "search", f"--index={built}", f"--queries={queries}", "--k=9")  # more than there are chunks
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4 * 5
  for i, (name, text) in enumerate(STORIES.items()):
    assert lines[5 * i] == f"# q/{name}: {text}"
    rank, score, *_ = lines[5 * i + 1].split()
    # A stored number is rounded to 11 bits, by 2^-12 of it at most; and four digits are printed.
    assert rank == "1" and float(score) == pytest.approx(1, abs=2 ** -12 + 5e-5) and f" {name}[0:" in lines[5 * i + 1]


def test_mistakes_are_one_sentence(built, monkeypatch, tmp_path):
  with pytest.raises(UserError, match=r"has no index.json: make it with"):
    run(monkeypatch, "search", f"--index={tmp_path}", "--query=x")
  with pytest.raises(UserError, match=r"nowhere.jsonl"):
    run(monkeypatch, "build", f"--input={tmp_path / 'nowhere.jsonl'}", f"--output={tmp_path / 'o'}")
  for bad in (["search", f"--index={built}"], ["search", f"--index={built}", "--query=x", "--k=0"], ["build"], []):
    with pytest.raises(SystemExit) as stopped:
      run(monkeypatch, *bad)
    assert stopped.value.code == 2
  (built / "index.json").write_text("{}")
  with pytest.raises(UserError, match="is damaged"):
    run(monkeypatch, "search", f"--index={built}", "--query=x")
  write_json(built / "index.json", {})
  with pytest.raises(UserError, match="does not hold the settings"):
    run(monkeypatch, "search", f"--index={built}", "--query=x")


@pytest.mark.parametrize(("flags", "said"), [
    (["--dim=0"], "--dim is 0; it must be at least 1"), (["--leaves=0"], "--leaves is 0"),
    (["--target-recall=2"], "--target-recall is 2.0; it must be between 0.5 and 1.0"),
    (["--target-recall=nan"], "--target-recall is nan"), (["--chunk-chars=0"], "--chunk-chars is 0"),
    (["--batch=0"], "--batch is 0"), (["--max-tokens=2"], "--max-tokens is 2; it must be at least 8"),
    (["--piece-gib=0"], "--piece-gib is 0.0; it must be above 0"), (["--piece-gib=inf"], "--piece-gib is inf"),
    (["--seed=-1"], "--seed: -1 is not at least 0"), (["--seed=x"], "--seed: invalid"),
    (["--embedder=minilm", "--dim=8"], "--dim is 8, but --embedder 'minilm'"),
    (["--output="], "--output: it is empty")])
def test_a_flag_out_of_its_bounds_is_bad_usage_and_named(tmp_path, monkeypatch, capsys, flags, said):
  (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "A story."}\n')
  with pytest.raises(SystemExit) as stopped:
    run(monkeypatch, "build", f"--input={tmp_path / 'a.jsonl'}", f"--output={tmp_path / 'index'}", "--embedder=hashed",
        *flags)
  assert stopped.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
  assert not (tmp_path / "index").exists()


def test_the_command_exits_1_without_a_stack_trace(tmp_path):
  done = subprocess.run([sys.executable, "-m", "policylong.index", "search", f"--index={tmp_path}", "--query=x"],
                        capture_output=True, text=True)
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr
