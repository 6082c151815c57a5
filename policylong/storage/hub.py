"""Models and data sets on the Hugging Face hub, named "hf://ORG/NAME[:SUBSET][@REVISION]" in the place of a path.

A revision is resolved to a commit once. Who has a folder to keep (a run) records it there, so that whatever happens
on the hub, it goes on with the same files; what is fetched lies in the hub's own cache (HF_HOME). Of models only
safetensors, JSON and the tokenizer's text files are fetched, never pickled weights or code.
"""

import contextlib
import logging
import os
import pathlib
import re
from typing import NamedTuple

import huggingface_hub
from etils import epath
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name

from policylong import paths
from policylong.errors import UserError
from policylong.storage.workdir import read_json, write_atomically, write_json

log = logging.getLogger(__name__)

PREFIX = "hf://"
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model"]
# Other forms of the same weights, in folders or, as Mistral has them, beside them.
_NOT_THESE = ["*/*", "consolidated*"]
_FORM = re.compile(r"hf://([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Place(NamedTuple):
  """What a path on the hub names; subset and revision "" for none."""
  repo: str
  subset: str
  revision: str


def parse(path: str) -> Place:
  """The parts of a path on the hub.

  Raises:
    UserError: it is none.
  """
  found = _FORM.fullmatch(path)
  if found is None:
    raise UserError(f"{path} names nothing on the hub: hf://ORG/NAME or hf://ORG/NAME@REVISION is wanted, of a data "
                    "set also hf://ORG/NAME:SUBSET@REVISION")
  return Place(*(part or "" for part in found.groups()))


def pin(path: str, record: epath.PathLike | None = None, kind: str = "model") -> paths.Path:
  """A path on the hub with the commit that its revision is; any other path as it is.

  Args:
    path: with a revision (a branch, a tag, a commit) or without, which is the main branch.
    record: JSON file {path: commit}; what stands there is taken, what does not is added.
    kind: model or dataset.

  Raises:
    UserError: the path is misspelt, nothing of that name and revision is there, or the hub is out of reach.
  """
  if not path.startswith(PREFIX):
    return paths.Path(path)
  repo, subset, revision = parse(path)
  if not _COMMIT.fullmatch(revision):
    recorded = read_json(record) if record is not None and epath.Path(record).exists() else {}
    if path not in recorded:
      try:
        recorded[path] = huggingface_hub.HfApi().repo_info(repo, repo_type=kind, revision=revision or None,
                                                           timeout=20).sha
      except Exception as error:  # the client raises nearly anything without a network
        cached = None if isinstance(error, HfHubHTTPError) else _cached(repo, kind, revision)
        if cached is None:
          raise refusal(path, error) from error
        log.warning("%s: the hub is out of reach, and its commit %s, which was fetched earlier, is taken", path, cached)
        recorded[path] = cached
      else:
        _note(repo, kind, revision, recorded[path])
      if record is not None:
        write_json(record, recorded)
    revision = recorded[path]
  return paths.Path(f"{PREFIX}{repo}{':' if subset else ''}{subset}@{revision}")


def _note(repo: str, kind: str, revision: str, commit: str) -> None:
  """Leaves in the hub's cache what a revision is now, as its client does where it resolves one itself."""
  folder = pathlib.Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind)
  with contextlib.suppress(OSError):  # a cache that may only be read
    write_atomically(epath.Path(folder / "refs" / (revision or "main")), commit.encode(), shared=True)


def _cached(repo: str, kind: str, revision: str) -> str | None:
  """The commit that a revision was when it was last fetched; None if it never was."""
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(repo, repo_type=kind, revision=revision or None,
                                                          allow_patterns=MODEL_FILES, ignore_patterns=_NOT_THESE,
                                                          local_files_only=True)).name
  except Exception:  # see above
    return None


def folder(path: str | os.PathLike, record: epath.PathLike | None = None) -> paths.Path:
  """The local folder of a model on the hub, fetched where it is not there yet; any other path as it is.

  Raises:
    UserError: as `pin`, and for a model without safetensors.
  """
  path = os.fspath(path)
  if not path.startswith(PREFIX):
    return paths.Path(path)
  place = parse(pin(path, record))
  try:
    found = huggingface_hub.snapshot_download(place.repo, revision=place.revision, allow_patterns=MODEL_FILES,
                                              ignore_patterns=_NOT_THESE)
  except Exception as error:  # see above
    raise refusal(path, error) from error
  if not any(pathlib.Path(found).glob("*.safetensors")):
    raise UserError(f"{path} has no safetensors, and other weights are not fetched: convert it, or name another model")
  return paths.Path(found)


def refusal(path: str, error: Exception) -> UserError:
  """One sentence for whatever the hub's client raises."""
  if isinstance(error, RevisionNotFoundError):
    return UserError(f"{path} has no such revision on the hub: name a branch, a tag or a commit of it")
  if isinstance(error, RepositoryNotFoundError):
    return UserError(f"{path} is not on the hub, or is not open to you: check its name, or log in (HF_TOKEN)")
  if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
    return UserError(f"{path} is not open to you on the hub: ask for access to it and log in (HF_TOKEN)")
  return UserError(f"{path} cannot be had from the hub ({type(error).__name__}), which is out of reach or broke off: "
                   "try again, or fetch it elsewhere and name its folder")
