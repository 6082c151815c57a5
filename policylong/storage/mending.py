"""What is damaged of a round that is not over goes, with what was made from it, so that it is made again.

Everything in a round follows from the config, the corpus and the policy that screened it: made again by that policy it
has the same bytes. Each thing that goes is a line in the log.
"""

import logging
from collections.abc import Callable
from typing import Any

from etils import epath

from policylong.errors import Damaged
from policylong.storage import manifest, tables
from policylong.storage.workdir import Round, read_json, write_json

log = logging.getLogger(__name__)

# What a shard consists of, each made from those before it.
STAGES = ("scan", "anchors", "candidates", "rows", "verify")
# The tables that lie there when judged.json does.
JUDGED = ("roots", "anchors", "verdicts", "positives")


def mend(round_: Round) -> None:
  """Removes what is damaged of a round that is not over; what is left is as if the rest had not been made yet."""
  # Everything is looked at, so that all that is damaged is told of at once.
  is_judged = round_.judged_path.exists()
  judged = [whole_or_gone(round_.judged_path, read_json),
            *(whole_or_gone(path, tables.check) and path.exists() for path in map(round_.table, JUDGED))]
  screened = [whole_or_gone(round_.screened_path, read_json), round_.table("sequences").exists(),
              *(whole_or_gone(round_.table(name), tables.check) for name in (
                  "offpolicy", "negatives", "sequences", "gaps")),
              # Before, they may be half there: they are written from the start.
              *(whole_or_gone(folder, manifest.check) for folder in (round_.sequences, round_.selected)
                if round_.screened_path.exists())]
  if is_judged and not all(judged):
    round_.judged_path.unlink(missing_ok=True)
    screened.append(False)
  if round_.screened_path.exists() and not all(screened):
    round_.screened_path.unlink()
  if not round_.screened_path.exists():
    _mend_shards(round_)


def mend_finished(round_: Round) -> None:
  """Of a round that is over: what it was before training also stands in DONE.json. The rest is checked when read."""
  if not whole_or_gone(round_.screened_path, read_json):
    write_json(round_.screened_path, {name: value for name, value in read_json(round_.done_path).items()
                                      if name != "files"})


def whole_or_gone(path: epath.Path, check: Callable[[epath.Path], Any]) -> bool:
  """False where `check` finds damage, which is removed then, with a line in the log."""
  try:
    if path.exists():
      check(path)
    return True
  except Damaged as error:
    log.warning("%s is damaged (%s): it is made again", error.path, error.reason)
    if path.is_dir():
      epath.Path(path).rmtree()
    else:
      path.unlink()
    return False


def _mend_shards(round_: Round) -> None:
  for path in round_.shard_plans():
    whole_or_gone(path, read_json)
  for path in round_.shards("gaps"):
    whole_or_gone(path, tables.check)
  made_from_damage: set[str] = set()
  for stage in STAGES:
    for path in round_.shards(stage):
      index = path.stem.removeprefix(f"{stage}-")
      if index in made_from_damage:
        path.unlink()
      elif not whole_or_gone(path, tables.check):
        made_from_damage.add(index)
