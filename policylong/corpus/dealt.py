"""The sources of a corpus read by several processes, each some of their files; one of them puts the corpus together.

In a folder that all processes share:

  <source>-<process>.arrow   every record that a process read of a source, bad ones too, with the chunks of its text

The processes' files are contiguous, so that the parts one behind the other are what `sources.read_source` gives: who
puts the corpus together counts, finds ids that come again and hashes as if it had read the sources itself, but parses,
decompresses and chunks nothing.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from policylong import config as config_lib
from policylong.corpus import chunks, sources
from policylong.records import Document

# Names of files may hold what no UTF-8 can; so what may come from them lies here as bytes.
_SCHEMA = pa.schema([
    ("place", pa.binary()), ("size", pa.int64()), ("id", pa.large_string()), ("text", pa.large_string()),
    ("reason", pa.binary()), ("has_id", pa.bool_()), ("file", pa.binary()), ("chunks", pa.large_binary())])
_BATCH_BYTES, _BATCH_ROWS = 8 << 20, 4096

Reader = Callable[[config_lib.Source, bool], Iterator[sources.Reading]]
"""(source, whether its ids carry the file) -> its records."""


def shares(sizes: Sequence[Sequence[int]], index: int, count: int) -> list[slice]:
  """Of each source the files that process `index` of `count` reads: contiguous over all, about as many bytes each.

  Args:
    sizes: bytes of each file of each source.
    index: of the process.
    count: of processes.
  """
  flat = [size for of_source in sizes for size in of_source]
  total, ends = max(1, sum(flat)), itertools.accumulate(flat)
  # A file goes where its middle lies; one of no bytes behind the last one goes to the last process.
  owners = iter([min(count - 1, (2 * end - size) * count // (2 * total)) for size, end in zip(flat, ends)])
  own = [list(itertools.islice(owners, len(of_source))) for of_source in sizes]
  return [slice(of_source.index(index), len(of_source) - of_source[::-1].index(index)) if index in of_source else
          slice(0, 0) for of_source in own]


def write(config: config_lib.Corpus, folder: pathlib.Path, index: int, count: int) -> None:
  """Reads this process's files into their parts.

  Raises:
    UserError: as `sources.read_source`.
    OSError: the disk is full.
  """
  sizes = [sources.file_sizes(source) for source in config.sources]
  for number, (source, only) in enumerate(zip(config.sources, shares(sizes, index, count))):
    if only.start < only.stop:
      _write(folder / f"{number:03d}-{index:05d}.arrow", sources.read_source(source, only=only), config.chunk_chars)


def reader(config: config_lib.Corpus, folder: pathlib.Path) -> Reader:
  """What reads the parts when all are there, in the place of `sources.read_source`."""
  def read(source: config_lib.Source, with_file: bool) -> Iterator[sources.Reading]:
    for path in sorted(folder.glob(f"{config.sources.index(source):03d}-*.arrow")):
      for reading in _read(path, source.name):
        yield sources.carrying_file(source, reading) if with_file else reading
  return read


def _write(path: pathlib.Path, readings: Iterator[sources.Reading], chunk_chars: int) -> None:
  rows: list[tuple] = []
  waiting = 0
  with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as arrow:
    for reading in readings:
      document = reading.document
      spans = None if document is None else chunks.chunk_table(document.text, chunk_chars).tobytes()
      rows.append((_bytes(reading.place), reading.size, document and document.id, document and document.text,
                   _bytes(reading.reason), reading.has_id, _bytes(reading.file), spans))
      waiting += len(document.text) if document else 0
      if waiting >= _BATCH_BYTES or len(rows) == _BATCH_ROWS:
        arrow.write_batch(_batch(rows))
        rows, waiting = [], 0
    if rows:
      arrow.write_batch(_batch(rows))


def _batch(rows: list[tuple]) -> pa.RecordBatch:
  return pa.record_batch([pa.array(column, field.type) for column, field in zip(zip(*rows), _SCHEMA)], schema=_SCHEMA)


def _read(path: pathlib.Path, source: str) -> Iterator[sources.Reading]:
  with pa.memory_map(str(path)) as file:
    arrow = pa.ipc.open_file(file)
    for number in range(arrow.num_record_batches):
      columns = (column.to_pylist() for column in arrow.get_batch(number).columns)
      for place, size, doc_id, text, reason, has_id, name, spans in zip(*columns):
        document = None if text is None else Document(doc_id, text, source)
        yield sources.Reading(_text(place), size, document, _text(reason), has_id, _text(name),
                              None if spans is None else np.frombuffer(spans, np.int64).reshape(-1, 4))


def _bytes(text: str) -> bytes:
  return text.encode(errors="surrogatepass")


def _text(data: bytes) -> str:
  return data.decode(errors="surrogatepass")
