# Each target stands alone: on a machine with Python 3.11 or newer and make, it first builds .venv from the pins.
PYTHON ?= python3
PYTEST_ARGS ?=
QUICKSTART_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PINNED_TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
		"tsgdn2 needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + \
		"; name another one: make PYTHON=python3.11")'
	@echo "[1/4] creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@echo "[2/4] installing $(PINNED_TORCH)"
	@$(PIP_INSTALL) "$(PINNED_TORCH)" setuptools
	@echo "[3/4] installing what tsgdn2 depends on (a minute or two)"
	@$(PIP_INSTALL) --no-build-isolation --editable ".[dev]"
	@echo "[4/4] $(VENV) is ready"
	@touch $(READY)

install: $(READY)  ## create .venv with the pinned packages, nothing else

quickstart: $(READY)  ## train, backtest, stream and audit on the New York weather; about three minutes
	@$(BIN)/tsgdn2 quickstart $(QUICKSTART_ARGS)

test: $(READY)  ## run every test
	@$(BIN)/python -m pytest -q $(PYTEST_ARGS)

lint: $(READY)  ## ruff check, ruff format --check, mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict

format: $(READY)  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove .venv and the caches
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
