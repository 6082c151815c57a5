"""A config as the text of a config file: every field with what it means, and what differs from the paper's setting."""

import ast
import inspect
import pprint
import textwrap

from ml_collections import ConfigDict

from policylong import paper

_WIDTH = 120
_HEAD = '''"""What the command line gave, every field of it; a config file itself.

{sources}
"""

from ml_collections import ConfigDict

from policylong.config import optional


def get_config() -> ConfigDict:
  return ConfigDict({{
'''


def text(config: ConfigDict) -> str:
  """The file. Its `get_config` gives the values of `config`, which must have the fields of a run or of fine-tuning."""
  setting = paper.tuning_config() if "data" in config else paper.config()
  sources = inspect.getdoc(paper).split("\n\n")[-1]
  return _HEAD.format(sources=sources) + "\n".join(_lines(config, setting, comments(), "", 6)) + "\n  })\n"


def comments() -> dict[str, list[str]]:
  """Field, e.g. "screening.alpha", to the lines of the comment above it in paper.py; groups of fields too.

  In the order of the file; a group without a comment has no lines.
  """
  source = inspect.getsource(paper)
  lines = source.splitlines()
  found: dict[str, list[str]] = {}

  def read(node: ast.Dict, prefix: str) -> None:
    for key, value in zip(node.keys, node.values):
      if key is None:  # **fields, which are explained where they come from
        continue
      field, first = ast.literal_eval(key), key.lineno - 1
      last = first
      begins_line = not lines[last][:key.col_offset].strip()
      while begins_line and lines[first - 1].lstrip().startswith("#"):
        first -= 1
      if first < last or isinstance(value, ast.Dict):
        found.setdefault(prefix + field, [line.strip().removeprefix("# ") for line in lines[first:last]])
      if isinstance(value, ast.Dict):
        read(value, f"{prefix}{field}.")

  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == ConfigDict.__name__:
      (fields,) = node.args
      if isinstance(fields, ast.Dict):
        read(fields, "")
  return found


def _lines(config: ConfigDict, setting: ConfigDict, explained: dict[str, list[str]], prefix: str, indent: int):
  order = list(explained)
  for name in sorted(config, key=lambda name: order.index(prefix + name)):
    field, value = prefix + name, config[name]
    # A group whose fields are not explained one by one is a value, as a source of documents is.
    group = isinstance(value, ConfigDict) and any(other.startswith(field + ".") for other in explained)
    above = textwrap.wrap(" ".join(explained[field]), _WIDTH - indent - 2)
    if not group and (usual := _plain(setting[name])) != _plain(value):
      above += textwrap.wrap(f"The paper's setting: {_literal(usual)}", _WIDTH - indent - 2)
    yield from (f"{' ' * indent}# {line}" for line in above)
    start = f"{' ' * indent}{name!r}: "
    if group:
      yield start + "{"
      yield from _lines(value, setting[name], explained, field + ".", indent + 4)
      yield " " * indent + "},"
    else:
      shown = _literal(_plain(value), _WIDTH - len(start) - len("optional(),"))
      if config.get_type(name) is object:
        shown = f"optional({'' if value is None else shown})"
      yield start + shown.replace("\n", "\n" + " " * len(start)) + ","


def _plain(value):
  return value.to_dict() if isinstance(value, ConfigDict) else value


def _literal(value, width: int = 1 << 30) -> str:
  return pprint.pformat(value, width=width, sort_dicts=False)
