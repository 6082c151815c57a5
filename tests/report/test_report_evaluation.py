"""The page's benchmarks against the results that they are made from."""

import pathlib

import fake_run
import pytest
import reading

from policylong.report import write_report


@pytest.fixture(scope="module")
def section(tmp_path_factory):
  directory = tmp_path_factory.mktemp("report") / "run"
  fake_run.write(directory)
  fake_run.write_evaluations(directory)
  return reading.parse(pathlib.Path(write_report(directory, fake_run.chunk_text))).by_id("benchmarks")


def cells(table):
  return [[cell.text for cell in row.all("th") + row.all("td")] for row in table.all("tr")]


def test_every_result_stands_in_a_table_named_by_its_protocol(section):
  assert [head.text for head in section.all("h3")] == [
      "loss by position, held-out.jsonl", "LongPPL", "RULER helmet", "RULER, published and here"]
  losses, longppl, ruler, _ = map(cells, section.all("table"))
  assert losses[0][-3:] == ["base model", "after round 1", "after round 2"]
  assert losses[1] == ["position_loss", "1,024", "4", "0", "nats a token", "3.000", "2.875", "2.750"]
  assert len(losses) == 5 and len(ruler) == 6
  assert longppl[1][-3:] == ["9.500", "8.500", "–"]
  assert ruler[2] == ["ruler", "16,384", "4", "1", "mean of 13", "79.500", "80.500", "81.500"]


def test_the_published_numbers_stand_beside_ours_with_our_protocol(section):
  table = cells(section.all("table")[-1])
  assert table[0][1:] == ["8,192", "16,384", "32,768", "65,536", "131,072", "avg 8K to 128K"]
  rows = {row[0]: row[1:] for row in table[1:]}
  assert rows["EntropyLong, Llama-3-8B"] == ["91.50", "90.11", "88.95", "85.04", "81.26", "87.37"]
  assert rows["Quest, Llama-3-8B"] == ["–", "–", "–", "–", "60.11", "–"]
  assert rows["smollm2.gguf, after round 2 (RULER helmet)"] == ["82.50", "81.50", "80.50", "79.50", "78.50", "80.50"]


def test_the_curves_show_each_policy(section):
  figures = {figure.one("b").text: figure for figure in section.all("figure")}
  assert list(figures) == ["Loss by position, against the base model", "LongPPL", "Held-out loss", "RULER"]
  titles = [node.text for node in figures["Loss by position, against the base model"].all("title")]
  assert "after round 2: \u22120.5000 nats" in titles and "after round 1: \u22120.0625 nats" in titles
  ticks = [node.text for node in figures["Loss by position, against the base model"].all("text", css="tick")]
  assert ticks[:3] == ["1–255", "256–511", "512–1023"]
  assert len(figures["LongPPL"].all("circle")) == 2 and len(figures["RULER"].all("circle")) == 15


def test_a_run_without_evaluations_has_no_such_section_and_one_cut_short_is_told(tmp_path):
  fake_run.write(tmp_path / "run")
  page = reading.parse(pathlib.Path(write_report(tmp_path / "run", fake_run.chunk_text)))
  assert not [node for node in page.walk() if node.attributes.get("id") == "benchmarks"]
  fake_run.write_evaluations(tmp_path / "run", rounds=1)
  (tmp_path / "run" / "rounds" / "1" / "evaluation" / "results.json").write_text('{"ruler": ')
  page = reading.parse(pathlib.Path(write_report(tmp_path / "run", fake_run.chunk_text)))
  assert "rounds/1/evaluation/results.json is damaged" in page.text
  section = page.by_id("benchmarks")
  assert "base model" in section.text and "after round 1" not in section.text
