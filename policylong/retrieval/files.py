"""Hashes of files and of settings: what a version is made of."""

import hashlib
import json
import os
import pathlib

from policylong.errors import UserError
from policylong.storage.checksums import sha256_of_file


def checked_sha256(path: str | os.PathLike, wanted: str) -> str:
  """The sha256 of a file, which must be `wanted` where that is not empty.

  Raises:
    UserError: the file cannot be read or is another one.
  """
  found = sha256_of_file(path)
  if wanted and found != wanted.lower():
    raise UserError(f"{path} has sha256 {found}, wanted {wanted} (embedder_sha256; '' for no check): it is not used")
  return found


def version_of(**settings: str | int | float | None) -> str:
  """16 hex digits that change when any setting does."""
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def total_sha256(paths: list[pathlib.Path]) -> str:
  """The sha256 over the hashes of several files, in the given order."""
  return hashlib.sha256("".join(sha256_of_file(path) for path in paths).encode()).hexdigest()
