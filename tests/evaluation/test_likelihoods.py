"""LongPPL and position loss against a brute force in float64; kept losses; what is refused."""

import json
import math
import pathlib
import types

import numpy as np
import pytest
from etils import epath

from policylong.config import Source
from policylong.errors import UserError
from policylong.evaluation import documents, longppl, position_loss, results
from policylong.screening import long_gap
from tests.evaluation.stand_in import Losing


@pytest.fixture
def held_out(tmp_path):
  """Three documents of 1,100 tokens or more and a short one."""
  rng = np.random.default_rng(3)
  words = [f"word{i}" for i in range(300)]
  path = tmp_path / "held-out.jsonl"
  path.write_text("".join(json.dumps({"id": str(i), "text": " ".join(rng.choice(words, count))}) + "\n"
                          for i, count in enumerate((700, 20, 800, 900))))
  return Source("documents", "jsonl", str(path), id_field="id", text_field="text", split="")


@pytest.fixture
def asked(options, held_out):
  return options(lengths=(1000,), samples=3, documents=held_out, short_window=100)


def texts(held_out, tokenizer, length):
  lines = map(json.loads, pathlib.Path(held_out.path).read_text().splitlines())
  rows = [tokenizer(line["text"], add_special_tokens=False).input_ids for line in lines]
  return [row[:length] for row in rows if len(row) >= length]


def brute_force_longppl(policy, evaluator, rows, window):
  """(LongPPL, key tokens), token by token: its short context begins where the last step of its window does."""
  step, total, count = window // 4, 0.0, 0
  for row in rows:
    for t in range(window, len(row)):
      start = (t - window) // step * step
      short = evaluator.nll(row[start:], t - start)
      long = evaluator.nll(row, t)
      if short - long > 2 and long < 2:
        total += policy.nll(row, t)
        count += 1
  return math.exp(total / count), count


def test_longppl_is_the_perplexity_of_the_key_tokens(tokenizer, asked, held_out, tmp_path):
  policy = Losing(tokenizer)
  found = longppl.run(policy, ["longppl"], asked, epath.Path(tmp_path / "out"))
  rows = texts(held_out, tokenizer, 1000)
  value, count = brute_force_longppl(policy, policy, rows, 100)
  assert len(rows) == 3 and count > 50
  # losses are kept as float32: a relative error of 6e-8 each
  assert found["longppl"]["1000"].value == pytest.approx(value, rel=1e-6)
  assert found["longppl/key_tokens"]["1000"].value == pytest.approx(100 * count / (3 * 999))
  assert "key tokens by losing in bfloat16" in found["longppl"]["1000"].protocol


def test_a_short_context_has_the_window_or_up_to_a_quarter_more():
  class Counting:
    def token_nlls(self, rows):
      return [np.arange(len(row), dtype=np.float32) for row in rows]  # how many tokens precede

  for length in (130, 200, 333):
    (seen,) = long_gap.short_nlls(Counting().token_nlls, [np.zeros(length, np.int32)], 100)
    assert np.isnan(seen[:100]).all()
    assert (seen[100:] >= 100).all() and (seen[100:] < 125).all()


def test_key_tokens_of_handmade_losses():
  long = np.array([np.nan, 0.5, 0.5, 1.99, 2.0, 1.0], np.float32)
  short = np.array([np.nan, 2.5, 2.51, 9.0, 9.0, np.nan], np.float32)
  assert longppl.key_tokens(long, short).tolist() == [False, False, True, True, False, False]


def test_kept_key_tokens_serve_another_policy(tokenizer, options, asked, held_out, tmp_path):
  base, later = Losing(tokenizer), Losing(tokenizer, "later")
  keys = options(lengths=(1000,), samples=3, documents=held_out, short_window=100, keys_dir=str(tmp_path / "keys"),
                 evaluator="never loaded")
  longppl.run(base, ["longppl"], options(lengths=(1000,), samples=3, documents=held_out, short_window=100,
                                         keys_dir=str(tmp_path / "keys")), epath.Path(tmp_path / "base"))
  found = longppl.run(later, ["longppl"], keys, epath.Path(tmp_path / "later"))
  value, _ = brute_force_longppl(later, base, texts(held_out, tokenizer, 1000), 100)
  assert found["longppl"]["1000"].value == pytest.approx(value, rel=1e-6)
  assert later.rows == 3  # no short contexts


def test_the_evaluator_is_read_in_the_policy_s_dtype(tokenizer, options, held_out, tmp_path, monkeypatch):
  loaded = []
  monkeypatch.setattr(longppl, "open_model", lambda path: types.SimpleNamespace(identity=lambda: {"weights": path}))
  monkeypatch.setattr(longppl, "load_policy", lambda path, dtype: loaded.append((path, dtype)) or Losing(
      tokenizer, path + dtype, dtype))

  def run(dtype, evaluator):
    found = longppl.run(Losing(tokenizer, "policy", dtype), ["longppl"], options(
        lengths=(1000,), samples=3, documents=held_out, short_window=100, evaluator=evaluator),
        epath.Path(tmp_path / "out"))
    value, _ = brute_force_longppl(Losing(tokenizer, "policy"), Losing(tokenizer, evaluator + dtype),
                                   texts(held_out, tokenizer, 1000), 100)
    assert found["longppl"]["1000"].value == pytest.approx(value, rel=1e-6)
    assert found["longppl"]["1000"].protocol.endswith(f"key tokens by losing in {dtype}")
  for _ in range(2):  # kept the second time, those of each dtype and evaluator apart
    for dtype in ("float32", "bfloat16"):
      run(dtype, "one")
    run("float32", "other")
  assert loaded == [("one", "float32"), ("one", "bfloat16"), ("other", "float32")]


def test_position_loss_is_the_mean_of_each_octave(tokenizer, asked, held_out, tmp_path):
  policy = Losing(tokenizer)
  found = position_loss.run(policy, ["position_loss"], asked, epath.Path(tmp_path / "out"))
  rows = texts(held_out, tokenizer, 1000)
  for low, high in ((1, 256), (256, 512), (512, 1000)):
    expected = math.fsum(policy.nll(row, t) for row in rows for t in range(low, high)) / (3 * (high - low))
    assert found[f"position_loss/{low}-{high - 1}"]["1000"].value == pytest.approx(expected, rel=1e-6)
  expected = math.fsum(policy.nll(row, t) for row in rows for t in range(1, 1000)) / (3 * 999)
  assert found["position_loss"]["1000"].value == pytest.approx(expected, rel=1e-6)
  assert len(found) == 4


@pytest.mark.parametrize("length, expected", [
    (2, [(1, 2)]), (256, [(1, 256)]), (257, [(1, 256), (256, 257)]),
    (4096, [(1, 256), (256, 512), (512, 1024), (1024, 2048), (2048, 4096)])])
def test_buckets_cover_every_predicted_token_once(length, expected):
  assert position_loss.buckets(length) == expected


def test_both_measures_share_the_losses_and_a_second_call_computes_nothing(tokenizer, asked, tmp_path):
  policy, out = Losing(tokenizer), epath.Path(tmp_path / "out")
  first = position_loss.run(policy, ["position_loss"], asked, out)
  assert policy.rows == 3
  longppl.run(policy, ["longppl"], asked, out)
  short = policy.rows - 3
  assert short == 3 * 36  # 900 tokens in steps of 25
  assert position_loss.run(policy, ["position_loss"], asked, out) == first
  assert policy.rows == 3 + short


def test_a_killed_run_keeps_whole_groups(tokenizer, tmp_path):
  rows = [np.arange(50, dtype=np.int32) + i for i in range(10)]
  scored = []

  def score(group):
    if len(scored) == 2 and not score.again:
      raise KeyboardInterrupt
    scored.append(len(group))
    return [row.astype(np.float32) for row in group]
  score.again = False
  with pytest.raises(KeyboardInterrupt):
    documents.nlls(score, rows, epath.Path(tmp_path), "test")
  score.again = True
  found = documents.nlls(score, rows, epath.Path(tmp_path), "test")
  assert scored == [4, 4, 2] and (found == np.stack(rows)).all()


def test_bad_input_is_told(tokenizer, options, held_out, tmp_path):
  policy, out = Losing(tokenizer), epath.Path(tmp_path / "out")
  for chosen, words in [
      (options(lengths=(100,)), "--documents=F.jsonl"),
      (options(lengths=(1000,), samples=4, documents=held_out), "has 3 documents of 1000 tokens or more, wanted 4"),
      (options(lengths=(5000,), samples=None, documents=held_out), "has 0 documents of 5000 tokens or more, wanted at"),
      (options(lengths=(9000,), documents=held_out), "length 9000 is asked for, and the window of losing is 8192"),
      (options(lengths=(), documents=held_out), "no length is given")]:
    with pytest.raises(UserError, match=words):
      position_loss.run(policy, ["position_loss"], chosen, out)
  with pytest.raises(UserError, match="short context of 600 tokens: give lengths of at least 1200"):
    longppl.run(policy, ["longppl"], options(lengths=(1000,), documents=held_out, short_window=600), out)


def test_no_key_token_is_no_number(tokenizer, asked, tmp_path):
  policy = Losing(tokenizer)
  policy.nll = lambda row, t: 3.0
  found = longppl.run(policy, ["longppl"], asked, epath.Path(tmp_path / "out"))
  assert found["longppl"]["1000"].value is None
  assert " -" in results.table(found)
