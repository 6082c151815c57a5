"""What a benchmark is asked for and what it answers."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Options:
  """What the command line says of a run; each benchmark takes what concerns it."""
  lengths: tuple[int, ...]
  samples: int | None
  protocol: str
  seed: int
  apply_chat_template: bool
  helmet_dir: str | None
  data_dir: str | None
  include_path: str | None


@dataclasses.dataclass(frozen=True)
class Result:
  """One number of a table."""
  metric: str
  value: float
  samples: int
  truncated: int
  protocol: str
