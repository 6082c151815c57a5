"""Several processes write a round's sequences: the files of one process, every sequence what its spans say."""

import numpy as np
import pyarrow.compute as pc
import pytest
from etils import epath

from policylong.records import Negative, Positive
from policylong.storage import manifest, tables
from policylong.storage.workdir import Round
from policylong.synthesis import policylong, storage, together
from policylong.synthesis.method import Inputs, Screened
from policylong.synthesis.storage import read_tokens, sequence_paths
from tests.synthesis.test_policylong_sequences import World, _Tokens, root
from tests.threads_as_processes import in_processes

LENGTH, ROOTS = 200, 31


@pytest.fixture
def groups_of_four(monkeypatch):
  monkeypatch.setattr(together, "GROUP_ROOTS", 4)


def make_round(seed, negatives=1):
  """(world, screened) of roots of which some have no positives; every chunk is of a document of its own."""
  rng = np.random.default_rng(seed)
  world = World(rng.integers(5, 40, 600).tolist(), separator=[7, 8])
  free = iter(world.ids)
  roots = [root(f"r{i}", int(rng.integers(10, 60))) for i in range(ROOTS)]
  own = {one.doc_id: [next(free) for _ in range(int(rng.integers(0, 6)))] for one in roots}
  positives = [Positive(doc_id, chunk, 1, float(rng.random())) for doc_id in own for chunk in own[doc_id]]
  ranked = [Negative(p.doc_id, next(free), p.chunk_id, 0.5, rank) for p in positives for rank in range(negatives)]
  return world, Screened(roots, positives, ranked, _Tokens(world.tokens), world.filler, negatives)


class Library:
  """Only what `policylong.sequences` asks for."""

  def __init__(self, separator):
    self.separator = separator


def write(folder, world, screened, monkeypatch, processes=1, count=1000, packed=False):
  """Writes a round by so many processes; returns how many sequences the first one counted."""
  inputs = Inputs(3, 1, 17, LENGTH, count, None, Library(world.separator), screened)
  return in_processes(processes, monkeypatch, together, lambda: together.write_together(
      policylong.sequences, inputs, Round(epath.Path(folder), 1), packed=packed, beginning=()))[0]


def files(folder):
  return {path.relative_to(folder).as_posix(): path.read_bytes()
          for path in sorted([*folder.glob("sequences/*"), folder / "sequences.parquet"])}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [1000, 9])
def test_any_number_of_processes_writes_the_same_files(tmp_path, monkeypatch, groups_of_four, packed, count):
  world, screened = make_round(0)
  counts = [write(tmp_path / str(processes), world, screened, monkeypatch, processes, count, packed)
            for processes in (1, 2, 3, 5)]
  assert len(set(counts)) == 1 and counts[0] == min(count, counts[0])
  one = files(tmp_path / "1")
  assert len(one) > 4 and [files(tmp_path / name) == one for name in "235"] == [True] * 3


@pytest.mark.parametrize("seed", range(8))
def test_every_root_with_positives_stands_in_one_sequence_and_every_token_is_what_its_span_says(
    tmp_path, monkeypatch, groups_of_four, seed):
  world, screened = make_round(seed)
  count = write(tmp_path, world, screened, monkeypatch)
  manifest.check(tmp_path / "sequences")
  spans, tokens = tables.read(tmp_path / "sequences.parquet").to_pylist(), read_tokens(sequence_paths(
      tmp_path / "sequences"))
  assert tokens.shape == (count, LENGTH) and {span["sequence"] for span in spans} == set(range(count))
  ends = dict.fromkeys(range(count), 0)
  for span in spans:
    assert span["start"] == ends[span["sequence"]]
    ends[span["sequence"]] = span["end"]
    if span["role"] != "root":
      size = span["end"] - span["start"]
      assert tokens[span["sequence"], span["start"]:span["end"]].tolist() == world.tokens[span["chunk_id"]][
          :size].tolist()
  assert set(ends.values()) == {LENGTH}
  placed = [span["doc_id"] for span in spans if span["role"] == "root"]
  assert sorted(placed) == sorted({positive.doc_id for positive in screened.positives})
  # Tokens of random chunks only where a sequence would not take the next root: those of a group go to the next ones.
  joined = len(list(policylong.synthesize(screened, separator=world.separator, length=LENGTH, seed=3, round_index=1,
                                          policy_step=17)))
  assert abs(count - joined) <= 2


def test_roots_of_one_group_make_the_sequences_that_they_make_in_one_piece(tmp_path, monkeypatch):
  world, screened = make_round(1)
  wanted = list(policylong.synthesize(screened, separator=world.separator, length=LENGTH, seed=3, round_index=1,
                                      policy_step=17))
  assert write(tmp_path, world, screened, monkeypatch) == len(wanted)
  assert (read_tokens(sequence_paths(tmp_path / "sequences")) == np.stack([one.tokens for one in wanted])).all()


def test_no_more_sequences_than_the_round_reads_are_kept_and_these_are_the_first(tmp_path, monkeypatch, groups_of_four):
  world, screened = make_round(2)
  count = write(tmp_path / "all", world, screened, monkeypatch)
  every = read_tokens(sequence_paths(tmp_path / "all" / "sequences"))
  spans = tables.read(tmp_path / "all" / "sequences.parquet")
  for most in range(1, count + 1):
    folder = tmp_path / str(most)
    assert write(folder, world, screened, monkeypatch, count=most) == most
    assert (read_tokens(sequence_paths(folder / "sequences")) == every[:most]).all()
    kept = tables.read(folder / "sequences.parquet").drop(["gain"])  # of which NaN is not equal to itself
    assert kept.equals(spans.drop(["gain"]).filter(pc.less(spans["sequence"], most)))
    manifest.check(folder / "sequences")


def test_an_earlier_attempt_leaves_nothing_behind(tmp_path, monkeypatch, groups_of_four):
  world, screened = make_round(3)
  write(tmp_path / "clean", world, screened, monkeypatch)
  folder = storage.emptied(tmp_path / "again" / "sequences")
  storage.write_part(storage.part(folder, 77), np.ones((3, LENGTH), np.int32))
  (folder / ".part-00002.array_record.tmp").write_bytes(b"half")
  tables.write(Round(epath.Path(tmp_path / "again"), 1).shard("spans", 1), tables.read(
      Round(epath.Path(tmp_path / "clean"), 1).shard("spans", 0)))
  write(tmp_path / "again", world, screened, monkeypatch, processes=2)
  assert files(tmp_path / "again") == files(tmp_path / "clean")
