"""What the ids of a tokenizer must be to its model, and which of them end a generation.

Without transformers, whose tokenizers are only asked here.
"""

import json
import os
import pathlib
from collections.abc import Collection

from policylong.errors import UserError
from policylong.model import gguf_file


def check_ids(vocabulary: dict[str, int], embedded: int, path: str | os.PathLike) -> None:
  """Compares a tokenizer with its model.

  Args:
    vocabulary: every token with its id.
    embedded: V, the rows of the model's embedding.
    path: of the model, for the sentence.

  Raises:
    UserError: a token has no row in the embedding.
  """
  if beyond := sorted((i, token) for token, i in vocabulary.items() if i >= embedded):
    i, token = beyond[0]
    raise UserError(f"the tokenizer of {path} has {len(beyond)} tokens beyond the model's embedding of {embedded} rows "
                    f"(the first is {token!r} with id {i}): take the tokenizer that belongs to these weights, or "
                    "enlarge the embedding (transformers' resize_token_embeddings)")


def end_tokens(tokenizer, path: str | os.PathLike) -> frozenset[int]:
  """All that ends a generation: by the tokenizer, by an HF directory's config files, by a GGUF file's metadata.

  Instruct models name several: the end of a text in one place, the end of a turn in another.

  Raises:
    UserError: a file is damaged, or names something else than token ids.
  """
  path, found = pathlib.Path(path), {tokenizer.eos_token_id} - {None}
  if not path.is_dir():
    return frozenset(found | gguf_file.end_tokens(path))
  for name in ("generation_config.json", "config.json"):
    if (path / name).exists():
      found |= _named_ends(path / name)
  return frozenset(found)


def _named_ends(path: pathlib.Path) -> set[int]:
  """The eos_token_id of a config file: a number, several, or none."""
  try:
    named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
  except (OSError, ValueError, AttributeError, RecursionError) as error:
    raise UserError(f"{path} cannot be read ({error}): repair or remove it") from error
  ids = named if isinstance(named, list) else [] if named is None else [named]
  if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
    raise UserError(f"{path} has eos_token_id = {named!r}, wanted a token id or a list of them")
  return set(ids)


def write_end_tokens(ends: Collection[int], tokenizer,
                     directory: pathlib.Path) -> dict[str, int | list[int] | None]:
  """Writes generation_config.json, where `end_tokens` and transformers find them; returns its ids by field.

  The tokenizer's own end token comes first: transformers pads with the first one.
  """
  ordered = sorted(ends, key=lambda i: (i != tokenizer.eos_token_id, i))
  ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
         "eos_token_id": ordered if len(ordered) > 1 else ordered[0] if ordered else None}
  named = {field: value for field, value in ids.items() if value is not None}
  (directory / "generation_config.json").write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")
  return ids
