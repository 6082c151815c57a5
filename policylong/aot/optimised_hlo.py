"""What an optimised TPU program says about itself: loops, the compiler's cycle estimates, collectives.

XLA's TPU compiler writes into each fusion how many cycles it expects it to take. A loop's body stands there once:
times its trip count, taken from the constant that its condition compares with. Kernels (custom calls) and
collectives have no estimate; the former are reported by name and count, the latter with their bytes.
"""

import collections
import dataclasses
import re

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%([\w\-]+)[\w.\-]* = (.*?) ([a-z][\w\-]*)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SHAPE = re.compile(r"(pred|bf16|f\d+|[su]\d+)\[([\d,]*)\]")
# What stands for "unknown".
_NO_ESTIMATE = 2**63 - 1
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")


@dataclasses.dataclass
class Summary:
  """Of one execution on one device. bytes: of results, as they arrive."""
  matmul_cycles: int = 0
  other_cycles: int = 0
  kernels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  collectives: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)


def summarise(text: str) -> Summary:
  """Reads `jax.stages.Compiled.as_text()` of a program compiled for a TPU."""
  computations, entry = _parse(text)
  with_products = {name for name, lines in computations.items()
                   if any(" convolution(" in line or " dot(" in line for line in lines)}
  summary = Summary()
  _walk(computations, entry, 1, with_products, summary)
  return summary


def _parse(text: str) -> tuple[dict[str, list[str]], str]:
  computations: dict[str, list[str]] = {}
  entry, lines = "", []
  for line in text.splitlines():
    if found := _COMPUTATION.match(line):
      lines = computations[found[2]] = []
      entry = found[2] if found[1] else entry
    elif line.startswith("  "):
      lines.append(line)
  return computations, entry


def _walk(computations, name, times, with_products, summary) -> None:
  """Adds one computation, executed `times` times."""
  for line in computations[name]:
    found = _OPERATION.match(line)
    if not found:
      continue
    name, shape, operation = found.groups()
    kind = operation.removesuffix("-start")
    if operation == "while":
      trips = _trips(computations[_called(line, "condition")])
      _walk(computations, _called(line, "body"), times * trips, with_products, summary)
    elif operation == "call":
      _walk(computations, _called(line, "to_apply"), times, with_products, summary)
    elif kind in _COLLECTIVES:
      entry = summary.collectives.setdefault(kind, {"count": 0, "bytes": 0})
      entry["count"] += times
      entry["bytes"] += times * _bytes(shape, result_only=operation.endswith("-start"))
    elif operation == "custom-call" and "tpu_custom_call" in line:
      summary.kernels[name] += times
    if (cycles := _CYCLES.search(line)) and int(cycles[1]) != _NO_ESTIMATE:
      called = re.search(r"calls=%?([\w.\-]+)", line)
      if operation in ("convolution", "dot") or (called and called[1] in with_products):
        summary.matmul_cycles += times * int(cycles[1])
      else:
        summary.other_cycles += times * int(cycles[1])


def _called(line: str, role: str) -> str:
  return re.search(rf"{role}=%?([\w.\-]+)", line)[1]


def _trips(condition: list[str]) -> int:
  """The one integer that a loop's counter, which starts at 0, is compared with."""
  constants = {int(value) for line in condition for value in re.findall(r"[su]32\[\][^=]* constant\((\d+)\)", line)}
  return constants.pop() if len(constants) == 1 else 1


def _bytes(shape: str, result_only: bool) -> int:
  """Of all arrays in a type; an asynchronous start names its operand first, then its result."""
  sizes = []
  for dtype, dims in _SHAPE.findall(shape):
    count = 1
    for dim in dims.split(","):
      count *= int(dim or 1)
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
    sizes.append(count * bits // 8)
  return max(sizes, default=0) if result_only else sum(sizes)
