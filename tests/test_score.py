"""Entropy and nll of any text, under the real policy."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from policylong.errors import UserError
from policylong.model import hf
from policylong.model.qwen import hidden_states, output_matrix
from policylong.model.tokenizer import load_tokenizer
from policylong.score import main, score

PARAGRAPH = (
    "The library stands at the corner of the square, and its doors are open from nine in the morning until six in "
    "the evening. On the ground floor there are novels and newspapers, and upstairs there is a quiet room where "
    "students read and write. In the winter, when the days are short, the lamps are lit early and people come in to "
    "get warm. The old man who works at the desk knows most of them by name. He tells the children which books to "
    "borrow, and he never forgets to ask them later whether they liked the ending.")


@pytest.fixture(scope="module")
def scored(material, tmp_path_factory):
  folder = tmp_path_factory.mktemp("score")
  words = PARAGRAPH.split()
  random.Random(0).shuffle(words)
  texts = {"plain": PARAGRAPH, "shuffled": " ".join(words), "one": "a"}
  lines = [json.dumps({"id": name, "text": text}) for name, text in texts.items()] + ["{broken", '{"id": "no text"}']
  (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
  return score(str(material / "smollm2.gguf"), str(folder / "in.jsonl"))


def _perplexity(table, name):
  nll = [row["nll"] for row in table.to_pylist() if row["id"] == name and row["nll"] is not None]
  return float(np.exp(np.mean(nll)))


def test_plain_english_is_predictable_and_the_same_words_shuffled_are_not(scored):
  table, _ = scored
  plain, shuffled = _perplexity(table, "plain"), _perplexity(table, "shuffled")
  assert 5 < plain < 25
  assert shuffled > 20 * plain


def test_rows_are_one_a_token_with_the_texts_own_words(scored):
  table, skipped = scored
  rows = [row for row in table.to_pylist() if row["id"] == "plain"]
  assert "".join(row["token"] for row in rows) == PARAGRAPH
  assert [row["position"] for row in rows] == list(range(len(rows)))
  assert rows[0]["nll"] is None and all(row["nll"] is not None for row in rows[1:])
  assert all(0 <= row["entropy"] <= np.log(49152) for row in rows)
  (one,) = [row for row in table.to_pylist() if row["id"] == "one"]
  assert one["nll"] is None and one["entropy"] > 0
  assert skipped == {"not JSON": 1, "text missing": 1}


def test_entropy_and_nll_equal_float64_from_full_logits(scored, material):
  table, _ = scored
  path = material / "smollm2.gguf"
  model, tokenizer = hf.read_model_config(path), load_tokenizer(path)
  params = hf.load_params(path, model, np.dtype("float32"))
  tokens = np.asarray(tokenizer(PARAGRAPH, add_special_tokens=False).input_ids)
  states = np.asarray(hidden_states(params, model, tokens[None], compute_dtype=np.float32), np.float64)[0]
  logits = states @ np.asarray(output_matrix(params, model), np.float64).T
  logp = logits - logits.max(-1, keepdims=True)
  logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
  rows = [row for row in table.to_pylist() if row["id"] == "plain"]
  entropy = -(np.exp(logp) * logp).sum(-1)
  np.testing.assert_allclose([row["entropy"] for row in rows], entropy, atol=1e-4)
  np.testing.assert_allclose([row["nll"] for row in rows[1:]], -logp[np.arange(len(tokens) - 1), tokens[1:]], atol=1e-4)


def test_a_file_without_a_good_record_is_one_sentence(material, tmp_path):
  (tmp_path / "in.jsonl").write_text("nothing\n")
  with pytest.raises(UserError, match=r"in\.jsonl has no record to score \(1 not JSON\)"):
    score(str(material / "smollm2.gguf"), str(tmp_path / "in.jsonl"))


def test_a_text_longer_than_the_window_is_skipped_and_counted(material, tmp_path):
  lines = [json.dumps({"id": "long", "text": "word " * 9000}), json.dumps({"id": "short", "text": "Two words"})]
  (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
  table, skipped = score(str(material / "smollm2.gguf"), str(tmp_path / "in.jsonl"))
  assert set(table["id"].to_pylist()) == {"short"}
  assert skipped == {"longer than the model's window of 8192 tokens": 1}


def test_the_command_writes_the_table_and_says_what_it_did(material, tmp_path, monkeypatch, capsys):
  (tmp_path / "in.jsonl").write_text(json.dumps({"id": "a", "text": "The cat sat on the mat."}) + "\nx\n")
  output = tmp_path / "out.parquet"
  monkeypatch.setattr("sys.argv", ["score", f"--model={material / 'smollm2.gguf'}", f"--input={tmp_path / 'in.jsonl'}",
                                   f"--output={output}", "--dtype=bfloat16"])
  main()
  said = capsys.readouterr().out
  assert "perplexity" in said and "skipped: 1 not JSON" in said
  assert pq.read_table(output).column_names == ["id", "position", "token", "nll", "entropy"]
