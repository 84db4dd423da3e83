# Two commands for a fresh machine with Python 3.10 or newer, pip and make:
#
#   make demo     set up, train on the embedded data set, evaluate, draw
#   make test     set up, check the style and the types, run the tests
#
# Both keep everything they install in .venv; the set-up runs once, and again when pyproject.toml or setup.py change.
# The settings of pip and uv are honoured: `UV_TORCH_BACKEND=cpu make demo` installs the small PyTorch without CUDA.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help:
	@echo 'make demo    train on the embedded data set, evaluate, draw (about 7 minutes on 2 cores after the set-up)'
	@echo 'make test    style, types and tests              (PYTEST_ARGS="-k merge -x" passes options on)'
	@echo 'make lint    style and types only'
	@echo 'make clean   remove caches and build outputs     (.venv, demo/ and runs/ stay)'
	@echo
	@echo 'PYTHON=python3.12 chooses the interpreter for the virtual environment in $(VENV).'

demo: $(VENV)/.installed
	$(BIN)/panoptic-detr demo

# One worker per core, one thread per worker (tests/conftest.py): as fast as the machine allows, and the same numbers everywhere.
test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The tests' environment contains the plain one, so that its stamp serves both.
$(VENV)/.installed-dev: pyproject.toml setup.py | $(BIN)/python
	$(call install,.[dev])
	@touch $(VENV)/.installed $@

$(VENV)/.installed: pyproject.toml setup.py | $(BIN)/python
	$(call install,.)
	@touch $@

$(BIN)/python:
	@command -v '$(PYTHON)' >/dev/null || { echo "There is no '$(PYTHON)'. Install Python 3.10 or newer, or name yours: make PYTHON=/path/to/python3" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed, but $(PYTHON) is $$('$(PYTHON)' --version 2>&1). Name another: make PYTHON=python3.11" >&2; exit 1; }
	@'$(PYTHON)' -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv. Or name another Python: make PYTHON=/path/to/python3" >&2; exit 1; }
	'$(PYTHON)' -m venv $(VENV)

# uv installs in seconds what takes pip minutes; where uv cannot be had or cannot reach the index, pip does it alone.
# Either way one command resolves everything, so that torch and torchvision fit each other.
define install
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade
@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || echo "uv cannot be installed; pip works without it, only slower."
@echo 'Installing $(1) into $(VENV)'
@if [ -x $(BIN)/uv ] && $(BIN)/uv pip install --python $(BIN)/python -e '$(1)'; then :; \
else $(BIN)/python -m pip install --disable-pip-version-check -e '$(1)'; fi
endef
