"""A bucket that is a folder: gs:// for etils and fsspec, without a network."""

import contextlib
import pathlib
import sys
from collections.abc import Iterator

import fsspec
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


@contextlib.contextmanager
def buckets(folder: pathlib.Path) -> Iterator[None]:
  """Inside, gs://NAME/... is `folder`/NAME/..., whose folders are made as they are written into, as in a bucket."""
  class Buckets(DirFileSystem):
    cachable = False

    def __init__(self, **_):
      super().__init__(path=str(folder), fs=LocalFileSystem(auto_mkdir=True))

    @classmethod
    def _strip_protocol(cls, path):
      return path.removeprefix("gs://").rstrip("/") if isinstance(path, str) else path

    def rename(self, one, other, **_):
      (folder / self._strip_protocol(one)).replace(folder / self._strip_protocol(other))

  backend.fsspec_backend._get_filesystem.cache_clear()
  fsspec.register_implementation("gcs", Buckets, clobber=True)
  try:
    yield
  finally:
    backend.fsspec_backend._get_filesystem.cache_clear()
    sys.modules["fsspec.registry"]._registry.pop("gcs")  # which has no other way out
