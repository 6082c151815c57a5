"""Answers of a model to numbered prompts, kept one by one as they come, by any number of processes."""

import json

from etils import epath

from policylong.devices import hosts
from policylong.storage.workdir import write_atomically


class Answers:
  """A folder of answers-<process>.jsonl, {"index", "prediction", "truncated"} a line.

  Each process appends to a file of its own and knows what all of them held when it was opened; a line that a kill
  cut in two is dropped.
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
      file.write("".join(json.dumps(answer) + "\n" for answer in answers))

  def all(self) -> dict[int | str, dict]:
    """What all processes have written, by index."""
    found = {}
    for path in sorted(self._directory.glob("answers-*.jsonl")):
      for line in path.read_bytes().split(b"\n")[:-1]:
        answer = json.loads(line)
        found[answer["index"]] = answer
    return found
