# Every target does its own set-up, once: .venv (the environment) and material/ (real weights and text).
PYTHON ?= python3.12
BIN := .venv/bin

.PHONY: demo test test-all lint environment material clean

demo: environment material
	$(BIN)/python -m policylong.main --config=configs/demo.py --workdir=runs/demo

test: environment material lint
	$(BIN)/python -m pytest

test-all: environment material lint
	$(BIN)/python -m pytest -m ""

lint: environment
	$(BIN)/ruff check .

environment: .venv/done

.venv/done: setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".[test]"
	touch $@

material: material/DONE

material/DONE: .venv/done
	$(BIN)/python -m policylong.material material
	touch $@

clean:
	rm -rf .venv material runs
