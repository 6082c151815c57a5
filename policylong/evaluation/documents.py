"""Held-out long documents and the policy's loss on each of their tokens, kept on disk.

Longer documents are cut to the length that is asked for, shorter ones are left out: every document has every position.
"""

import dataclasses
import hashlib
import io
import logging
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from policylong.corpus.sources import read_source
from policylong.devices import hosts
from policylong.errors import UserError
from policylong.evaluation.results import Options
from policylong.model.tokenizer import encode_begun
from policylong.storage.checksums import sealed, unsealed
from policylong.storage.mending import whole_or_gone
from policylong.storage.progress import Bar
from policylong.storage.workdir import write_atomically

log = logging.getLogger(__name__)

# Documents of one call of the policy, and of one file: what is scored together is kept together, so that a run that
# was killed scores the same batches again and ends with the same bytes.
_GROUP = 4
# A token is hardly ever longer, so that much of a text is enough.
_MOST_CHARACTERS_A_TOKEN = 16


def read(tokenizer, options: Options, length: int) -> list[np.ndarray]:
  """The first `options.samples` documents that are long enough (all, if that is None), int32[length] each.

  They begin as the tokenizer begins a text: a BOS is the first of the `length` tokens.

  Raises:
    UserError: no documents are named, they cannot be read, or too few are long enough.
  """
  if options.documents is None:
    raise UserError("longppl and position_loss need held-out text: name a file with --documents=F.jsonl, "
                    '{"id": ..., "text": ...} a line')
  found, longest, seen = [], 0, 0
  skipped: Counter[str] = Counter()
  for reading in read_source(dataclasses.replace(options.documents, id_field="")):  # no id is asked for
    if reading.document is None:
      skipped[reading.reason] += 1
      continue
    seen += 1
    tokens = encode_begun(tokenizer, reading.document.text[:length * _MOST_CHARACTERS_A_TOKEN])
    longest = max(longest, len(tokens))
    if len(tokens) >= length:
      found.append(tokens[:length])
    if len(found) == options.samples:
      break
  if skipped:
    log.info("%s: %d documents read, %d records dropped (%s)", options.documents.path, seen, skipped.total(),
             ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())))
  if not found or (options.samples and len(found) < options.samples):
    raise UserError(f"{options.documents.path} has {len(found)} documents of {length} tokens or more, wanted "
                    f"{options.samples or 'at least 1'} (it has {seen} documents, the longest of {longest} tokens): "
                    "give longer ones, or a shorter length")
  return found


def nlls(score: Callable[[list[np.ndarray]], list[np.ndarray]], rows: Sequence[np.ndarray], directory: epath.Path,
         title: str) -> np.ndarray:
  """What `score` says of each row, from `directory` where it is there already.

  Collective: each process scores its share of the groups.

  Args:
    score: int32[T] rows -> a float32[T] for each.
    rows: of one length T.
    title: of the progress bar.

  Returns:
    float32[len(rows), T].
  """
  groups = [rows[start:start + _GROUP] for start in range(0, len(rows), _GROUP)]
  paths = [epath.Path(directory) / f"{_hash(group)}.npy" for group in groups]
  mine = [index for index in hosts.share(len(groups)) if not (whole_or_gone(paths[index], _read) and
                                                              paths[index].exists())]
  with Bar(desc=title, total=sum(np.size(groups[index]) for index in mine), unit="tok", unit_scale=True,
           disable=not mine) as bar:
    for index in mine:
      buffer = io.BytesIO()
      np.save(buffer, np.stack(score(list(groups[index]))).astype(np.float32))
      write_atomically(paths[index], sealed(buffer.getvalue()))
      bar.update(np.size(groups[index]))
  hosts.barrier("nlls")
  return np.concatenate([_read(path) for path in paths])


def _read(path: epath.Path) -> np.ndarray:
  return np.load(io.BytesIO(unsealed(path, path.read_bytes())))


def _hash(group: Sequence[np.ndarray]) -> str:
  return hashlib.sha256(np.stack(group).astype("<i4").tobytes()).hexdigest()[:32]
