"""Entropy and nll of every token of any text under a checkpoint.

  python -m policylong.score --model=DIR_OR_GGUF --input=F.jsonl --output=F.parquet

Input: one {"id": ..., "text": ...} a line. Output: one row a token of the text, in nats:
  id        the record's id
  position  of the token in its text, from 0
  token     its text ("" for all but the first of the tokens that share a character)
  nll       of this token given those before it; null for the first, which nothing predicts
  entropy   of the prediction made at this position, of the next token

Where the tokenizer begins every text with a token of its own (a Llama's BOS, as transformers' `add_special_tokens` has
it), the model reads it in front of the text, as it was trained to: it has no row, and the first token has an nll.
"""

import argparse
from collections import Counter
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from etils import epath

from policylong import config as config_lib
from policylong import paths
from policylong.corpus.roots import pieces
from policylong.corpus.sources import read_with_unique_ids, source_at
from policylong.devices import hardware
from policylong.devices.mesh import make_mesh
from policylong.errors import UserError, run_command
from policylong.model.stored import open_model
from policylong.model.tokenizer import beginning
from policylong.records import Document
from policylong.screening.scorer import Scorer
from policylong.storage import tables
from policylong.storage.progress import Bar
from policylong.storage.workdir import check_output

_SCHEMA = pa.schema([("id", pa.string()), ("position", pa.int64()), ("token", pa.string()),
                     ("nll", pa.float32()), ("entropy", pa.float32())])
# Padded tokens that a device scores at once.
_TOKENS_PER_BATCH = 4096
_TOO_LONG = "longer than the model's window"


def score(model: str, path: str, *, dtype: str = "float32", base_model: str | None = None
          ) -> tuple[pa.Table, dict[str, int]]:
  """Scores every document of a JSONL file.

  Args:
    model: an HF directory (also on the hub), a GGUF file, a run's working directory or one of its checkpoints, or an
      Orbax directory.
    path: JSONL, {"id", "text"} a line, or Parquet or MDS with such columns; compressed or not.
    dtype: of the weights and matmul inputs; logits and reductions are float32.
    base_model: as of `stored.open_model`.

  Returns:
    The table described above, and {reason: number of records that were skipped}.

  Raises:
    UserError: the model or the file cannot be read, or no record is left.
  """
  stored = open_model(model, base_model=base_model)
  config, tokenizer = stored.config, stored.tokenizer
  begun = beginning(tokenizer)
  skipped: Counter[str] = Counter()
  documents, rows = [], []
  for document in _documents(path, skipped):
    tokens = np.asarray(tokenizer(document.text, add_special_tokens=False).input_ids, np.int32)
    if len(begun) + len(tokens) > config.max_positions:
      skipped[f"{_TOO_LONG} of {config.max_positions} tokens"] += 1
      continue
    documents.append(document)
    # The entropy at the last position is that of one more token; which one does not matter.
    rows.append(np.append(tokens, np.int32(0)))
  if not rows:
    raise UserError(f"{path} has no record to score ({_in_words(skipped)}): every line must be "
                    '{"id": ..., "text": ...}')
  mesh = make_mesh(config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1))
  # Batches are always filled up with empty rows: a short input gets small ones.
  tokens_per_batch = min(_TOKENS_PER_BATCH, sum(len(begun) + len(row) for row in rows) // mesh.size)
  scorer = Scorer(stored.load(jnp.dtype(dtype), mesh), config, mesh, dtype=dtype,
                  tokens_per_batch=tokens_per_batch, bucket_multiple=128, beginning=begun)
  with Bar(desc="scoring", total=sum(map(len, rows)), unit="tok", unit_scale=True) as bar:
    traces = scorer.traces(rows, bar.update)
  parts = [_rows(document, tokenizer, *trace) for document, trace in zip(documents, traces)]
  return pa.concat_tables(parts), dict(skipped)


def _documents(path: str, skipped: Counter) -> Iterator[Document]:
  for reading in read_with_unique_ids(source_at("input", path)):
    if reading.document is None:
      skipped[reading.reason] += 1
    else:
      yield Document(reading.document.id.removeprefix("input/"), reading.document.text, "input")


def _rows(document: Document, tokenizer, entropy: np.ndarray, nll: np.ndarray) -> pa.Table:
  count = len(entropy) - 1
  return pa.table([[document.id] * count, range(count), pieces(tokenizer, document.text),
                   pa.array(nll[:-1], mask=np.isnan(nll[:-1])), entropy[1:]], schema=_SCHEMA)


def _in_words(skipped: dict[str, int]) -> str:
  return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "it is empty"


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", type=paths.flag, required=True,
                      help="an HF directory, a GGUF file, hf://ORG/NAME, a run or one of its checkpoints")
  parser.add_argument("--base_model", type=paths.flag,
                      help="where the model that a run started from is now, if it has moved since")
  parser.add_argument("--input", type=paths.flag, required=True, help="JSONL file, {id, text} a line")
  parser.add_argument("--output", type=paths.flag, required=True, help="Parquet file to write")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                      help="of weights and activations; logits are float32 (default: %(default)s)")
  arguments = parser.parse_args()
  check_output(arguments.output, "--output")
  hardware.spread_over_cores()
  table, skipped = score(arguments.model, arguments.input, dtype=arguments.dtype,
                         base_model=arguments.base_model)
  tables.write(epath.Path(arguments.output), table)
  nll = table["nll"].drop_null().to_numpy().astype(np.float64)
  texts = len(table["id"].unique())
  perplexity = f"{np.exp(nll.mean()):.2f}" if len(nll) else "undefined (one token)"
  print(f"{table.num_rows:,} tokens of {texts:,} texts: perplexity {perplexity}, "
        f"mean entropy {np.mean(table['entropy'].to_numpy(), dtype=np.float64):.3f} nats -> {arguments.output}")
  if skipped:
    print(f"skipped: {_in_words(skipped)}")


if __name__ == "__main__":
  run_command(main)
