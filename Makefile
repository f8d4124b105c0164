# Two commands: `make quickstart` trains a small matrix and prints its table; `make test` passes the tests.
# Each makes the environment that it needs, once, and again when pyproject.toml changes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-all test-slurm lint clean

quickstart: $(VENV)/run.stamp
	$(BIN)/python -m kdbench run suites/quickstart.yaml

test: $(VENV)/dev.stamp lint
	$(BIN)/python -m pytest

test-all: $(VENV)/dev.stamp lint
	$(BIN)/python -m pytest -m "slow or slurm or not slow"

# Each test starts a SLURM of its own on this machine, if one is installed (README, "Try it on a real SLURM").
# Those of the time limit come first and apart: beside others, on few cores, a minute may be too short to begin in.
test-slurm: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slurm -k limit --durations 10
	$(BIN)/python -m pytest -m slurm -k "not limit" --durations 10

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) results/cells results/suites results/profiles

# torch, torchvision and timm are resolved in one command: apart, a torchvision may come that its torch cannot load.
$(VENV)/run.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/dev.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/run.stamp
