"""The notebooks run from top to bottom and show what they promise, each in a process and a folder of its own."""

import html
import importlib.util
import json
import os
import pathlib
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
  """(what it displayed, {name: value}) of a notebook that was run in `folder`, which looks like the project's."""
  (folder / "material").symlink_to(material)
  (folder / "configs").symlink_to(REPOSITORY / "configs")
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  result = subprocess.run(
      [sys.executable, "-m", "tests.notebook", str(path), str(folder / "result")], cwd=folder, text=True,
      input=json.dumps({"settings": settings, "names": names}), env=environment | {"PYTHONPATH": str(REPOSITORY)},
      capture_output=True)
  assert result.returncode == 0, result.stderr[-3000:]
  displayed, variables = json.loads((folder / "result").read_text(encoding="utf-8"))
  # What is displayed is a frame whose attribute srcdoc is a page.
  return [html.unescape(frame) for frame in displayed], types.SimpleNamespace(printed=result.stdout, **variables)


@pytest.fixture(scope="module")
def inside(tmp_path_factory, material):
  displayed, seen = run_notebook(
      LOOK_INSIDE, tmp_path_factory.mktemp("inside"), material, {"LEADS": 30, "CHUNK_TOKENS": 96},
      ["root", "trace", "at_anchor", "offered", "verdicts", "sequences", "ALPHA", "SEQUENCE_LENGTH"])
  seen.at_anchor = {int(position) for position in seen.at_anchor}
  return displayed, seen


def _positions(root, words):
  """Token positions that spell `words`."""
  ends = np.cumsum([len(piece) for piece in root["pieces"]])
  first = "".join(root["pieces"]).index(words)
  return {t for t, end in enumerate(ends) if end > first and end - len(root["pieces"][t]) < first + len(words)}


def test_the_anchors_are_above_the_threshold_and_include_the_invented_name(inside):
  _, seen = inside
  entropy = np.asarray(seen.trace["entropy"])
  high = entropy > np.nanmean(entropy) + seen.ALPHA * np.nanstd(entropy)
  assert seen.at_anchor <= set(np.flatnonzero(high).tolist())
  assert seen.at_anchor & _positions(seen.root, "Tobrin Asvelde")


def test_the_text_that_says_who_it_was_is_offered_and_nothing_else_explains_the_name(inside):
  _, seen = inside
  name = _positions(seen.root, "Tobrin Asvelde") & seen.at_anchor
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
  spans = sequence["spans"]
  assert len(sequence["tokens"]) == seen.SEQUENCE_LENGTH
  assert [span["start"] for span in spans] == [0, *(span["end"] for span in spans[:-1])]
  assert spans[-1]["role"] == "root" and spans[-1]["end"] == seen.SEQUENCE_LENGTH
  assert "yours/0" in {span["chunk_id"].split("#")[0] for span in spans if span["role"] == "positive"}


def test_what_is_shown_has_every_token_every_anchor_and_the_control(inside):
  displayed, seen = inside
  assert "computing on 2 x cpu" in seen.printed
  shaded, offered, verified, drawn, spans = displayed
  assert shaded.count('title="token ') == len(seen.root["pieces"])
  assert shaded.count(' a" title="token ') == len(seen.at_anchor)
  assert offered.count("<tr>") == len(seen.offered) + 1
  assert verified.count("<td>control</td>") == len(seen.at_anchor)
  assert drawn.count('class="span"') == spans.count("<tr>") - 1
  assert "Tobrin Asvelde" in html.unescape(spans)


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["small", "as_it_is"])
def test_the_quickstart_shows_the_round_that_it_ran(tmp_path, material, real):
  settings = {}
  if not real:  # a random policy of two layers
    make_small_run(tmp_path, material)
    settings = {"MODEL": "model", "CORPUS": "material/django/forms/*.py", "ROOTS": 2, "ROOT_TOKENS": 64,
                "ANCHORS": 4, "CONTROL_SHARE": 0.25, "CHUNK_TOKENS": 64, "SEQUENCE_LENGTH": 256}
  (table, accepted, drawn), seen = run_notebook(QUICKSTART, tmp_path, material, settings,
                                                ["summary", "positives", "SEQUENCE_LENGTH", "WORKDIR"])
  assert "computing on 2 x cpu" in seen.printed
  own = seen.summary["acceptance"]["own"]
  assert f"{own['accepted']} of {own['pairs']}" in table
  assert accepted.count("<tr>") == len(seen.positives) + 1 == seen.summary["positives"] + 1
  assert min(positive["gain"] for positive in seen.positives) > seen.summary["epsilon"]
  assert all(f"<code>{html.escape(positive['chunk_id'])}</code>" in accepted for positive in seen.positives)
  assert accepted.count("<mark>") == len(seen.positives)
  assert f"{seen.SEQUENCE_LENGTH:,} tokens" in drawn and seen.summary["sequences"] >= 1
  page = tmp_path / seen.WORKDIR / "report" / "index.html"
  assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("path", [QUICKSTART, LOOK_INSIDE], ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
  cells = read_cells(path)
  assert len({cell["id"] for cell in cells}) == len(cells)
  assert not any(cell["outputs"] or cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
  assert code_cells(path)["set-up"] == code_cells(QUICKSTART)["set-up"]


class FreshColab:
  """Runs the set-up cell where nothing is installed, as on Colab; `commands` are those that it gave."""

  def __init__(self, folder):
    self.commands, self.folder, self.installed = [], folder, False

  def run(self, command, **_):
    self.commands.append(command)
    if command[0] == "git":
      (self.folder / command[-1] / "configs").mkdir(parents=True)
      (self.folder / command[-1] / "configs" / "demo.py").touch()
    self.installed |= "pip" in command
    return types.SimpleNamespace(returncode=0)

  def set_up(self, repository):
    exec(code_cells(QUICKSTART)["set-up"].replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}"), {})


@pytest.fixture
def colab(monkeypatch, tmp_path):
  colab = FreshColab(tmp_path)
  monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
  monkeypatch.setattr(subprocess, "run", colab.run)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: colab.installed or None)
  monkeypatch.setattr(sys, "path", list(sys.path))
  for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES"):
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
  monkeypatch.chdir(tmp_path)
  return colab


def _with_gpu(monkeypatch, there):
  exists = pathlib.Path.exists
  monkeypatch.setattr(pathlib.Path, "exists", lambda self: there if str(self) == "/dev/nvidia0" else exists(self))


def test_on_colab_the_project_is_cloned_once_and_installed_once(colab, monkeypatch, tmp_path):
  _with_gpu(monkeypatch, False)
  colab.set_up("https://example.org/p.git")
  colab.set_up("")  # the cell again: in the clone
  monkeypatch.chdir(tmp_path)
  colab.set_up("")  # and after a restart of the session: beside the clone
  (clone, install) = colab.commands
  assert clone[0] == "git" and "https://example.org/p.git" in clone
  assert install[:4] == (sys.executable, "-m", "pip", "install") and install[-2:] == ("-e", ".")
  assert pathlib.Path.cwd() == tmp_path / "policylong" and str(pathlib.Path.cwd()) in sys.path
  assert os.environ["JAX_PLATFORMS"] == "cpu" and os.environ["JAX_NUM_CPU_DEVICES"] == "2"


def test_on_colab_with_a_gpu_jax_is_installed_for_it_and_finds_it(colab, monkeypatch):
  _with_gpu(monkeypatch, True)
  colab.set_up("https://example.org/p.git")
  assert colab.commands[-1][-1] == "jax[cuda12]"
  assert "JAX_PLATFORMS" not in os.environ


def test_what_is_wrong_in_the_set_up_is_told_in_a_sentence(colab, monkeypatch):
  with pytest.raises(ValueError, match="REPOSITORY is empty: write the git address"):
    colab.set_up("")
  monkeypatch.setattr(subprocess, "run", lambda *_, **__: types.SimpleNamespace(
      returncode=128, stderr="fatal: repository not found\n", stdout=""))
  with pytest.raises(RuntimeError, match=r"git clone .*p\.git policylong failed: fatal: repository not found$"):
    colab.set_up("https://example.org/p.git")
  monkeypatch.setattr(subprocess, "run", colab.run)
  monkeypatch.setattr(np, "__version__", "1.0")
  with pytest.raises(RuntimeError, match="another numpy: choose Runtime > Restart session"):
    colab.set_up("https://example.org/p.git")
