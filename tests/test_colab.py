"""The notebooks run from top to bottom and show what they promise, each in a process and a folder of its own."""

import html
import json
import os
import pathlib
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest

from tests.notebook import code_cells, read_cells
from tests.small_run import make_small_run

REPOSITORY = pathlib.Path(__file__).parents[1]
QUICKSTART, LOOK_INSIDE = (REPOSITORY / "colab" / f"{name}.ipynb" for name in ("quickstart", "look_inside_a_round"))


def run_notebook(path, folder, material, settings, names):
  """(what it displayed, {name: value}) of a notebook that was run in `folder`, on one device as a reader would."""
  (folder / "material").symlink_to(material)
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  result = subprocess.run(
      [sys.executable, "-m", "tests.notebook", str(path), str(folder / "result")], cwd=folder, text=True,
      input=json.dumps({"settings": settings, "names": names}), env=environment | {"PYTHONPATH": str(REPOSITORY)},
      capture_output=True)
  assert result.returncode == 0, result.stderr[-3000:]
  displayed, variables = pickle.loads((folder / "result").read_bytes())
  # What is displayed is a frame whose attribute srcdoc is a page.
  return [html.unescape(frame) for frame in displayed], types.SimpleNamespace(**variables)


@pytest.fixture(scope="module")
def inside(tmp_path_factory, material):
  return run_notebook(LOOK_INSIDE, tmp_path_factory.mktemp("inside"), material, {"LEADS": 30, "CHUNK_TOKENS": 96}, [
      "root", "trace", "at_anchor", "offered", "verdicts", "sequences", "ALPHA", "EPSILON", "SEQUENCE_LENGTH", "TEXT"])


def _positions(root, words):
  """Token positions that spell `words`."""
  ends = np.cumsum([len(piece) for piece in root.pieces])
  first = "".join(root.pieces).index(words)
  return {t for t, end in enumerate(ends) if end > first and end - len(root.pieces[t]) < first + len(words)}


def test_the_anchors_are_above_the_threshold_and_include_the_invented_name(inside):
  _, seen = inside
  entropy = seen.trace.entropy[1:].astype(np.float64)
  assert set(seen.at_anchor) <= {t for t, h in enumerate(seen.trace.entropy)
                                 if h > entropy.mean() + seen.ALPHA * entropy.std()}
  assert set(seen.at_anchor) & _positions(seen.root, "Tobrin Asvelde")


def test_the_text_that_says_who_it_was_is_offered_and_nothing_else_explains_the_name(inside):
  _, seen = inside
  name = _positions(seen.root, "Tobrin Asvelde") & set(seen.at_anchor)
  assert {row["chunk_id"].split("#")[0] for row in seen.offered if row["position"] in name} >= {"yours/0"}
  at_name = [row for row in seen.verdicts if row["position"] in name]
  best = max(at_name, key=lambda row: row["gain"])
  assert best["chunk_id"].startswith("yours/0") and best["accepted"]
  assert best["gain"] == pytest.approx(1 - best["entropy_after"] / best["entropy_before"], abs=1e-5)
  there = [row for row in at_name if row["position"] == best["position"]]
  others = {kind: [row["gain"] for row in there if row["kind"] == kind and row["chunk_id"] != best["chunk_id"]]
            for kind in ("retrieved", "control")}
  assert max(others["control"]) < best["gain"] - 0.3
  assert max(others["retrieved"]) < best["gain"] - 0.3


def test_the_sequence_is_full_and_holds_the_fact_before_the_text(inside):
  _, seen = inside
  (sequence,) = seen.sequences
  assert len(sequence.tokens) == seen.SEQUENCE_LENGTH
  assert [span.start for span in sequence.spans] == [0, *(span.end for span in sequence.spans[:-1])]
  assert sequence.spans[-1].role == "root" and sequence.spans[-1].end == seen.SEQUENCE_LENGTH
  assert "yours/0" in {span.chunk_id.split("#")[0] for span in sequence.spans if span.role == "positive"}


def test_what_is_shown_has_every_token_every_anchor_and_the_control(inside):
  displayed, seen = inside
  shaded, offered, verified, drawn, spans = displayed
  assert shaded.count('title="token ') == len(seen.root.pieces)
  assert shaded.count(' a" title="token ') == len(seen.at_anchor)
  assert offered.count("<tr>") == len(seen.offered) + 1
  assert verified.count("<td>control</td>") == len(seen.at_anchor)
  assert drawn.count('class="span"') == spans.count("<tr>") - 1
  assert "Tobrin Asvelde" in html.unescape(spans)


def _look_at_the_round(displayed, seen, folder):
  """What is true of a round whatever the policy."""
  table, accepted, drawn = displayed
  own = seen.summary["acceptance"]["own"]
  assert f"{own['accepted']} of {own['pairs']}" in table
  assert accepted.count("<tr>") == len(seen.positives) + 1 == seen.summary["positives"] + 1
  assert min(positive["gain"] for positive in seen.positives) > seen.summary["epsilon"]
  assert all(f"<b>{html.escape(positive['chunk_id'])}</b>" in accepted for positive in seen.positives)
  assert f"{seen.SEQUENCE_LENGTH:,} tokens" in drawn
  page = folder / seen.WORKDIR / "report" / "index.html"
  assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


_QUICKSTART_NAMES = ["summary", "positives", "SEQUENCE_LENGTH", "WORKDIR"]


def test_the_quickstart_runs_with_a_small_random_policy(tmp_path, material):
  make_small_run(tmp_path, material)
  shown, seen = run_notebook(QUICKSTART, tmp_path, material, {
      "MODEL": "model", "SPEECHES": "material/sotu/202*.txt", "ROOTS": 2, "ROOT_TOKENS": 64, "ANCHORS": 4,
      "CONTROL_SHARE": 0.25, "CHUNK_TOKENS": 64, "SEQUENCE_LENGTH": 256}, _QUICKSTART_NAMES)
  _look_at_the_round(shown, seen, tmp_path)


@pytest.mark.slow
def test_the_quickstart_runs_as_it_is(tmp_path, material):
  shown, seen = run_notebook(QUICKSTART, tmp_path, material, {}, _QUICKSTART_NAMES)
  _look_at_the_round(shown, seen, tmp_path)
  assert seen.summary["sequences"] >= 1


@pytest.mark.parametrize("path", [QUICKSTART, LOOK_INSIDE], ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
  cells = read_cells(path)
  assert len({cell["id"] for cell in cells}) == len(cells)
  assert not any(cell["outputs"] or cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
  assert code_cells(path)["set-up"] == code_cells(QUICKSTART)["set-up"]


@pytest.fixture
def on_colab(monkeypatch, tmp_path):
  """Runs the set-up cell as on Colab; gives the commands that it would have run there."""
  commands = []

  def record(command, check):
    commands.append(command)
    if command[0] == "git":
      pathlib.Path(command[-1]).mkdir()

  monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
  monkeypatch.setattr(subprocess, "run", record)
  monkeypatch.setattr(sys, "path", list(sys.path))
  monkeypatch.setenv("JAX_PLATFORMS", "")
  monkeypatch.chdir(tmp_path)

  def set_up(repository):
    source = code_cells(QUICKSTART)["set-up"].replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}")
    exec(source, {})
    return commands
  return set_up


def test_on_colab_the_project_is_cloned_once_and_installed(on_colab, tmp_path):
  on_colab("https://example.org/p.git")
  commands = on_colab("https://example.org/p.git")
  assert [command[0] for command in commands] == ["git", sys.executable, sys.executable]
  assert "https://example.org/p.git" in commands[0] and commands[1][1:4] == ["-m", "pip", "install"]
  assert pathlib.Path.cwd() == tmp_path / "policylong" and str(pathlib.Path.cwd()) in sys.path
  assert os.environ["JAX_PLATFORMS"] == "cpu"


def test_on_colab_a_missing_address_and_a_stale_package_are_told_in_a_sentence(on_colab, monkeypatch):
  with pytest.raises(ValueError, match="REPOSITORY is empty"):
    on_colab("")
  monkeypatch.setattr(np, "__version__", "1.0")
  with pytest.raises(RuntimeError, match="another numpy: choose Runtime > Restart session"):
    on_colab("https://example.org/p.git")
