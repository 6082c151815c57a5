"""The folder of an evaluation's answers belongs to one model, by content; answers of others are set aside.

  model.json        whose the folder's answers are: the identity of the model (`model.identity`) and the dtype
  results.json, ruler/, lm_eval/, ...
  earlier/<key>/    the same of other models; they come back when that model is evaluated again
"""

import hashlib
import json
import logging

from etils import epath

from policylong.errors import UserError
from policylong.model.identity import changed
from policylong.storage.workdir import read_json, write_json

log = logging.getLogger(__name__)

# What benchmarks leave in the folder.
_KEPT = ("results.json", "results.json.sha256", "ruler", "nlls", "key_tokens", "lm_eval", "longbench2", "helmet")
# To be raised when the same model would answer otherwise than an earlier version of this package made it.
_VERSION = "1"


def claim(directory: epath.Path, name: str, asked: dict[str, str]) -> None:
  """Makes the folder the one of a model's answers; what it holds of another model is set aside, with a line.

  May be killed at any instant and called again, with the same model or another: no answer is lost or changes hands.

  Args:
    directory: of the evaluation.
    name: of the model, for the line.
    asked: all that the answers hang on: the identity of the model, and how it is run.

  Raises:
    UserError: there are answers in the folder, and nothing says whose.
  """
  path, wanted = directory / "model.json", {"name": name, "version": _VERSION, **asked}
  held = read_json(path) if path.exists() else None
  there = [entry for entry in _KEPT if (directory / entry).exists()]
  if held is None and there:
    raise UserError(f"{directory} has {there[0]} and no model.json, so that nobody knows whose answers these are: "
                    "choose another --output")
  if held is None or _key(held) != _key(wanted):
    if held is not None and there:
      aside = directory / "earlier" / _key(held)
      _move(directory, aside, there)
      log.warning("%s has the answers of %s, %s: they are set aside in %s, and this model is asked anew", directory,
                  held.get("name", held.get("model")), _why(held, wanted), aside)
    write_json(path, wanted)
  back = directory / "earlier" / _key(wanted)
  if back.exists():
    _move(back, directory, [entry for entry in _KEPT if (back / entry).exists()])
    back.rmdir()
    log.warning("%s: what %s has answered before is taken from %s", directory, name, back)


def _key(asked: dict[str, str]) -> str:
  """16 hex digits of all but the name: a model may have moved."""
  told = {field: value for field, value in asked.items() if field != "name"}
  return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _why(held: dict[str, str], wanted: dict[str, str]) -> str:
  differing = [name for name in changed(held, wanted) if name != "name"]
  same = "which has changed since" if held.get("name") == wanted["name"] else f"and this is {wanted['name']}"
  return f"{same} ({', '.join(differing) or 'config'})"


def _move(source: epath.Path, target: epath.Path, entries: list[str]) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for entry in entries:
    (source / entry).rename(target / entry)
