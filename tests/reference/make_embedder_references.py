"""Embeddings of all-MiniLM-L6-v2 by transformers and torch, to compare ours with.

  python -m venv reference && reference/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
  reference/bin/python tests/reference/make_embedder_references.py material/minilm

writes minilm_embeddings.npz beside this file: the texts, and float32[texts, 384]. Python 3.11. About 10 s.
"""

import argparse
import pathlib

import numpy as np
import torch
from transformers import BertModel, BertTokenizerFast

MAX_TOKENS = 256

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "",
    " ",
    "a",
    "What is the capital of the country north of the river?",
    "In 1847 the committee reported 12,345 barrels; by 1850 the figure was $98,760.50.",
    "Naïve café owners in Zürich, São Paulo and Łódź déjà vu",
    "ΕΛΛΗΝΙΚΑ and РУССКИЙ and 日本語の文章 mixed with English",
    "Mr. President, Mr. Speaker, Members of Congress: the state of the Union is strong.",
    "tabs\tand\nnew\r\nlines   and     many spaces",
    "http://example.org/path?query=1&other=two#fragment (see also: foo_bar-baz)",
    "antidisestablishmentarianism floccinaucinihilipilification pneumonoultramicroscopicsilicovolcanoconiosis",
    "emoji 🙂🙃 and control \x00\x07 characters �",
    "[CLS] a text that spells the special tokens [SEP] [MASK] [PAD]",
    "UPPER CASE IS LOWERED AND ÀCCENTS ARE STRIPPED",
]
PARAGRAPH = ("The harvest of that year was the largest ever gathered in the valley, and the warehouses along the "
             "river were full before the first frost. Merchants from the coast came with empty barges and left "
             "with grain, wool and timber; the toll house counted four hundred passages in a single month. ")
# lengths just under, at and over the lengths that texts are padded or cut to
LENGTHS = [29, 30, 31, 62, 63, 126, 127, 190, 254, 255, 400]


def texts() -> list[str]:
  """The texts, in order: the sentences, then runs of one paragraph's words of about `LENGTHS` tokens."""
  words = (PARAGRAPH * 10).split()
  return SENTENCES + [" ".join(words[i:i + length]) for i, length in enumerate(LENGTHS)]


@torch.no_grad()
def embed(model: BertModel, tokenizer: BertTokenizerFast, text: str) -> np.ndarray:
  """One text alone, so nothing is padded: mean of the last layer, length 1."""
  inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=MAX_TOKENS, padding=False)
  hidden = model(**inputs).last_hidden_state[0]
  return torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("directory", help="folder with the model's config.json, tokenizer.json, model.safetensors")
  directory = parser.parse_args().directory
  model = BertModel.from_pretrained(directory, attn_implementation="eager").eval()
  tokenizer = BertTokenizerFast(tokenizer_file=f"{directory}/tokenizer.json")
  vectors = np.stack([embed(model, tokenizer, text) for text in texts()])
  path = pathlib.Path(__file__).with_name("minilm_embeddings.npz")
  np.savez_compressed(path, texts=np.array(texts()), vectors=vectors.astype(np.float32))
  print(f"{len(vectors)} texts -> {path}")


if __name__ == "__main__":
  main()
