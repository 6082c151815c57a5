"""Whole runs of the methods: EntropyLong is PolicyLong's first round, and what asks no policy costs no screening."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policylong import config as config_lib
from policylong import loop
from policylong.errors import UserError
from policylong.synthesis.storage import read_tokens, sequence_paths
from tests.event_files import points
from tests.small_run import make_small_run, small_config
from tests.test_resume import run_main


@pytest.fixture(scope="module")
def folder(tmp_path_factory, material):
  folder = tmp_path_factory.mktemp("methods")
  make_small_run(folder, material)
  return folder


def run(folder, workdir, **changes):
  """One round on the 8 simulated devices."""
  values = small_config(folder)
  values.mesh.update({"data": 2, "fsdp": 1, "context": 4})
  values.update({"rounds": 1, **{name: value for name, value in changes.items() if "." not in name}})
  for name, value in changes.items():
    if "." in name:
      values[name.split(".")[0]][name.split(".")[1]] = value
  return loop.run(config_lib.parse(values), workdir)


def test_one_round_of_policylong_without_negatives_is_entropylong_to_the_byte(folder, tmp_path):
  run(folder, tmp_path / "a", method="policylong", **{"screening.negatives": "none"})
  run(folder, tmp_path / "b", method="entropylong")
  a, b = ({str(path.relative_to(tmp_path / name)): path.read_bytes()
           for path in sorted((tmp_path / name / "rounds" / "1").rglob("*")) if path.is_file()} for name in "ab")
  assert a == b and {"rounds/1/sequences/part-00000.array_record", "rounds/1/sequences.parquet"} <= set(a)
  losses = [[json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
            for name in "ab"]
  assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_method_without_policy_screens_nothing_embeds_nothing_and_has_a_page(folder, tmp_path):
  shutil.rmtree(folder / "cache", ignore_errors=True)
  page = run(folder, tmp_path / "run", method="standard").read_text()
  round_ = tmp_path / "run" / "rounds" / "1"
  assert {path.name for path in round_.iterdir()} == {"sequences", "sequences.parquet", "screened.json", "DONE.json",
                                                      "evaluation"}
  assert not list((folder / "cache").glob("rows-*")) and not (tmp_path / "run" / "offpolicy.parquet").exists()
  done = json.loads((round_ / "DONE.json").read_text())
  assert done["sequences"] == 8 and done["epochs"] == 1.0 and done["policy_step"] == 0
  assert "standard" in page and "is missing" not in page and "small-scale thresholds" not in page
  assert "none screened" in page


STALE = {"rounds": 3, "screening.roots_per_round": 4}


@pytest.fixture(scope="module")
def stale(folder, tmp_path_factory):
  """A run of three rounds with a staleness of one."""
  directory = tmp_path_factory.mktemp("stale") / "run"
  assert run_main(folder / "small.py", directory, max_staleness=1, **STALE).returncode == 0
  return directory


def policy_steps(directory):
  """Of the policies that screened the three rounds."""
  return [json.loads((directory / "rounds" / f"{r}" / "DONE.json").read_text())["policy_step"] for r in (1, 2, 3)]


def files_of(directory, pattern):
  return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.glob(pattern))
          if path.is_file()}


def test_with_a_staleness_of_one_a_round_is_screened_by_the_policy_before_the_last_and_goes_on_after_kills(
    folder, tmp_path, stale):
  for kill in ("scan:3", "between:1"):  # in round 2's screening, before any training; at the end of round 1
    assert run_main(folder / "small.py", tmp_path / "killed", kill, max_staleness=1, **STALE).returncode == -9
  assert run_main(folder / "small.py", tmp_path / "killed", max_staleness=1, **STALE).returncode == 0
  assert files_of(stale, "rounds/**/*") == files_of(tmp_path / "killed", "rounds/**/*")
  assert policy_steps(stale) == [0, 0, 4]
  for r, step in ((2, 0), (3, 4)):  # the tables say so too, and so do the spans of what is trained on
    for table in ("roots", "verdicts", "sequences"):
      rows = pq.read_table(stale / "rounds" / str(r) / f"{table}.parquet")
      assert set(rows.column("policy_step").to_pylist()) == {step}, table


def test_of_rounds_that_one_policy_screened_each_is_a_point_of_its_own_on_tensorboard(stale):
  found = points(stale / "tensorboard")
  done = [json.loads((stale / "rounds" / f"{r}" / "DONE.json").read_text()) for r in (1, 2, 3)]
  for name in ("policy_step", "roots", "positives", "epsilon"):
    assert found[f"round/{name}"] == [(4 * r, pytest.approx(one[name])) for r, one in enumerate(done)], name


def test_with_a_staleness_of_two_rounds_the_base_model_screens_all_three_and_the_first_two_are_the_same(
    folder, tmp_path, stale):
  offline = tmp_path / "offline"
  assert run_main(folder / "small.py", offline, max_staleness=2, **STALE).returncode == 0
  assert policy_steps(offline) == [0, 0, 0]
  for r in (1, 2):
    tables = files_of(stale, f"rounds/{r}/*.parquet") | files_of(stale, f"rounds/{r}/sequences/*")
    assert len(tables) > 8
    assert tables == files_of(offline, f"rounds/{r}/*.parquet") | files_of(offline, f"rounds/{r}/sequences/*")
  roots = [pq.read_table(directory / "rounds" / "3" / "roots.parquet") for directory in (stale, offline)]
  assert roots[0].column("doc_id").equals(roots[1].column("doc_id"))
  assert not roots[0].column("policy_step").equals(roots[1].column("policy_step"))
  assert not (offline / "rounds" / "3" / "offpolicy.parquet").exists()  # the same policy: nothing can have changed


def test_with_document_masking_a_run_trains_on_its_documents_apart(folder, tmp_path):
  pages = {masked: run(folder, tmp_path / str(masked), method="standard", **{"training.document_masking": masked})
           for masked in (True, False)}
  rounds = {masked: tmp_path / str(masked) / "rounds" / "1" for masked in pages}
  assert (rounds[True] / "sequences.parquet").read_bytes() == (rounds[False] / "sequences.parquet").read_bytes()
  rows = pq.read_table(rounds[True] / "sequences.parquet").to_pylist()
  packed = read_tokens(sequence_paths(rounds[True] / "sequences")).reshape(8, 3, 256)
  assert (packed[:, 0] == read_tokens(sequence_paths(rounds[False] / "sequences"))).all() and packed[:, 2].all()
  lengths = []
  for number, segments in enumerate(packed[:, 1]):
    # Plain concatenation has one span a document.
    own = [row["end"] - row["start"] for row in rows if row["sequence"] == number]
    assert [int((segments == i).sum()) for i in range(1, len(own) + 1)] == own and (np.diff(segments) >= 0).all()
    lengths += own
  assert len(lengths) > 8  # some sequences join documents
  attended = {masked: json.loads((rounds[masked] / "DONE.json").read_text())["mean_attended_tokens"]
              for masked in pages}
  assert attended == {True: pytest.approx(sum(n * n for n in lengths) / (8 * 256)), False: 256}
  losses = {masked: [json.loads(line)["loss"] for line in (tmp_path / str(masked) / "metrics.jsonl").read_text()
                     .splitlines()] for masked in pages}
  assert len(losses[True]) == 4 and np.isfinite(losses[True]).all() and losses[True] != losses[False]
  assert "no document sees another" in pages[True].read_text()
  assert "no document sees another" not in pages[False].read_text()


def test_with_longce_a_run_trains_on_weighed_sequences(folder, tmp_path):
  pages = {longce: run(folder, tmp_path / str(longce), method="standard",
                       **{"training.longce": longce, "training.short_window": 64}) for longce in (True, False)}
  rounds = {longce: tmp_path / str(longce) / "rounds" / "1" for longce in pages}
  tokens = read_tokens(sequence_paths(rounds[True] / "sequences"))
  assert (tokens == read_tokens(sequence_paths(rounds[False] / "sequences"))).all()
  weighed = read_tokens(sequence_paths(rounds[True] / "selected")).reshape(8, 2, 256)
  weights = np.ascontiguousarray(weighed[:, 1]).view(np.float32)
  assert (weighed[:, 0] == tokens).all() and not (rounds[False] / "selected").exists()
  assert (weights[:, :64] == 1).all() and (weights > 0).all() and weights.max() <= 5 and np.std(weights[:, 64:]) > 0.01
  done = json.loads((rounds[True] / "DONE.json").read_text())
  assert done["long_gap"]["mean_weight"] == pytest.approx(weights.mean()) and done["long_gap"]["kept"] == 8
  assert done["long_gap"]["largest_share"] == pytest.approx((weights == 5).mean())
  losses = {longce: [json.loads(line)["loss"] for line in (tmp_path / str(longce) / "metrics.jsonl").read_text()
                     .splitlines()] for longce in pages}
  assert len(losses[True]) == 4 and np.isfinite(losses[True]).all() and losses[True] != losses[False]
  assert "weights by LongCE" in pages[True].read_text() and "LongCE" not in pages[False].read_text()


def test_with_longfilter_a_run_trains_on_the_sequences_with_the_highest_scores(folder, tmp_path):
  page = run(folder, tmp_path / "run", method="standard",
             **{"training.longfilter_share": 0.5, "training.short_window": 64})
  round_ = tmp_path / "run" / "rounds" / "1"
  tokens = read_tokens(sequence_paths(round_ / "sequences"))
  table = pq.read_table(round_ / "gaps.parquet").to_pydict()
  best = sorted(np.argsort(table["score"])[-8:].tolist())
  assert len(tokens) == 16 and [i for i, kept in enumerate(table["kept"]) if kept] == best
  assert (read_tokens(sequence_paths(round_ / "selected")) == tokens[best]).all()
  done = json.loads((round_ / "DONE.json").read_text())
  assert done["epochs"] == 1.0 and done["long_gap"]["kept"] == 8 and done["sequences"] == 16
  assert done["long_gap"]["mean_score_kept"] == pytest.approx(np.mean([table["score"][i] for i in best]))
  assert "chosen by LongFilter" in page.read_text()


def test_a_method_without_policy_is_resumed_like_any_other(folder, tmp_path):
  settings = {"method": "nextlong", "rounds": 1, "training.longce": True, "training.longfilter_share": 0.5,
              "training.short_window": 64}
  assert run_main(folder / "small.py", tmp_path / "whole", **settings).returncode == 0
  for kill in ("synthesis:3", "gaps:1", "training:2"):
    assert run_main(folder / "small.py", tmp_path / "killed", kill, **settings).returncode == -9
  last = run_main(folder / "small.py", tmp_path / "killed", **settings)
  assert last.returncode == 0, last.stderr[-3000:]
  whole, killed = ({str(path.relative_to(tmp_path / name)): path.read_bytes() for pattern in (
      "rounds/**/*", "final.json") for path in sorted((tmp_path / name).glob(pattern)) if path.is_file()}
                   for name in ("whole", "killed"))
  assert whole == killed and any(name.endswith(".array_record") for name in whole)
  losses = [[json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
            for name in ("whole", "killed")]
  assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_round_whose_roots_are_all_too_short_is_one_sentence(folder, tmp_path):
  with pytest.raises(UserError, match=r"^knn, round 1: none of its screening\.roots_per_round = 12 roots .* all 5120 "
                                      r"tokens .*screening\.min_root_tokens") as caught:
    run(folder, tmp_path / "run", method="knn", **{"screening.min_root_tokens": 5000, "screening.root_tokens": 5000,
                                                   "screening.tokens_per_batch": 10_000,
                                                   "synthesis.sequence_length": 5120})
  assert "\n" not in str(caught.value)


def write_given(path, count=20, length=300):
  """Sequences of a run's length and 44 tokens more, of two documents each."""
  rng = np.random.default_rng(5)
  rows = rng.integers(0, 40_000, (count, length)).astype(np.int32)
  pq.write_table(pa.table({"input_ids": list(rows), "indices": [[[0, 100], [100, length]]] * count}), path)
  return rows


@pytest.mark.parametrize("masked", [False, True])
def test_given_sequences_are_trained_on_each_round_its_own(folder, tmp_path, masked):
  rows = write_given(tmp_path / "set.parquet")
  source = {"name": "set", "kind": "parquet", "path": str(tmp_path / "set.parquet"), "id_field": "",
            "text_field": "input_ids", "split": ""}
  page = run(folder, tmp_path / "run", method="given", rounds=2, **{
      "corpus.sources": (source,), "method_options.given_boundaries": "indices", "training.document_masking": masked})
  seen = []
  for r in (1, 2):
    round_ = tmp_path / "run" / "rounds" / str(r)
    records = read_tokens(sequence_paths(round_ / "sequences")).reshape(8, 3 if masked else 1, 256)
    seen += [tuple(row) for row in records[:, 0]]
    if masked:
      assert (records[:, 1] == np.repeat([1, 2], [100, 156])).all()
    assert json.loads((round_ / "DONE.json").read_text())["epochs"] == 1.0
  assert len(set(seen)) == 16 and set(seen) <= {tuple(row[:256]) for row in rows}
  losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert len(losses) == 8 and np.isfinite(losses).all()
  assert "given" in page.read_text() and json.loads((tmp_path / "run" / "corpus.json").read_text())["documents"] == 20


@pytest.mark.slow
def test_a_killed_run_on_given_sequences_goes_on_to_the_same_bytes_and_refuses_other_ones(folder, tmp_path):
  write_given(tmp_path / "set.parquet")
  config = tmp_path / "given.py"
  config.write_text(f'''
import pathlib
from tests.small_run import small_config

def get_config():
  config = small_config(pathlib.Path({str(folder)!r}))
  config.corpus.sources = ({{"name": "set", "kind": "parquet", "path": {str(tmp_path / "set.parquet")!r},
                            "id_field": "", "text_field": "input_ids", "split": ""}},)
  config.method, config.rounds, config.eval.tasks = "given", 2, ()
  return config
''')
  assert run_main(config, tmp_path / "whole").returncode == 0
  for kill in ("synthesis:3", "training:6"):
    assert run_main(config, tmp_path / "killed", kill).returncode == -9
  assert run_main(config, tmp_path / "killed").returncode == 0
  whole, killed = ({str(path.relative_to(tmp_path / name)): path.read_bytes()
                    for path in sorted((tmp_path / name).glob("rounds/**/*")) if path.is_file()}
                   for name in ("whole", "killed"))
  assert whole == killed and len(whole) > 6
  write_given(tmp_path / "set.parquet", count=21)
  (tmp_path / "killed" / "final.json").unlink()
  said = run_main(config, tmp_path / "killed")
  assert said.returncode == 1 and "began with the corpus" in said.stderr
