"""The rung's real text on disk: documentation, speeches and encyclopaedia leads; and what is held out.

  python -m experiments.gpu_rung.corpora

It fetches the documentation by the names of Debian packages (on Debian or Ubuntu; with network, once); the rest is what
`make material` fetches. In DIRECTORY:

  documents.jsonl  documentation of LEAST_CHARACTERS and more, speeches since 1900: roots and contexts
  pages.jsonl      shorter pages, Wikipedia leads: contexts
  held_out.jsonl   every fourth page of documentation that is long enough for the longest sequence, and the speeches
                   before 1900 that are, mixed: nobody trains on them
  packages.json    the packages' versions; written last
"""

import html.parser
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

from policylong.errors import UserError, run_command
from policylong.storage.workdir import write_atomically, write_json

DIRECTORY = pathlib.Path("runs/gpu_rung/corpus")
MATERIAL = pathlib.Path("material")
PACKAGES = ("git-doc", "perl-doc", "postgresql-doc-15", "python3.11-doc", "sqlite3-doc")
# Shorter documents are no roots, and what is shorter than a page is nothing.
LEAST_CHARACTERS, LEAST_PAGE = 4000, 500
# 16,384 tokens have 60,000 to 80,000 characters; what is read of a document that turns out shorter is left out.
LONG_CHARACTERS = 80_000


class _Text(html.parser.HTMLParser):
  """The words of a page, a line for each block; scripts, styles and navigation left out."""
  _LEFT_OUT = ("script", "style", "nav", "head")
  _BLOCKS = ("p", "div", "li", "dt", "dd", "tr", "pre", "br", "h1", "h2", "h3", "h4", "h5", "section", "table", "ul")

  def __init__(self):
    super().__init__()
    self.parts, self._depth = [], 0

  def handle_starttag(self, tag, attrs):
    self._depth += tag in self._LEFT_OUT
    if tag in self._BLOCKS:
      self.parts.append("\n")

  def handle_endtag(self, tag):
    self._depth -= tag in self._LEFT_OUT and self._depth > 0
    if tag in self._BLOCKS:
      self.parts.append("\n")

  def handle_data(self, data):
    if not self._depth:
      self.parts.append(data)


def text_of(page: str) -> str:
  """The text of an HTML page: paragraphs stay apart, the space around lines goes."""
  parser = _Text()
  parser.feed(page)
  parser.close()
  lines = (re.sub(r"[ \t\r\xa0]+", " ", line).strip() for line in "".join(parser.parts).split("\n"))
  return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def write_corpus(directory: pathlib.Path, pages: Iterable[tuple[str, str]], packages: dict[str, str],
                 most: int | None = None) -> None:
  """The four files from (name, text) pages of documentation and the material, at most so many of a file.

  Raises:
    UserError: the material is not there.
  """
  documents, short, held_out, long = [], [], [], 0
  for name, text in pages:
    long += len(text) >= LONG_CHARACTERS
    if len(text) >= LONG_CHARACTERS and long % 4 == 0:
      held_out.append((name, text))
    elif len(text) >= LEAST_PAGE:
      (documents if len(text) >= LEAST_CHARACTERS else short).append((name, text))
  for name, text in _speeches():
    if int(name[:4]) >= 1900:
      documents.append((name, text))
    elif len(text) >= LONG_CHARACTERS:
      held_out.append((name, text))
  short += _leads()
  mixed = [held_out[i] for i in np.random.default_rng(0).permutation(len(held_out))]
  for name, found in (("documents", documents), ("pages", short), ("held_out", mixed)):
    lines = [json.dumps({"id": title, "text": text}, ensure_ascii=False) + "\n" for title, text in found[:most]]
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / f"{name}.jsonl", "".join(lines).encode())
  write_json(directory / "packages.json", packages)


def fetch(directory: pathlib.Path) -> None:
  """Downloads and unpacks PACKAGES and writes the corpus; nothing of a package is run.

  Raises:
    UserError: this is no Debian, or a package cannot be had.
  """
  if missing := [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]:
    raise UserError(f"the rung's documentation is in Debian packages, and {missing[0]} is not here: make "
                    f"{directory} on a Debian or Ubuntu machine, and copy it here")
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    result = subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, capture_output=True, text=True)
    if result.returncode:
      reason = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
      raise UserError(f"apt-get cannot download {', '.join(PACKAGES)}: {reason}")
    versions = {}
    for package in sorted(folder.glob("*.deb")):
      name, version, _ = package.name.split("_")
      versions[name] = version.replace("%3a", ":")
      subprocess.run(["dpkg-deb", "-x", str(package), str(folder / name)], check=True)
    write_corpus(directory, _pages(folder, list(versions)), versions)


def _pages(folder: pathlib.Path, names: list[str]) -> Iterator[tuple[str, str]]:
  """Of HTML and POD files; text files of these packages are sources of the same pages."""
  for name in names:
    for path in sorted((folder / name).rglob("*")):
      if path.suffix in (".html", ".pod") and path.is_file() and not path.is_symlink():
        text = path.read_text(encoding="utf-8", errors="replace")
        yield f"{name}/{path.relative_to(folder / name)}", text_of(text) if path.suffix == ".html" else text.strip()


def _speeches() -> list[tuple[str, str]]:
  paths = sorted((MATERIAL / "sotu").glob("*.txt"))
  if not paths:
    raise UserError(f"{MATERIAL}/sotu has no speeches: run `make material` first, and start from the project's folder")
  return [(path.stem, path.read_text(encoding="utf-8")) for path in paths]


def _leads() -> list[tuple[str, str]]:
  with open(MATERIAL / "wiki.jsonl", encoding="utf-8") as file:
    return [(record["id"], record["text"]) for record in map(json.loads, file)]


if __name__ == "__main__":
  run_command(lambda: fetch(DIRECTORY))
