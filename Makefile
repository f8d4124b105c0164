# Two commands: `make quickstart` trains a small suite and prints its table; `make test` runs the tests.
# Each creates the environment that it needs, and updates it when pyproject.toml changes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-all test-slurm docs lint clean

quickstart: $(VENV)/run.stamp
	$(BIN)/python -m kdbench run suites/quickstart.yaml

test: $(VENV)/dev.stamp lint
	$(BIN)/python -m pytest

test-all: $(VENV)/dev.stamp lint
	$(BIN)/python -m pytest -m "slow or slurm or not slow"

# Each test starts a SLURM of its own on this machine, if one is installed (docs/cluster.md).
# The tests of the time limit run first and alone: beside others, on few cores, a minute may be too short to start.
test-slurm: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slurm -k limit --durations 10
	$(BIN)/python -m pytest -m slurm -k "not limit" --durations 10

# The site, in build/docs. A warning is an error.
docs: $(VENV)/dev.stamp
	$(BIN)/python -m sphinx -W -q -b html docs build/docs

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) results/cells results/suites results/profiles

# torch, torchvision and timm are installed by one command: otherwise torchvision may not match torch.
$(VENV)/run.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/dev.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/run.stamp
