"""Reads data sets that TFDS has prepared, without TensorFlow."""

import os
import pathlib
from collections.abc import Iterator, Mapping

from policylong import config as config_lib
from policylong import paths
from policylong.errors import UserError, optional_import


def files(source: config_lib.Source) -> list[pathlib.Path]:
  """The files of a prepared data set.

  Raises:
    UserError: there is none.
  """
  directory = pathlib.Path(_builder(source).data_dir)
  if not directory.is_dir():
    raise UserError(f"the path of source {source.name!r} is {source.path}, a TFDS builder that is not prepared "
                    f"in {directory}: run its download_and_prepare with file_format='array_record' first")
  return sorted(path for path in directory.iterdir() if path.is_file())


def rows(source: config_lib.Source) -> Iterator[tuple[int, int, Mapping]]:
  """(number from 1, about how many bytes it took, features) of each example of a split.

  Raises:
    UserError: there is no such builder, split or feature.
  """
  builder = _builder(source)
  for name in filter(None, (source.text_field, source.id_field)):
    if name not in builder.info.features and name.partition(".")[0] not in builder.info.features:
      raise UserError(f"the TFDS data set {source.path} has no feature {name!r}; its features are "
                      f"{', '.join(builder.info.features)} (text_field or id_field of source {source.name!r})")
  try:
    examples = builder.as_data_source(source.split)
  except Exception as error:  # TFDS raises whatever the split parser or the file format met
    raise UserError(f"the TFDS data set {source.path} does not give split {source.split!r} of "
                    f"{', '.join(builder.info.splits)} as a data source ({_first_line(error)}): it must be "
                    "prepared with file_format='array_record' or 'parquet'") from error
  size = builder.info.dataset_size // max(builder.info.splits.total_num_examples, 1)
  for number, example in enumerate(examples, start=1):
    yield number, size, _plain(example)


def _plain(value):
  """Numbers come as numpy scalars, at any depth."""
  if isinstance(value, Mapping):
    return {name: _plain(inner) for name, inner in value.items()}
  return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _builder(source):
  """The TFDS builder that `path` names: a prepared folder, or "name", "name/config", "name:version"."""
  # A second of start-up that only this kind of source needs.
  tfds = optional_import("tensorflow_datasets", "tfds", f"source {source.name!r}, of kind tfds,")
  path = paths.expand(source.path)
  try:
    return tfds.builder_from_directory(path) if os.path.isdir(path) else tfds.builder(source.path)
  except Exception as error:  # an unknown name, version, config or folder, each with its own exception
    raise UserError(f"the path of source {source.name!r} is {source.path}, which is no TFDS builder and no folder "
                    f"with a prepared data set ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
