"""Answers of a model to numbered prompts, kept one by one as they come, by any number of processes."""

import logging

from etils import epath

from policylong.devices import hosts
from policylong.storage import lines
from policylong.storage.workdir import write_atomically

log = logging.getLogger(__name__)


class Answers:
  """A folder of answers-<process>.jsonl, {"index", "prediction", "truncated", "checksum"} a line.

  Each process appends to a file of its own and knows what all of them held when it was opened. A line that a kill
  cut in two is dropped; so is, with a line in the log, one that is damaged: its prompt is asked again.
  """

  def __init__(self, directory: epath.Path):
    self._directory = epath.Path(directory)
    self._path = self._directory / f"answers-{hosts.index()}.jsonl"
    self._directory.mkdir(parents=True, exist_ok=True)
    self.known = self.all()
    if self._path.exists():
      data = self._path.read_bytes()
      whole = data[:data.rfind(b"\n") + 1]
      if whole != data:
        write_atomically(self._path, whole)

  def add(self, answers: list[dict]) -> None:
    """Appends some, at once on their way to the disk."""
    with self._path.open("a") as file:
      file.write("".join(map(lines.line, answers)))

  def all(self) -> dict[int | str, dict]:
    """What all processes have written, by index."""
    found = {}
    for path in sorted(self._directory.glob("answers-*.jsonl")):
      for line in path.read_bytes().split(b"\n")[:-1]:
        try:
          answer = lines.value(line)
        except ValueError as error:
          log.warning("%s has a damaged line (%s): its prompt is asked again", path, error)
          continue
        found[answer["index"]] = answer
    return found
