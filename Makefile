# Every target does its own set-up, once: .venv (the environment) and material/ (real weights and text).
PYTHON ?= python3.12
BIN := .venv/bin

.PHONY: demo test test-all lint lock environment beam material ruler tpu-compiler clean

demo: environment material
	$(BIN)/python -m policylong.main --config=configs/demo.py --workdir=runs/demo

# Two tests at a time, the tests of a file in order: most of them start processes that wait for one core.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: environment beam material ruler tpu-compiler lint
	$(PYTEST)

test-all: environment beam material ruler tpu-compiler lint
	$(PYTEST) -m ""

lint: environment
	$(BIN)/ruff check .
	$(BIN)/mypy

environment: .venv/done

# Exactly what requirements.lock names, each file by its hash; then the project itself, for which nothing is fetched.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.venv/done: requirements.lock setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) --no-deps --require-hashes -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

# After a change in setup.py's ranges, or for newer packages: `make lock`, then `make test-all`, then commit the file.
# `make lock UPGRADE=` keeps every version that still fits.
UPGRADE := --upgrade

lock:
	$(PYTHON) -m venv .venv
	$(PIP) --target .venv/uv --upgrade uv==0.13.9
	.venv/uv/bin/uv pip compile setup.py --extra test --universal --python-version 3.12 --generate-hashes \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" $(UPGRADE) --output-file requirements.lock
	cp requirements.lock requirements-prepare.lock  # whose versions are kept where Beam allows
	.venv/uv/bin/uv pip compile setup.py --extra prepare --universal --python-version 3.12 --generate-hashes \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" --output-file requirements-prepare.lock

# For `python -m policylong.prepare`: what `pip install '.[prepare]'` gives. An environment of its own, because Beam wants
# an older NumPy, PyArrow and protobuf than the others are locked to. `.venv/prepare/bin/python` runs it.
beam: .venv/prepare/done

.venv/prepare/done: .venv/done requirements-prepare.lock
	$(PYTHON) -m venv .venv/prepare
	.venv/prepare/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes \
	  -r requirements-prepare.lock
	.venv/prepare/bin/python -c "import site; open(site.getsitepackages()[0] + '/policylong.pth', 'w').write('$(CURDIR)')"
	touch $@

# For `python -m policylong.aot`. Beside the other packages and not among them, where JAX would look for a TPU with it.
tpu-compiler: .venv/tpu-compiler/done

.venv/tpu-compiler/done: .venv/done
	$(PIP) --no-deps --upgrade --target .venv/tpu-compiler libtpu==0.0.52
	touch $@

material: material/DONE

material/DONE: .venv/done policylong/material.py
	$(BIN)/python -m policylong.material material
	touch $@

# The RULER benchmark, 30 MB: fetched for the tests, and by policylong.evaluate when it is first needed.
ruler: material/ruler/DONE

material/ruler/DONE: .venv/done policylong/material.py
	$(BIN)/python -m policylong.material --ruler material
	touch $@

clean:
	rm -rf .venv material runs
