"""LongCE (arXiv 2410.23771): tokens that need the long context weigh more in the training loss.

A token's weight is exp(loss_short - loss_long), 5 at most: how much likelier the policy finds it after all that stands
before it in its sequence than after the last `window` tokens of that, or up to a quarter more (`short_nlls`). Tokens
that no more precede weigh 1. It is the round's policy that weighs, all sequences of the round once, before it trains on
them: that costs a forward pass over each, and five over short windows.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from policylong import hosts, tables
from policylong.evaluation.longppl import short_nlls
from policylong.screening.scorer import Scorer
from policylong.synthesis.storage import sequence_paths, write_records
from policylong.training.batches import Sequences
from policylong.workdir import Round

_MOST = 5.0
# Sequences that are weighed between two writings.
_SHARD = 8


def weigh(round_: Round, scorer: Scorer, window: int, sequences: Sequences) -> dict[str, float]:
  """Writes `round_.weighed`, the records that training reads. Collective; each process weighs its share.

  Args:
    round_: its sequences are written.
    scorer: of the round's policy.
    window: tokens of the short context.
    sequences: of the round.

  Returns:
    mean_weight and largest_share, the share of tokens that weigh the most that is allowed; of the first process.
  """
  shards = [range(start, min(start + _SHARD, len(sequences))) for start in range(0, len(sequences), _SHARD)]
  mine = [shard for shard in hosts.share(len(shards)) if not round_.shard("weights", shard).exists()]
  with tqdm(desc=f"round {round_.index} weights", unit="tok", unit_scale=True, mininterval=1.0,
            disable=not hosts.is_first()) as bar:
    for shard in mine:
      found = weights(lambda rows: [nll for _, nll in scorer.traces(rows, bar.update)],
                      [sequences[i] for i in shards[shard]], window)
      column = pa.FixedSizeListArray.from_arrays(found.reshape(-1), found.shape[1])
      tables.write(round_.shard("weights", shard), pa.table({"weights": column}))
  hosts.barrier("weighed")
  if not hosts.is_first():
    return {}
  counts = np.zeros(3)  # tokens, sum of their weights, how many weigh the most

  def records():
    for shard, numbers in enumerate(shards):
      table = tables.read(round_.shard("weights", shard))
      rows = table.column("weights").combine_chunks().flatten().to_numpy().reshape(len(numbers), -1)
      for i, row in zip(numbers, rows):
        counts[:] += len(row), row.sum(dtype=np.float64), (row == _MOST).sum()
        yield np.stack([sequences[i], row.view(np.int32)])
  write_records(records(), round_.weighed)
  return {"mean_weight": counts[1] / counts[0], "largest_share": counts[2] / counts[0]}


def open_sequences(round_: Round, length: int, vocab_size: int) -> Sequences:
  """The round's sequences of `length` tokens."""
  return Sequences(sequence_paths(round_.sequences), length, vocab_size)


def weights(token_nlls: Callable, rows: Sequence[np.ndarray], window: int) -> np.ndarray:
  """float32[n, L]: the weight of each token of n sequences of L tokens.

  Args:
    token_nlls: rows of token ids -> the nll in nats of each token given those before it in its row.
    rows: int32[L] each.
    window: tokens of the short context.
  """
  long, short = np.stack(token_nlls(rows)), np.stack(short_nlls(token_nlls, rows, window))
  gain = np.where(np.isnan(short), 0, short - long)
  return np.exp(np.minimum(gain, np.log(_MOST))).clip(max=_MOST).astype(np.float32)
