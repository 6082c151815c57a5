"""Streams the rows of a data set on the hub, with nothing of it kept but what the corpus keeps."""

import dataclasses
from collections.abc import Iterator

from etils import epath

from policylong import config as config_lib
from policylong.errors import UserError, optional_import
from policylong.storage import hub


def pinned(source: config_lib.Source, record: epath.PathLike | None = None) -> config_lib.Source:
  """A source of kind hub with its commit (see `hub.pin`), which names its bytes; any other as it is.

  Raises:
    UserError: the data set is not there, or the hub is out of reach.
  """
  return dataclasses.replace(source, path=hub.pin(source.path, record, "dataset")) if source.kind == "hub" else source


def rows(source: config_lib.Source) -> Iterator[tuple[int, int, dict]]:
  """(number from 1, 0, fields) of each row of a split.

  Raises:
    UserError: there is no such data set or split, or the hub is out of reach.
  """
  datasets = optional_import("datasets", "hub", f"source {source.name!r}, of kind hub,")
  repo, subset, commit = hub.parse(hub.pin(source.path, kind="dataset"))
  try:
    stream = iter(datasets.load_dataset(repo, subset or None, split=source.split, revision=commit, streaming=True))
    number = 0
    while (row := next(stream, None)) is not None:
      number += 1
      yield number, 0, row
  except ValueError as error:  # a split or a subset that there is not
    raise UserError(f"the data set {source.path} of source {source.name!r} cannot be read with split {source.split!r} "
                    f"({str(error).strip().splitlines()[0]})") from error
  except Exception as error:  # the client raises nearly anything without a network
    raise hub.refusal(source.path, error) from error
