"""What checksums cost a run: the time in what computes and compares them, of the time of the whole command.

  python -m benchmarks.reliability.cost --config=configs/demo.py --workdir=runs/cost ...flags of policylong.main...

It is the command itself, with a clock around each function of `CHECKS` wherever it is called from; of one that calls
another, the outer one counts. Time is that of the core, by thread, so other work of the machine does not count; reading
the files and parsing them counts where it is a check that does it, so the share is an upper bound.
"""

import functools
import importlib
import resource
import sys
import threading
import time

# What writes checksums and what compares them, by module.
CHECKS = {"policylong.storage.checksums": ("sha256_of_file", "sha256_of_files", "sha256_of_texts", "sealed",
                                           "unsealed"),
          "policylong.storage.workdir": ("read_json", "write_bare_json", "recorded_sha256", "_checksum"),
          "policylong.storage.tables": ("check",),
          "policylong.storage.lines": ("read", "value", "sum_of"),
          "policylong.storage.manifest": ("check", "write"),
          "policylong.storage.blocks": ("write", "Blocks.check"),
          "policylong.corpus.files": ("fingerprint",)}


class Clock:
  """Seconds of cores that checks took, and how many there were, by name."""

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self.calls: dict[str, int] = {}
    self._inside, self._lock = threading.local(), threading.Lock()

  def around(self, name: str, function):
    """The function, with its time counted unless it is called within another one."""
    @functools.wraps(function)
    def timed(*arguments, **keywords):
      if getattr(self._inside, "yes", False):
        return function(*arguments, **keywords)
      self._inside.yes, begin = True, time.thread_time()
      try:
        return function(*arguments, **keywords)
      finally:
        self._inside.yes = False
        with self._lock:
          self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - begin
          self.calls[name] = self.calls.get(name, 0) + 1
    return timed

  def install(self) -> None:
    """Puts the clock around every check, in each module that has it under a name of its own."""
    from benchmarks.reliability import forked
    forked.prepare()
    for module, names in CHECKS.items():
      for name in names:
        *outer, last = name.split(".")
        owner = functools.reduce(getattr, outer, importlib.import_module(module))
        kept = getattr(owner, last)
        timed = self.around(f"{module.rpartition('.')[2]}.{name}", kept)
        for each in [owner, *(m for known, m in sys.modules.items() if known.startswith("policylong"))]:
          for held, value in list(vars(each).items()):
            if value is kept:
              setattr(each, held, timed)

  def table(self, whole: float) -> str:
    """The whole, and each check that took any time."""
    total = sum(self.seconds.values())
    rows = [f"{name:<28}{self.calls[name]:>8}{seconds:>10.3f} s" for name, seconds in sorted(
        self.seconds.items(), key=lambda row: -row[1])]
    return "\n".join([*rows, f"checks: {total:.2f} s of {whole:.1f} s of cores, {100 * total / whole:.2f}%"])


def main() -> None:
  """The command."""
  clock = Clock()
  clock.install()
  from policylong import main as command  # after the clock: they take what they call by name
  from policylong.commands import config_flags
  config_flags.parse(__doc__, required=("config", "workdir"))
  command.main()
  used = resource.getrusage(resource.RUSAGE_SELF)
  print(clock.table(used.ru_utime + used.ru_stime))


if __name__ == "__main__":
  main()
