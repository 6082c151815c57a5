"""The page against the tables it is made from, read with the standard library's HTML parser."""

import base64
import hashlib
import json
import math
import pathlib
import re
import subprocess
import sys

import fake_run
import numpy as np
import pyarrow.parquet as pq
import pytest
import reading

from policylong import status
from policylong.errors import UserError
from policylong.report import write_report
from policylong.report.standing import standing
from policylong.report.tables import read_run
from policylong.storage.workdir import Workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  directory = tmp_path_factory.mktemp("report") / "run"
  fake_run.write(directory)
  return directory


@pytest.fixture(scope="module")
def page(run):
  return reading.parse(pathlib.Path(write_report(run, fake_run.chunk_text)))


def written(directory, chunk_text=fake_run.chunk_text):
  return reading.parse(pathlib.Path(write_report(directory, chunk_text)))


def rows(directory, round_, name):
  return pq.read_table(directory / "rounds" / str(round_) / f"{name}.parquet").to_pylist()


def edit(path, **changes):
  """Replaces columns of a Parquet file: {column: function of the list of values}."""
  table = pq.read_table(path)
  for name, change in changes.items():
    column = table.schema.get_field_index(name)
    table = table.set_column(column, table.schema.field(name), [change(table[name].to_pylist())])
  pq.write_table(table, path)


def test_the_round_table_shows_the_counts_of_the_tables(run, page):
  cells = reading.round_table(page)
  for place in (0, 1):
    verdicts, anchors = rows(run, place + 1, "verdicts"), rows(run, place + 1, "anchors")
    roots, positives = rows(run, place + 1, "roots"), rows(run, place + 1, "positives")
    groups = {
        "own candidates": [v for v in verdicts if v["kind"] == "retrieved" and v["rank"] >= 0],
        "other anchors' candidates": [v for v in verdicts if v["kind"] == "retrieved" and v["rank"] == -1],
        "control": [v for v in verdicts if v["kind"] == "control"]}
    for name, pairs in groups.items():
      accepted = sum(v["accepted"] for v in pairs)
      assert cells[f"accepted: {name}"][place].startswith(f"{accepted:,} of {len(pairs):,} ("), name
    gains = [v["gain"] for v in verdicts if v["accepted"] and v["kind"] == "retrieved"]
    assert cells["mean gain of the accepted"][place] == f"{np.mean(gains):.3f}"
    assert cells["root documents"][place] == str(len(roots))
    assert cells["anchors"][place] == f"{len(anchors):,}"
    assert cells["anchors per root"][place] == f"{len(anchors) / len(roots):.2f}"
    assert cells["positives"][place] == f"{len(positives):,}"
    assert cells["roots with positives"][place] == str(len({p["doc_id"] for p in positives}))
    entropy = np.concatenate([np.array(root["entropy"][1:], np.float64) for root in roots])
    assert cells["entropy, mean"][place] == f"{entropy.mean():.2f}"
    assert cells["entropy, 5th to 95th percentile"][place] == " to ".join(
        f"{value:.2f}" for value in np.percentile(entropy, (5, 95)))


def test_overlap_gap_and_loss_are_those_of_the_files(run, page):
  cells = reading.round_table(page)
  chunks = [{row["chunk_id"] for row in rows(run, r, "positives")} for r in (1, 2)]
  shared = len(chunks[0] & chunks[1])
  assert cells["positive chunks shared with the round before"] == [
      "–", f"{shared} ({100 * shared / len(chunks[1]):.1f}%)"]
  again = rows(run, 2, "offpolicy")
  rejected = sum(row["rejected"] for row in again)
  assert cells["off-policy gap"] == ["–", f"{rejected} of {len(again)} ({100 * rejected / len(again):.1f}%)"]
  metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert cells["training loss, first → last step"] == [
      f"{metrics[first]['loss']:.2f} → {metrics[last]['loss']:.2f}" for first, last in ((0, 23), (24, 47))]


def test_plots_carry_axis_names_units_and_counts(run, page):
  plots = page.by_id("plots")
  labels = " | ".join(node.text for node in plots.all("text", "label"))
  for unit in ("entropy (nats)", "loss (nats per token)", "training step", "anchors in a root", "round"):
    assert unit in labels
  titles = [figure.one("b").text for figure in plots.all("figure")]
  assert titles == ["Entropy of the roots' tokens", "Anchors per root", "Acceptance against the control",
                    "Gain of the accepted", "Gain in round 1", "Gain in round 2", "Overlap with the round before",
                    "Off-policy gap", "Round 1's dependencies, as the policy of round 2 sees them",
                    "Round 2's dependencies, as the final policy sees them", "Training loss"]
  bars = [bar.text for bar in plots.all("figure")[2].all("rect", "bar")]
  own = [v for v in rows(run, 1, "verdicts") if v["rank"] >= 0]
  assert bars[0].startswith(f"round 1, the anchor's own candidates: {sum(v['accepted'] for v in own)} of {len(own)} ")


def test_every_shown_pair_is_a_verdict_and_the_best_come_first(run, page):
  shown = 0
  for r in (1, 2):
    verdicts = rows(run, r, "verdicts")
    for root in page.by_id("roots").all("details", "root"):
      doc_id = root.one("h4").text
      for anchor in root.all("section", "anchor"):
        position = int(re.search(r"at token ([\d,]+)", anchor.one("h5").text)[1].replace(",", ""))
        mine = [v for v in verdicts if v["doc_id"] == doc_id and v["position"] == position]
        if not mine:
          continue  # a root of the other round
        for word, kind, accepted in (("accepted", "retrieved", True), ("refused", "retrieved", False),
                                     ("control", "control", None)):
          best = sorted((v for v in mine if v["kind"] == kind and accepted in (None, v["accepted"])),
                        key=lambda v: -v["gain"])
          pairs = anchor.all("div", word)
          assert len(pairs) == min(len(best), {"accepted": 4, "refused": 2, "control": 1}[word])
          for pair, verdict in zip(pairs, best):
            assert pair.one("code").text == verdict["chunk_id"]
            assert pair.one("div", "gain").text == f"gain {verdict['gain']:.2f}".replace("-", "−")
            before, after = (f"{verdict[name]:.2f}" for name in ("entropy_before", "entropy_after"))
            assert f"{before} → {after} nats" in pair.one("div", "change").text
            if verdict["rank"] >= 0:
              assert f"rank {verdict['rank']} · similarity {verdict['similarity']:.2f}" in pair.text
            assert pair.one("div", "text").text == fake_run.chunk_text(verdict["chunk_id"])
            shown += 1
  assert shown > 20


def test_a_roots_text_is_whole_and_every_anchor_is_marked(run, page):
  roots = {row["doc_id"]: row for r in (1, 2) for row in rows(run, r, "roots")}
  anchors = [(row["doc_id"], row["position"]) for r in (1, 2) for row in rows(run, r, "anchors")]
  for article in page.by_id("roots").all("details", "root"):
    root = roots[article.one("h4").text]
    tokens = article.one("div", "shaded").all("span")
    assert [token.text for token in tokens] == root["pieces"]
    marked = {position for position, token in enumerate(tokens) if "a" in token.attributes["class"].split()}
    assert marked == {position for doc_id, position in anchors if doc_id == root["doc_id"]}
    for position, token in enumerate(tokens[1:], 1):
      assert f"entropy {root['entropy'][position]:.2f} nats" in token.attributes["title"]


def test_shading_never_falls_as_entropy_rises(run, page):
  style = page.one("style").text
  rules = re.findall(r"\.(e\d+) \{ background: rgba\([\d, ]+, ([\d.]+)\)", style)
  alpha = {name: float(value) for name, value in rules}
  roots = {row["doc_id"]: row for r in (1, 2) for row in rows(run, r, "roots")}
  points = []
  for article in page.by_id("roots").all("details", "root"):
    tokens = article.one("div", "shaded").all("span")
    entropy = roots[article.one("h4").text]["entropy"]
    points += [(entropy[t], alpha[tokens[t].attributes["class"].split()[0]]) for t in range(1, len(tokens))]
  shades = [shade for _, shade in sorted(points)]
  assert shades == sorted(shades)
  assert len(set(shades)) > 8


def test_the_spans_of_a_drawn_sequence_cover_its_whole_width(run, page):
  drawings = page.by_id("sequences").all("svg", "spans")
  assert len(drawings) == 2
  for drawing, r in zip(drawings, (1, 2)):
    width = float(drawing.attributes["viewbox"].split()[2])
    assert width == fake_run.LENGTH
    spans = sorted((float(rect.attributes["x"]), float(rect.attributes["width"])) for rect in drawing.all("rect"))
    at = 0.0
    for x, w in spans:
      assert x == at
      at += w
    assert at == width
    number = int(re.search(r"sequence (\d+)", drawing.attributes["aria-label"])[1])
    told = [rect.one("title").text for rect in drawing.all("rect")]
    for text, span in zip(told, [row for row in rows(run, r, "sequences") if row["sequence"] == number]):
      assert text.startswith(f"{span['role']} · tokens {span['start']:,}–{span['end']:,}")
      if span["role"] == "positive":
        assert f"gain {span['gain']:.2f}" in text and span["chunk_id"] in text


def test_nothing_is_loaded_from_anywhere(run, page):
  for node in page.walk():
    assert node.name not in ("link", "img", "iframe", "object", "embed", "base", "image", "use")
    for name, value in node.attributes.items():
      assert name not in ("src", "srcset", "xlink:href", "action", "data")
      assert name != "href" or value.startswith("#")
      assert "url(" not in (value or "")
  source = (run / "report" / "index.html").read_text(encoding="utf-8")
  assert "@import" not in source and "url(" not in source and "http" not in source.replace("http-equiv", "")
  (script,) = page.all("script")
  policy = next(node for node in page.all("meta") if "http-equiv" in node.attributes).attributes["content"]
  digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
  assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_links_within_the_page_lead_somewhere_and_ids_are_unique(page):
  ids = [node.attributes["id"] for node in page.walk() if "id" in node.attributes]
  assert len(ids) == len(set(ids))
  links = {node.attributes["href"][1:] for node in page.all("a") if node.attributes.get("href", "#")[1:]}
  assert links <= set(ids)


HOSTILE = """</title></script></style></textarea><script>alert(1)</script>"'><img src=x onerror=alert(1)>\x00\x1b&lt;"""


def test_text_from_outside_cannot_become_html(tmp_path):
  fake_run.write(tmp_path, rounds=2, roots=4)
  for r in ("1", "2"):
    folder = tmp_path / "rounds" / r
    for name in ("roots", "anchors", "verdicts", "positives", "negatives", "sequences"):
      edit(folder / f"{name}.parquet", doc_id=lambda values: [value + HOSTILE for value in values])
    edit(folder / "roots.parquet", pieces=lambda values: [[piece + HOSTILE for piece in row] for row in values],
         source=lambda values: [HOSTILE] * len(values))
    for name in ("verdicts", "sequences"):
      edit(folder / f"{name}.parquet", chunk_id=lambda values: [value and value + HOSTILE for value in values])
    edit(folder / "sequences.parquet", role=lambda values: [HOSTILE, *values[1:]])
  for name in ("config", "corpus"):
    value = json.loads((tmp_path / f"{name}.json").read_text())
    value["sources" if name == "corpus" else "seed"] = {HOSTILE: {"documents": 1}} if name == "corpus" else HOSTILE
    if name == "corpus":
      value["bad_records"] = {HOSTILE: {"count": 1, "examples": [{"source": HOSTILE, "place": HOSTILE}]}}
    else:
      value["model"]["path"] = HOSTILE.replace("/", "")
    (tmp_path / f"{name}.json").write_text(json.dumps(value))
  page = written(tmp_path, lambda chunk_id: HOSTILE + "\ud800")
  names = ("document html head meta title style body header main section footer nav div p span a b i h1 h2 h3 h4 h5 "
           "dl dt dd small ul li table thead tbody tr th td figure figcaption svg line text path rect circle details "
           "summary code pre mark br script")
  known = set(names.split())
  assert {node.name for node in page.walk()} <= known
  assert len(page.all("script")) == 1 and "alert" not in page.one("script").text
  assert not any(name.startswith("on") for node in page.walk() for name in node.attributes)
  visible = HOSTILE.replace("\x00", "\u2400").replace("\x1b", "\u241b")
  assert page.by_id("roots").one("details", "chunk").one("div", "text").text.startswith(visible)
  assert visible in page.by_id("roots").one("div", "shaded").text
  assert visible in page.by_id("corpus").text


@pytest.mark.parametrize("name", ["config.json", "corpus.json", "metrics.jsonl", "rounds/1/roots.parquet",
                                  "rounds/2/anchors.parquet", "rounds/1/verdicts.parquet", "rounds/2/positives.parquet",
                                  "rounds/2/negatives.parquet", "rounds/2/sequences.parquet",
                                  "rounds/2/offpolicy.parquet"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_missing_or_damaged_file_is_named_and_the_rest_is_shown(tmp_path, name, damage):
  fake_run.write(tmp_path, roots=6)
  path = tmp_path / name
  if damage == "missing":
    path.unlink()
  else:
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
  page = written(tmp_path)
  warnings = " ".join(node.text for node in page.all("p", "warn"))
  assert pathlib.PurePath(name).name in warnings
  assert [node.one("h3").text[:7] for node in page.all("div", "card")] == ["Round 1", "Round 2"]


def test_a_table_without_a_column_is_named_with_the_column(tmp_path):
  fake_run.write(tmp_path, roots=6)
  path = tmp_path / "rounds" / "1" / "verdicts.parquet"
  pq.write_table(pq.read_table(path).drop_columns(["gain"]), path)
  warnings = " ".join(node.text for node in written(tmp_path).all("p", "warn"))
  assert "Round 1: verdicts.parquet has no column gain." in warnings


def test_a_folder_with_nothing_in_it_gives_a_page_that_says_so(tmp_path):
  text = written(tmp_path).text
  for sentence in ("config.json is missing.", "There is no round in rounds/ yet.", "No round has been started."):
    assert sentence in text


def test_empty_tables_give_a_page(tmp_path):
  fake_run.write(tmp_path, roots=6)
  for path in tmp_path.glob("rounds/*/*.parquet"):
    pq.write_table(pq.read_table(path).slice(0, 0), path)
  assert "The files disagree" in written(tmp_path).text


def test_an_unfinished_round_is_shown_as_unfinished_with_counts_from_its_tables(tmp_path):
  fake_run.write(tmp_path, roots=8)
  (tmp_path / "rounds" / "2" / "DONE.json").unlink()
  page = written(tmp_path)
  card = page.all("div", "card")[1]
  assert "unfinished" in card.one("span", "chip").text and "has no DONE.json" in card.text
  assert "round 2 (unfinished)" in page.by_id("numbers").text
  cells = reading.round_table(page)
  assert cells["anchors"][1] == f"{len(rows(tmp_path, 2, 'anchors')):,}"
  verdicts = [v for v in rows(tmp_path, 2, "verdicts") if v["kind"] == "control"]
  assert cells["accepted: control"][1].startswith(f"{sum(v['accepted'] for v in verdicts)} of {len(verdicts)} ")


def test_a_round_that_is_screened_but_not_trained_shows_its_own_numbers(tmp_path):
  fake_run.write(tmp_path, roots=8)
  folder = tmp_path / "rounds" / "2"
  (folder / "DONE.json").rename(folder / "screened.json")
  page = written(tmp_path)
  assert page.all("div", "card")[1].one("span", "chip").text == "unfinished"
  assert reading.round_table(page)["policy that screened"] == ["0", "24"]


def test_a_starved_round_is_flagged_in_words_and_a_fed_one_is_not(tmp_path, page):
  assert "Starved" not in page.text
  fake_run.write(tmp_path, starved=True)
  card = written(tmp_path).all("div", "card")[0]
  fed = len({row["doc_id"] for row in rows(tmp_path, 1, "positives")})
  assert card.one("span", "chip").text == "starved"
  assert f"Starved: only {fed} of 24 roots have a positive" in card.text


@pytest.mark.parametrize(("alpha", "epsilon", "small"), [(2.0, 0.4, False), (1.0, 0.4, True), (2.0, 0.2, True)])
def test_thresholds_other_than_the_papers_are_called_small_scale_with_both_numbers(tmp_path, alpha, epsilon, small):
  fake_run.write(tmp_path, roots=4, alpha=alpha, epsilon=epsilon)
  warnings = " ".join(node.text for node in written(tmp_path).all("p", "warn"))
  assert ("small-scale" in warnings) == small
  if small:
    both = f"alpha = {alpha:g} and epsilon = {epsilon:g} here; the paper's are alpha = 2.0 and epsilon = 0.4"
    assert both in warnings


def test_how_much_there_was_to_find_and_by_what_margin_stands_at_the_top(tmp_path, page):
  top = page.one("header").text
  assert "There was to find, by round" in top and "Loss margin" not in top
  fake_run.write(tmp_path, roots=4)
  for index, margin in ((1, 1.484), (2, 0.52)):
    path = tmp_path / "rounds" / str(index) / "DONE.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "loss_margin": margin}))
  assert "Loss margin1.48 → 0.52 nats" in written(tmp_path).one("header").text


@pytest.mark.parametrize("staleness, steps, words", [
    (0, (0, 24, 48), "each screened by the policy of that moment"),
    (1, (0, 0, 24), "each screened by the policy of 1 round before"),
    (2, (0, 0, 0), "all screened by the base model")])
def test_whose_eyes_a_round_was_screened_with_stands_at_the_top(tmp_path, staleness, steps, words):
  fake_run.write(tmp_path, rounds=3, roots=4)
  (tmp_path / "config.json").write_text(json.dumps({**fake_run.config(3), "max_staleness": staleness}))
  for index, step in enumerate(steps, start=1):
    path = tmp_path / "rounds" / str(index) / "DONE.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "policy_step": step}))
  top = written(tmp_path).one("header").text
  assert f"3 of 3{words}Policy at step{' → '.join(map(str, (*steps, 72)))}training steps" in top


def test_counts_that_differ_between_done_and_the_tables_are_found(tmp_path):
  fake_run.write(tmp_path, roots=6)
  path = tmp_path / "rounds" / "1" / "DONE.json"
  done = json.loads(path.read_text())
  done["anchors"] += 1
  done["acceptance"]["control"]["accepted"] += 5
  path.write_text(json.dumps(done))
  card = written(tmp_path).all("div", "card")[0]
  assert card.one("span", "chip").text == "wrong"
  assert f"anchors is {done['anchors'] - 1} in the tables and {done['anchors']} in DONE.json" in card.text
  assert "accepted (control)" in card.text


def test_a_large_round_counts_all_pairs_and_draws_no_curve_of_those_it_does_not_keep(tmp_path):
  def curves(page):
    (figure,) = [figure for figure in page.all("figure") if figure.one("b").text == "Gain in round 1"]
    return figure.text

  fake_run.write(tmp_path, rounds=1, roots=8)
  whole, verdicts = written(tmp_path), rows(tmp_path, 1, "verdicts")
  kept = [row for row in verdicts if row["kind"] == "control" or row["rank"] >= 0 or row["accepted"]]
  assert len(kept) < len(verdicts)
  pq.write_table(fake_run._table("verdicts", kept), tmp_path / "rounds" / "1" / "verdicts.parquet")
  thin = written(tmp_path)
  assert "in DONE.json" not in thin.text  # where all pairs were counted
  assert "other anchors' candidates" in curves(whole) and "other anchors' candidates" not in curves(thin)
  assert "the anchor's own candidates" in curves(thin)


@pytest.fixture
def budgeted(tmp_path):
  """A run with a budget, whose rows end at the last anchor that retrieved their chunk: (folder, verdicts)."""
  fake_run.write(tmp_path, rounds=1, roots=8)
  config = fake_run.config(1)
  config["screening"]["budget"] = 8.0
  (tmp_path / "config.json").write_text(json.dumps(config))
  verdicts = rows(tmp_path, 1, "verdicts")
  last = {(row["doc_id"], row["chunk_id"]): row["position"] for row in verdicts if row["rank"] >= 0}
  verdicts = [row for row in verdicts if row["position"] <= last.get((row["doc_id"], row["chunk_id"]), math.inf)]
  folder = tmp_path / "rounds" / "1"
  pq.write_table(fake_run._table("verdicts", verdicts), folder / "verdicts.parquet")
  retrieved = [row for row in verdicts if row["kind"] == "retrieved"]
  groups = {"own": [row for row in retrieved if row["rank"] >= 0], "retrieved": retrieved,
            "other": [row for row in retrieved if row["rank"] < 0],
            "control": [row for row in verdicts if row["kind"] == "control"]}
  tell(folder, acceptance={name: told(len(own), sum(row["accepted"] for row in own)) for name, own in groups.items()},
       verified={name: len(groups[name]) for name in ("retrieved", "control")}, mean_gain=None)
  return folder, verdicts


def told(pairs, accepted):
  return {"pairs": pairs, "accepted": accepted, "rate": accepted / pairs, "right": 0}


def tell(folder, **changes):
  done = json.loads((folder / "DONE.json").read_text()) | changes
  (folder / "DONE.json").write_text(json.dumps({name: value for name, value in done.items() if value is not None}))
  return done


def others(page):
  return reading.round_table(page)["accepted: other anchors' candidates"]


def test_within_a_budget_the_pairs_of_the_table_are_counted_one_by_one(tmp_path, budgeted):
  folder, verdicts = budgeted
  page = written(tmp_path)
  assert "in DONE.json" not in page.text
  pq.write_table(fake_run._table("verdicts", [row for row in verdicts if row is not verdicts[0]]),
                 folder / "verdicts.parquet")
  count = sum(row["kind"] == "retrieved" for row in verdicts)
  assert f"pairs (retrieved) is {count - 1:,} in verdicts.parquet and {count:,} in DONE.json".replace(",", "") in (
      written(tmp_path).text.replace(",", ""))
  kept = [row for row in verdicts if row["kind"] == "control" or row["rank"] >= 0 or row["accepted"]]
  pq.write_table(fake_run._table("verdicts", kept), folder / "verdicts.parquet")
  thin = written(tmp_path)
  assert "in DONE.json" not in thin.text and others(thin) == others(page)  # which DONE.json alone knows
  (folder / "DONE.json").unlink()
  assert others(written(tmp_path)) == ["–"]


@pytest.mark.parametrize("spent, epochs, said", [(True, 1.5, True), (True, 1.0, False), (False, 1.5, False)])
def test_a_budget_that_ended_before_the_round_was_fed_is_told_and_one_that_just_fed_it_is_not(
    tmp_path, budgeted, spent, epochs, said):
  tell(budgeted[0], budget_spent=spent, epochs=epochs)
  assert ("The budget was spent before the round was fed" in written(tmp_path).text) == said


def test_a_budgeted_round_of_an_earlier_version_is_shown_with_the_pairs_of_its_table(tmp_path, budgeted):
  folder, verdicts = budgeted
  page, done = written(tmp_path), tell(folder)
  anchors = [row["doc_id"] for row in rows(tmp_path, 1, "anchors")]
  chunks = {(row["doc_id"], row["chunk_id"]) for row in verdicts if row["kind"] == "retrieved"}
  every = sum(anchors.count(doc_id) for doc_id, _ in chunks)  # as if each row had read all anchors of its root
  groups, own = done["acceptance"], done["acceptance"]["own"]["pairs"]
  wrong = {"retrieved": told(every, groups["retrieved"]["accepted"]),
           "other": told(every - own, groups["other"]["accepted"])}
  assert groups["retrieved"]["pairs"] < every
  tell(folder, acceptance=groups | wrong, verified=None)
  earlier = written(tmp_path)
  assert others(earlier) == others(page) and "in DONE.json" not in earlier.text


def test_a_gain_or_a_decision_that_does_not_follow_from_the_entropies_is_found(tmp_path):
  fake_run.write(tmp_path, roots=6)
  path = tmp_path / "rounds" / "1" / "verdicts.parquet"
  edit(path, entropy_after=lambda values: [values[0] + 0.5, *values[1:]],
       accepted=lambda values: [*values[:-1], not values[-1]])
  total = len(rows(tmp_path, 1, "verdicts"))
  text = written(tmp_path).all("div", "card")[0].text
  assert f"1 of {total:,} gains are not (before − after) / before." in text
  assert f"1 of {total:,} verdicts go against epsilon = 0.2." in text


def test_the_loss_of_an_only_step_is_told_as_one(tmp_path):
  fake_run.write(tmp_path, roots=6)
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text().splitlines()[0] + "\n")
  loss = json.loads(path.read_text())["loss"]
  assert f"Training loss {loss:.2f} nats a token, at its only step." in written(tmp_path).all("div", "card")[0].text


def test_a_loss_that_is_not_a_number_is_flagged(tmp_path):
  fake_run.write(tmp_path, roots=6)
  path = tmp_path / "metrics.jsonl"
  lines = path.read_text().splitlines()
  lines[3] = json.dumps({**json.loads(lines[3]), "loss": math.nan})
  path.write_text("\n".join(lines) + "\n{\"round\": 2, \"st")
  page = written(tmp_path)
  assert "The training loss is not a number at 1 of 24 steps." in page.all("div", "card")[0].text
  assert "metrics.jsonl has 1 line damaged or cut off, and left out." in page.text


def test_without_a_corpus_the_page_shows_ids_and_says_so_once(run, tmp_path):
  fake_run.write(tmp_path / "a", roots=6)
  fake_run.write(tmp_path / "b", roots=6)

  def fails(chunk_id):
    raise KeyError(chunk_id)
  sentence = "Chunks are shown by their ids only"
  for name, chunk_text in (("a", None), ("b", fails)):
    page = written(tmp_path / name, chunk_text)
    assert page.text.count(sentence) == 1
    assert "#" in page.by_id("roots").one("div", "chunk").one("code").text
  assert sentence not in written(run).text


def test_the_page_is_the_same_bytes_again_and_leaves_no_temporary_file(run):
  path = pathlib.Path(write_report(run, fake_run.chunk_text))
  first = path.read_bytes()
  assert path == run / "report" / "index.html"
  write_report(run, fake_run.chunk_text)
  assert path.read_bytes() == first
  assert [entry.name for entry in path.parent.iterdir()] == ["index.html"]


def test_a_folder_that_does_not_exist_is_one_sentence(tmp_path):
  with pytest.raises(UserError, match="not a directory"):
    write_report(tmp_path / "nowhere", None)
  assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(("arguments", "code", "said"), [
    ([], 2, "--workdir"), (["--workdir=/nonexistent/run"], 1, "/nonexistent/run"), (["--help"], 0, "working dir")])
def test_the_command_line_exits_as_every_command_does(arguments, code, said):
  result = subprocess.run([sys.executable, "-m", "policylong.report", *arguments], capture_output=True, text=True)
  assert result.returncode == code
  assert said in result.stdout + result.stderr and "Traceback" not in result.stderr


def test_the_command_line_writes_the_page_even_when_the_corpus_is_gone(tmp_path):
  fake_run.write(tmp_path, roots=4)
  result = subprocess.run([sys.executable, "-m", "policylong.report", f"--workdir={tmp_path}"], capture_output=True,
                          text=True)
  assert result.returncode == 0 and result.stdout.strip().endswith("report/index.html")
  assert "ids only" in result.stderr


@pytest.mark.parametrize("share", [None, 0.0])  # 0.0 is what earlier versions wrote
def test_a_share_of_nothing_is_a_dash_and_never_zero(tmp_path, share):
  fake_run.write(tmp_path, roots=6)
  folder, gap = tmp_path / "rounds" / "2", {"verified": 0, "rejected": 0, "share": share}
  groups = json.loads((folder / "DONE.json").read_text())["acceptance"]
  groups["control"] = {"pairs": 0, "accepted": 0, "rate": share, "right": 0}
  tell(folder, offpolicy={**gap, "right": gap, "wrong": gap}, acceptance=groups)
  verdicts = [row for row in rows(tmp_path, 2, "verdicts") if row["kind"] != "control"]
  pq.write_table(fake_run._table("verdicts", verdicts), folder / "verdicts.parquet")
  (tmp_path / "final.json").write_text(json.dumps({"policy_step": 48, "offpolicy": gap}))
  page = written(tmp_path)
  cells = reading.round_table(page)
  assert [cells[name][1] for name in cells if name.startswith(("off-policy gap", "accepted: control"))] == ["–"] * 4
  assert "0 of 0 (" not in page.text
  run = read_run(Workdir(tmp_path))
  assert "0 of 0" not in status.text(run, standing(run, Workdir(tmp_path), 0.0))
