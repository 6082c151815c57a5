"""What is installed: setup.py's ranges, whose ends both work, and requirements.lock, which lies within them."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest
import setuptools  # noqa: F401 (brings distutils)
from distutils.core import run_setup
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = pathlib.Path(__file__).parents[1]
# Modules that are called otherwise than the package that brings them.
PACKAGES = {"orbax": "orbax-checkpoint", "yaml": "pyyaml", "absl": "absl-py"}
# What a newer package breaks first: each file meets other packages, and together they take some minutes.
CORE = ("test_config.py", "likelihood", "attention/test_attention.py", "synthesis/test_methods_by_hand.py",
        "synthesis/test_packing.py", "synthesis/test_sequence_storage.py", "training/test_step.py",
        "training/test_checkpoint.py", "training/test_batches.py", "training/test_optimizer.py",
        "model/test_tokenizer.py", "model/test_hf.py", "corpus", "retrieval/test_retrieval_indexes.py",
        "retrieval/test_retrieval_bm25.py", "evaluation/test_lm_eval.py")


@pytest.fixture(scope="module")
def setup():
  return run_setup(REPOSITORY / "setup.py", stop_after="init")


def required(texts):
  return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, texts)}


def locked(name="requirements.lock"):
  """{package: version} of a lock file."""
  text = (REPOSITORY / name).read_text()
  lines = re.findall(r"^([\w.-]+)(?:\[.*?\])?==(\S+)(.*?)^(?=\S|\Z)", text, re.M | re.S)
  assert all("--hash=sha256:" in rest for *_, rest in lines)
  return {canonicalize_name(name): version for name, version, _ in lines}


def imports(path):
  """The names of the modules of other people that a file imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    names = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
             else [node.module] if isinstance(node, ast.ImportFrom) else [])
    for name in names:
      if (top := name.split(".")[0]) not in sys.stdlib_module_names and top != "policylong":
        yield top


def test_what_the_package_imports_is_required(setup):
  evaluation = required([*setup.install_requires, *setup.extras_require["evaluation"], "datasets"])  # lm-eval's own
  for path in (REPOSITORY / "policylong").rglob("*.py"):
    here = evaluation if path.parent.name == "evaluation" else required(setup.install_requires)
    for name in imports(path):
      if name not in ("model_utils", "xxhash"):  # HELMET's; and one that is looked for before it is imported
        assert canonicalize_name(PACKAGES.get(name, name)) in here, f"{path} imports {name}"


def test_the_lock_lies_within_the_ranges_and_names_no_place(setup):
  versions = locked()
  for name, requirement in required([*setup.install_requires, *setup.extras_require["test"]]).items():
    assert requirement.specifier.contains(versions[name]), f"{requirement}, locked {versions[name]}: run `make lock`"
  assert not re.search(r"://|index-url|find-links", (REPOSITORY / "requirements.lock").read_text())


def test_what_beam_is_locked_beside_is_what_the_tests_run_with_where_beam_allows(setup):
  versions, others = locked("requirements-prepare.lock"), locked()
  for name, requirement in required([*setup.install_requires, *setup.extras_require["prepare"]]).items():
    assert requirement.specifier.contains(versions[name]), f"{requirement}, locked {versions[name]}: run `make lock`"
  differ = {name for name in versions if name in others and versions[name] != others[name]}
  assert differ <= {"numpy", "protobuf", "pyarrow"}, f"{differ}: run `make lock`"
  assert not re.search(r"://|index-url|find-links", (REPOSITORY / "requirements-prepare.lock").read_text())


def test_the_tests_extra_has_all_that_is_optional(setup):
  optional = set().union(*(setup.extras_require[extra] for extra in ("evaluation", "tensorboard", "tfds", "wandb")))
  assert optional <= set(setup.extras_require["test"])


@pytest.mark.slow  # installs 1.7 GB over the network: a quarter of an hour each
@pytest.mark.parametrize("end", ["newest", "oldest"])
def test_the_ends_of_the_ranges_pass_the_core_tests(setup, tmp_path, end):
  requirements = [*setup.install_requires, *setup.extras_require["test"]]
  (tmp_path / "wanted.txt").write_text("\n".join(requirements) + "\n")
  (tmp_path / "oldest.txt").write_text("\n".join(requirements).replace(">=", "==") + "\n")
  python = tmp_path / "environment" / "bin" / "python"
  subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
  subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-compile", "-r", tmp_path / "wanted.txt",
                  *(["-c", tmp_path / "oldest.txt"] if end == "oldest" else [])], check=True)
  found = subprocess.run([python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout.split()
  print(f"{end}:", *(line for line in found if canonicalize_name(line.split("==")[0]) in required(requirements)))
  subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in CORE)],
                 check=True, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
