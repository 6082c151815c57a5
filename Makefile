# Every target does its own set-up, once: .venv (the environment) and material/ (real weights and text).
PYTHON ?= python3.12
BIN := .venv/bin

.PHONY: demo test test-all lint environment material ruler tpu-compiler clean

demo: environment material
	$(BIN)/python -m policylong.main --config=configs/demo.py --workdir=runs/demo

# Two tests at a time, the tests of a file in order: most of them start processes that wait for one core.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: environment material ruler tpu-compiler lint
	$(PYTEST)

test-all: environment material ruler tpu-compiler lint
	$(PYTEST) -m ""

lint: environment
	$(BIN)/ruff check .

environment: .venv/done

.venv/done: setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".[test]"
	touch $@

# For `python -m policylong.aot`. Beside the other packages and not among them, where JAX would look for a TPU with it.
tpu-compiler: .venv/tpu-compiler/done

.venv/tpu-compiler/done: .venv/done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --upgrade \
	  --target .venv/tpu-compiler libtpu==0.0.52
	touch $@

material: material/DONE

material/DONE: .venv/done
	$(BIN)/python -m policylong.material material
	touch $@

# The RULER benchmark, 30 MB: fetched for the tests, and by policylong.evaluate when it is first needed.
ruler: material/ruler/DONE

material/ruler/DONE: .venv/done
	$(BIN)/python -m policylong.material --ruler material
	touch $@

clean:
	rm -rf .venv material runs
