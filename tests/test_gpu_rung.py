"""The middle rung: its corpus holds what it says, its cells read equally much, and its smallest cell runs."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments.cells import read_grid
from experiments.gpu_rung import corpora
from policylong.material import SMOLLM2_SHA256
from policylong.storage.workdir import read_json
from tests.test_resume import REPOSITORY


def test_a_page_is_its_words_by_blocks():
  page = ("<html><head><title>no</title><style>p {}</style></head><body><nav><a>no</a></nav><h1>Names</h1>"
          "<p>One &amp;\xa0two,\n <b>three</b></p><script>no()</script><ul><li>a</li><li>b</li></ul></body></html>")
  assert corpora.text_of(page) == "Names\n\nOne & two,\nthree\n\na\n\nb"


def test_nothing_that_is_held_out_is_trained_on(tmp_path):
  pages = [(f"page/{i}", f"{i} " * size) for i, size in enumerate((100, 1000, 5000, *[50_000] * 8))]
  corpora.write_corpus(tmp_path, pages, {"a": "1"})
  found = {name: [json.loads(line)["id"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
           for name in ("documents", "pages", "held_out")}
  assert not set(found["held_out"]) & {*found["documents"], *found["pages"]}
  # "0 " 100 times is no page, 1000 times a short one; of the eight long ones two are held out.
  of_pages = {name: {int(title[5:]) for title in titles if title.startswith("page/")} for name, titles in found.items()}
  assert of_pages == {"documents": {2, 3, 4, 5, 7, 8, 9}, "held_out": {6, 10}, "pages": {1}}
  assert all(int(name[:4]) < 1900 for name in found["held_out"] if not name.startswith("page/"))


def test_all_cells_start_from_one_model_and_read_equally_much():
  grid = read_grid(str(REPOSITORY / "experiments/gpu_rung/full.py"))
  assert [cell.name for cell in grid.cells[:5]] == ["policylong", "offline", "entropylong", "nextlong", "standard"]
  for cell in grid.cells:
    config = cell.config
    tokens = config.rounds * config.training.steps_per_round * config.training.batch_size
    assert tokens * config.synthesis.sequence_length == 32 * 8 * 16_384
    assert config.rounds * config.screening.roots_per_round == 512
    assert (config.model.sha256, config.mesh.simulated_devices) == (SMOLLM2_SHA256, 0)


@pytest.mark.slow
def test_the_smallest_cell_runs_to_its_numbers(tmp_path):
  (tmp_path / "material").symlink_to(REPOSITORY / "material")
  command = [sys.executable, "-m", "experiments.grid", f"--workdir={tmp_path / 'results'}",
             f"--grid={REPOSITORY / 'experiments/gpu_rung/smallest.py'}"]
  subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
  outcome = read_json(pathlib.Path(tmp_path / "results/outcomes/policylong-seed0.json"))["numbers"]
  base = read_json(tmp_path / "results/base.json")
  for numbers in (outcome, base):
    assert 0 <= numbers["ruler/niah_single_1/1024"] <= 100
    assert 2 < numbers["position_loss/512-1023/1024"] < 5, "nats a token of English under SmolLM2"
  assert outcome["position_loss/1024"] != base["position_loss/1024"], "a step of training has changed the model"
