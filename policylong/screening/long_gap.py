"""The long-short gap of each token of a round's sequences, and two things to do with it.

The gap of a token, LongPPL's LSD, is loss_short - loss_long in nats: its loss after the last `training.short_window`
tokens, or up to a quarter more (`short_nlls`), minus its loss after all that stands before it in its sequence. It is
the round's policy that reads, all sequences of the round once, before it trains: a forward pass over each, and five
over short windows.

LongCE (arXiv 2410.23771) weighs tokens in the training loss: exp(gap), 5 at most; the first short_window tokens 1.
LongFilter (arXiv 2510.25804) keeps the best share of the sequences, by the mean over all tokens behind the first
short_window of exp(-loss_long) gap. The paper selects documents so; here it is sequences, whoever made them.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from policylong import config as config_lib
from policylong.devices import hosts
from policylong.screening.scorer import Scorer
from policylong.storage import tables
from policylong.storage.progress import Bar
from policylong.storage.workdir import Round
from policylong.synthesis.storage import sequence_paths, write_records
from policylong.training.batches import Sequences

_MOST = 5.0
# Sequences that are read between two writings.
_SHARD = 8


def select(round_: Round, scorer: Scorer, training: config_lib.Training, length: int, vocab_size: int) -> dict:
  """Writes `round_.selected`, the records that training reads, and gaps.parquet. Collective; each process its share.

  Args:
    round_: its sequences are written.
    scorer: of the round's policy.
    training: which of the two is asked.
    length: L, tokens of a sequence.
    vocab_size: of the policy.

  Returns:
    kept (sequences), mean_score of all and of those that are kept, mean_weight and largest_share (of tokens that weigh
    the most that is allowed) of those that are kept; of the first process, nothing of the others.
  """
  sequences = Sequences(sequence_paths(round_.sequences), length, vocab_size)
  shards = [range(start, min(start + _SHARD, len(sequences))) for start in range(0, len(sequences), _SHARD)]
  with Bar(desc=f"round {round_.index} long-short gap", unit="tok", unit_scale=True, mininterval=1.0,
           disable=not hosts.is_first()) as bar:
    for shard in hosts.share(len(shards)):
      if not round_.shard("gaps", shard).exists():
        # The scorer begins every row by itself, the short ones too.
        begun = len(scorer.beginning)
        found = gaps(lambda rows: [nll for _, nll in scorer.traces(rows, bar.update)],
                     [sequences[i][begun:] for i in shards[shard]], training.short_window)
        gap, long = (np.pad(values, ((0, 0), (begun, 0)), constant_values=np.nan) for values in found)
        weights = pa.FixedSizeListArray.from_arrays(longce_weights(gap).reshape(-1), length)
        tables.write(round_.shard("gaps", shard), pa.table({
            "sequence": list(shards[shard]), "score": longfilter_scores(gap, long), "weights": weights}))
  hosts.barrier("gaps")
  return _write(round_, sequences, len(shards), training) if hosts.is_first() else {}


def gaps(token_nlls: Callable, rows: Sequence[np.ndarray], window: int) -> tuple[np.ndarray, np.ndarray]:
  """(gap, loss_long), float32[n, L] in nats of n sequences of L tokens; gaps NaN where fewer than `window` precede.

  Args:
    token_nlls: rows of token ids -> the nll in nats of each token given those before it in its row.
    rows: int32[L] each.
    window: tokens of the short context.
  """
  long, short = np.stack(token_nlls(rows)), np.stack(short_nlls(token_nlls, rows, window))
  return short - long, long


def short_nlls(token_nlls, rows: Sequence[np.ndarray], short_window: int, begun: int = 0) -> list[np.ndarray]:
  """The loss of each token given `short_window` tokens or up to a quarter more; NaN where no more precede it.

  Args:
    token_nlls: a Policy's.
    rows: int32[T] each.
    short_window: in tokens.
    begun: tokens that every row begins with (a BOS): they stand in front of each window too, and are not of its tokens.
  """
  step = max(1, short_window // 4)
  windows = [(row, start) for row in range(len(rows)) for start in range(begun, len(rows[row]) - short_window, step)]
  scored = token_nlls([np.concatenate([rows[row][:begun], rows[row][start:start + short_window + step]])
                       for row, start in windows])
  result = [np.full(len(row), np.nan, np.float32) for row in rows]
  for (row, start), values in zip(windows, scored):
    result[row][start + short_window:start + short_window + step] = values[begun + short_window:]
  return result


def longce_weights(gap: np.ndarray) -> np.ndarray:
  """float32, of the shape of the gaps: the weight of each token."""
  return np.exp(np.minimum(np.nan_to_num(gap, nan=0.0), math.log(_MOST))).clip(max=_MOST).astype(np.float32)


def longfilter_scores(gap: np.ndarray, long: np.ndarray) -> np.ndarray:
  """float64[n]: how much each sequence needs its length; of float32[n, L]."""
  return np.nanmean(np.exp(-long) * gap, axis=1, dtype=np.float64)


def _write(round_: Round, sequences: Sequences, shards: int, training: config_lib.Training) -> dict:
  """Selects, writes the records in the order of the sequences, then the table."""
  found = [tables.read(round_.shard("gaps", shard)) for shard in range(shards)]
  score = np.concatenate([table.column("score").to_numpy() for table in found])
  share = 1.0 if training.longfilter_share is None else training.longfilter_share
  kept = np.zeros(len(score), bool)
  kept[np.argsort(-score, kind="stable")[:math.ceil(share * len(score))]] = True
  mean_weight, largest = np.zeros(len(score)), np.zeros(len(score))

  def records() -> Iterator[np.ndarray]:
    for table in found:
      rows = table.column("weights").combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
      for i, weights in zip(table.column("sequence").to_pylist(), rows):
        mean_weight[i], largest[i] = weights.mean(dtype=np.float64), (weights == _MOST).mean()
        if kept[i]:
          yield np.stack([sequences[i], weights.view(np.int32)]) if training.longce else sequences[i]
  write_records(records(), round_.selected)
  tables.write(round_.table("gaps"), pa.table({
      "sequence": np.arange(len(score)), "score": score, "mean_weight": mean_weight, "kept": kept}))
  return {"kept": int(kept.sum()), "mean_score": float(score.mean()), "mean_score_kept": float(score[kept].mean()),
          "mean_weight": float(mean_weight[kept].mean()), "largest_share": float(largest[kept].mean())}
