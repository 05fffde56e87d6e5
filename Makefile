# Two commands: `make demo` (everything, from nothing to the report) and `make test`.
# Paths stay relative to this folder, so that it may lie below a path with spaces.
SHELL := /bin/sh
.DEFAULT_GOAL := help
VENV := .venv
STAMP := $(VENV)/.installed
# Programs that are started by name (DVC starts `python`) must be the environment's own.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: help install demo test lint format lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## create .venv and install the locked packages (nothing to do: at once)

$(STAMP): requirements.lock pyproject.toml
	@set -e; \
	if [ ! -x "$(VENV)/bin/python" ]; then \
	  python=""; \
	  for name in "$(PYTHON)" python3.12 python3.11 python3 python3.13 python; do \
	    [ -n "$$name" ] || continue; \
	    if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python="$$name"; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "No Python 3.11 or later with venv was found. Install one (Debian: apt-get install python3 python3-venv) or say PYTHON=/path/to/python." >&2; exit 1; \
	  fi; \
	  "$$python" -m venv "$(VENV)"; \
	fi; \
	"$(VENV)/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; \
	"$(VENV)/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	touch "$(STAMP)"

demo: install ## run the whole pipeline on params.yaml and say where the report is
	@git rev-parse --git-dir >/dev/null 2>&1 || git init --quiet .
	@"$(VENV)/bin/python" -m dvc repro
	@"$(VENV)/bin/python" -c 'from pathlib import Path; print("\nReport:", Path("data/report/index.html").resolve().as_uri())'

test: install ## run the tests
	@"$(VENV)/bin/python" -m pytest -q -n logical --maxprocesses 4 --dist loadfile

lint: install ## ruff (lint and format) and mypy
	@"$(VENV)/bin/python" -m ruff check .
	@"$(VENV)/bin/python" -m ruff format --check .
	@"$(VENV)/bin/python" -m mypy
	@"$(VENV)/bin/python" -m flows.graph --check

format: install ## let ruff and flows.graph rewrite what they can
	@"$(VENV)/bin/python" -m ruff check --fix .
	@"$(VENV)/bin/python" -m ruff format .
	@"$(VENV)/bin/python" -m flows.graph --write

lock: ## bring requirements.lock up to date with pyproject.toml (needs uv)
	@echo "# Exact versions for Python 3.11 and later, made by \`make lock\` from pyproject.toml; \`make install\` installs these." > requirements.lock.new
	@env -u UV_FIND_LINKS uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --upgrade --quiet \
	  --constraint .ci/constraints.txt >> requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean: ## remove the environment and the tools' caches; results in data/ stay
	@rm -rf "$(VENV)" .mypy_cache .ruff_cache .pytest_cache build dist head3d.egg-info
	@find flows tasks models tests -name __pycache__ -type d -prune -exec rm -rf {} +
