"""The page of a run that is under way says what is being done and reloads itself; that of one that is done does not."""

import base64
import hashlib
import json
import pathlib
import time

import fake_run
import pytest
import reading

from policylong.report import write_report


def under_way(folder, **changes):
  """A fake run whose second round is screened and not trained, with a process that works on it."""
  fake_run.write(folder, roots=6)
  (folder / "final.json").unlink()
  (folder / "rounds/2/DONE.json").rename(folder / "rounds/2/screened.json")
  lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
  (folder / "metrics.jsonl").write_text("".join(lines[:24]))
  (folder / "checkpoints" / "24").mkdir(parents=True)
  (folder / "progress").mkdir()
  now = time.time()
  (folder / "progress/0.json").write_text(json.dumps({
      "process": 0, "processes": 1, "started": now - 60, "told": now - 2, "moved": now - 2, "every": 5.0, "work": None,
      "stopped": None} | changes))


def page(folder):
  return reading.parse(pathlib.Path(write_report(folder, fake_run.chunk_text)))


def refreshes(tree):
  return [node.attributes["content"] for node in tree.all("meta") if node.attributes.get("http-equiv") == "refresh"]


def test_a_run_under_way_has_the_facts_of_status_and_reloads_itself(tmp_path):
  under_way(tmp_path)
  tree = page(tmp_path)
  assert refreshes(tree) == ["30"]
  block = tree.by_id("standing")
  facts = dict(zip((node.text for node in block.all("dt")), (node.text for node in block.all("dd"))))
  assert facts["stage"] == "round 2 of 2, training: step 0 of 24"
  assert facts["training"].startswith("step 24 of 48, loss ") and facts["checkpoint"].startswith("step 24, written ")
  assert "under way" in block.text and f"policylong.status --workdir={tmp_path}" in block.text
  assert abs(int(tree.by_id("written").attributes["data-at"]) - time.time()) < 60


def test_its_script_is_the_one_that_the_policy_allows_and_keeps_the_place_and_the_open_parts(tmp_path):
  under_way(tmp_path)
  tree = page(tmp_path)
  (script,) = tree.all("script")
  policy = next(node.attributes["content"] for node in tree.all("meta")
                if node.attributes.get("http-equiv") == "Content-Security-Policy")
  assert f"'sha256-{base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()}'" in policy
  assert "sessionStorage" in script.text and "scrollTo" in script.text


def test_a_run_that_is_done_is_plain(tmp_path):
  fake_run.write(tmp_path, roots=6)
  tree = page(tmp_path)
  assert refreshes(tree) == [] and "sessionStorage" not in tree.one("script").text
  assert not [node for node in tree.walk() if node.attributes.get("id") in ("standing", "written")]
  assert "under way" not in tree.text.lower()


@pytest.mark.parametrize(("changes", "said"), [
    ({"told": 0.0}, "no sign of life for "), ({"stopped": "the disk is full"}, "the disk is full")])
def test_a_run_that_was_killed_or_stopped_does_not_reload_and_says_so(tmp_path, changes, said):
  under_way(tmp_path, **changes)
  tree = page(tmp_path)
  assert refreshes(tree) == []
  warnings = " ".join(node.text for node in tree.all("p", "warn"))
  assert "Not under way when this page was written: " in warnings and said in warnings


def test_before_the_first_training_no_loss_is_missed(tmp_path):
  under_way(tmp_path)
  (tmp_path / "metrics.jsonl").unlink()
  (tmp_path / "rounds/1/DONE.json").rename(tmp_path / "rounds/1/screened.json")
  assert "metrics.jsonl is missing" not in page(tmp_path).text
