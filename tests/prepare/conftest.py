"""Small corpora, and the pipeline without Beam: its units in this process, in any order."""

import json

import numpy as np
import pytest

from policylong import config as config_lib
from policylong.prepare import pipeline, preparation

VOCABULARY = 600


def make_texts(count, seed, length=60):
  """Texts of random words over several lines."""
  rng = np.random.default_rng(seed)
  return [" ".join(f"w{word}" + ("\n\n" if i % 20 == 19 else "") for i, word in
                   enumerate(rng.integers(0, VOCABULARY, rng.integers(length, 2 * length)))) for _ in range(count)]


def changed(text, count, rng):
  """The text with so many of its words replaced."""
  words = text.split()
  for place in rng.choice(len(words), count, replace=False):
    words[place] = f"x{rng.integers(0, 1 << 30)}"
  return " ".join(words)


def write_jsonl(path, texts, first=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts, first)))


@pytest.fixture
def corpus(tmp_path):
  def make(*sources, chunk_chars=200, name="prepared"):
    return config_lib.Corpus(
        sources=tuple(sources), root_sources=(), chunk_chars=chunk_chars, cache_dir=str(tmp_path / "cache"),
        prepared=str(tmp_path / name))
  return make


@pytest.fixture
def prepare(monkeypatch):
  """`preparation.prepare` whose units are done here; `order` puts them in another one."""
  def run(config, *, near_duplicates=0.7, benchmarks=(), order=list, do=None):
    def units_here(function, units, flags, seconds, name):
      for number in order(units):
        if do:
          do(name, number)
        function(number)
    monkeypatch.setattr(pipeline, "_run", units_here)
    return preparation.prepare(config, near_duplicates=near_duplicates, benchmarks=benchmarks, flags=())[0]
  return run
