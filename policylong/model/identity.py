"""Which model something was made with, by content: what is kept belongs to these bytes and settings, and to no others.

An identity is {"weights", "config", "tokenizer", "chat template", "end tokens"}: all that decides on a model's answers.
Where its files lie does not count.
"""

import dataclasses
import json
from collections.abc import Iterable

import transformers

from policylong.errors import UserError
from policylong.model.qwen import ModelConfig
from policylong.storage import mending
from policylong.storage.checksums import sha256_of_texts
from policylong.storage.workdir import Workdir, read_json, write_json


def described(config: ModelConfig, tokenizer: transformers.PreTrainedTokenizerFast,
              end_tokens: Iterable[int]) -> dict[str, str]:
  """All of an identity but the weights. The config is what was made of the file: what changes no number is left out."""
  special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
  return {"config": json.dumps(dataclasses.asdict(config), sort_keys=True, default=repr),
          "tokenizer": sha256_of_texts(tokenizer.backend_tokenizer.to_str(), json.dumps(special, sort_keys=True)),
          "chat template": sha256_of_texts(json.dumps(tokenizer.chat_template, sort_keys=True)),
          "end tokens": json.dumps(sorted(end_tokens))}


def changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
  """The names of what differs; of configs, fields that only one of them has are a later version's."""
  return [name for name in now if name not in before or (
      _differ(before[name], now[name]) if name == "config" else before[name] != now[name])]


def claim_base(workdir: Workdir, name: str, now: dict[str, str]) -> None:
  """Notes in the working directory which model its run begins with, or checks that it is still that one.

  Raises:
    UserError: the model of this name has changed since.
  """
  mending.whole_or_gone(workdir.base_model_json, read_json)
  if not workdir.base_model_json.exists():
    write_json(workdir.base_model_json, {"name": name, **now})
  elif differing := changed(read_json(workdir.base_model_json), now):
    raise UserError(f"{workdir.directory} began with the model in {name}, whose {' and '.join(differing)} changed "
                    "since: put its files back as they were, or choose another --workdir")


def check_base(workdir: Workdir, name: str, now: dict[str, str]) -> None:
  """Checks what is taken for the model that a run began with.

  Raises:
    UserError: it is another one.
  """
  now = {name: now[name] for name in ("config", "tokenizer")}  # how it is asked may change
  if workdir.base_model_json.exists() and (differing := changed(read_json(workdir.base_model_json), now)):
    raise UserError(f"the run in {workdir.directory} began with another model than lies in {name} (not the same "
                    f"{' and '.join(differing)}): say with --base_model=PATH where that one is")


def _differ(before: str, now: str) -> bool:
  old, new = json.loads(before), json.loads(now)
  return any(old[field] != new[field] for field in old.keys() & new.keys())
