# Two commands for a fresh machine with Python 3.10 or newer, pip and make:
#
#   make demo     set up, train on the embedded data set, evaluate, draw
#   make test     set up, check the style and the types, run the tests
#
# All commands keep everything they install in .venv; the set-up runs once, and again when pyproject.toml or setup.py change.
# The settings of pip and uv are honoured: `UV_TORCH_BACKEND=cpu make demo` installs the small PyTorch without CUDA.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs release-check clean

help:
	@echo 'make demo           train on the embedded data set, evaluate, draw (about 8 minutes on 2 cores after the set-up)'
	@echo 'make test           style, types and tests              (PYTEST_ARGS="-k merge -x" passes options on)'
	@echo 'make lint           style and types only'
	@echo 'make docs           the documentation as a searchable site in build/site'
	@echo 'make release-check  build what is published, install it in a fresh environment, run a short demo from it'
	@echo 'make clean          remove caches and build outputs     (.venv, demo/ and runs/ stay)'
	@echo
	@echo 'PYTHON=python3.12 chooses the interpreter for the virtual environment in $(VENV).'

demo: $(VENV)/.installed
	$(BIN)/panoptic-detr demo

# One worker per core, one thread per worker (tests/conftest.py): as fast as the machine allows, and the same numbers everywhere.
test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --max-worker-restart 0 --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Strict: a dead link, or a docstring that names a parameter that is not there, is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo 'The site is in build/site; with its search: $(BIN)/mkdocs serve'

# The wheel is built from the source archive, so that a file which the archive lacks is missed here and not by a user.
release-check: $(VENV)/.installed-dev
	rm -rf build/release
	$(BIN)/python -m build --outdir build/release/dist
	$(BIN)/python -m twine check --strict build/release/dist/*
	'$(PYTHON)' -m venv build/release/venv
	$(call install,build/release/dist/*.whl,build/release/venv/bin/python)
	cd build/release && venv/bin/panoptic-detr demo --scenes 64 --held-out 8 --detector-steps 20 --mask-steps 10
	@echo 'Ready to publish: build/release/dist'

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The environments of tests and documents contain the plain one, whose stamp they set as well.
$(VENV)/.installed-dev: pyproject.toml setup.py | $(BIN)/python
	$(call install,-e '.[dev]',$(BIN)/python)
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml setup.py | $(BIN)/python
	$(call install,-e '.[docs]',$(BIN)/python)
	@touch $(VENV)/.installed $@

$(VENV)/.installed: pyproject.toml setup.py | $(BIN)/python
	$(call install,-e '.',$(BIN)/python)
	@touch $@

$(BIN)/python:
	@command -v '$(PYTHON)' >/dev/null || { echo "There is no '$(PYTHON)'. Install Python 3.10 or newer, or name yours: make PYTHON=/path/to/python3" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed, but $(PYTHON) is $$('$(PYTHON)' --version 2>&1). Name another: make PYTHON=python3.11" >&2; exit 1; }
	@'$(PYTHON)' -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv. Or name another Python: make PYTHON=/path/to/python3" >&2; exit 1; }
	'$(PYTHON)' -m venv $(VENV)

# uv installs in seconds what takes pip minutes; where uv cannot be had or cannot reach the index, pip does it alone.
# Either way one command resolves everything, so that torch and torchvision fit each other, and modules are compiled now, once: where
# PYTHONDONTWRITEBYTECODE is set, every process would do it again (seconds for PyTorch).
define install
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade
@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || echo "uv cannot be installed; pip works without it, only slower."
@echo "Installing" $(1) "for $(2)"
@if [ -x $(BIN)/uv ] && $(BIN)/uv pip install --compile-bytecode --python $(2) $(1); then :; \
else $(2) -m pip install --disable-pip-version-check $(1); fi
endef
