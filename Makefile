# Needs Python 3.11 or 3.12, git and make; everything else goes into .venv.
# `make clean`, then `make test PYTHON=python3.12`, changes the version of .venv.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_DIR ?= runs/demo
PYTEST_ARGS ?= -n 2 --dist worksteal
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.12 python3.11 python3)

# Succeeds in a supported Python that can make virtual environments. Candidates are run, not only looked up: a
# pyenv shim exists for versions that are not active.
SUPPORTED := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo taste test test-bridges test-maniskill test-playground lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST)

install: $(STAMP)  ## set up .venv (every target below does it when needed)

# Both go on where they stopped.
demo: $(STAMP)  ## PegHole from demonstrations to a refined policy, compared and filmed: twenty minutes
	$(BIN)/python -m experiments.refine --run-dir "$(DEMO_DIR)/peg" \
	  $$(test -e "$(DEMO_DIR)/peg/config.json" && echo --resume)

taste: $(STAMP)  ## train DofbotReacher by PPO, evaluate it and film it: two minutes
	$(BIN)/python -m experiments.train --env DofbotReacher --run-dir "$(DEMO_DIR)/reacher" \
	  $$(test -e "$(DEMO_DIR)/reacher/config.json" && echo --resume)
	$(BIN)/python -m experiments.evaluate --run-dir "$(DEMO_DIR)/reacher" --video

test: lint  ## check style and run the tests; two at a time; PYTEST_ARGS="-k native" instead goes to pytest
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

# What is too large for .venv has one of its own. TORCH names a build of torch to install first: that
# for CPUs is enough. If it's empty, pip downloads its default, on Linux with NVIDIA's libraries: some gigabytes.
test-bridges: .venv-benchmarks/.installed  ## run the tests of the bridges to torch and stable-baselines3, in .venv-benchmarks
	.venv-benchmarks/bin/python -m pytest -q tests/bridge

test-maniskill: .venv-maniskill/.installed  ## run the tests of the bridges to torch and ManiSkill 3, in .venv-maniskill
	.venv-maniskill/bin/python -m pytest -q tests/maniskill tests/bridge/test_dlpack.py tests/bridge/test_vector.py

test-playground: .venv-playground/.installed  ## run the tests of the bridge to MuJoCo Playground, in .venv-playground
	.venv-playground/bin/python -m pytest -q tests/playground

.venv-%/.installed: pyproject.toml | $(STAMP)
	$(BIN)/python -m venv --clear $(@D)
	$(if $(TORCH),$(@D)/bin/python -m pip install --quiet --no-input $(TORCH))
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-input --editable '.[test,$*]'
	@touch $@

lint: $(STAMP)  ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(STAMP)  ## mend style and format where ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove .venv and caches; keeps runs/
	rm -rf $(VENV) .venv-* build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@if ! $(BIN)/python -c '$(SUPPORTED)' 2>/dev/null; then \
	  found=; for python in $(CANDIDATES); do \
	    if "$$python" -c '$(SUPPORTED)' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No Python 3.11 or 3.12 with venv and ensurepip among: $(CANDIDATES)." >&2; \
	    echo "Install one (Debian, Ubuntu: python3-venv too), or name it: make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "Creating $(VENV) with $$found"; \
	  "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	@echo "Installing jaxrobo and what it needs into $(VENV): some minutes, once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --editable '.[test]'
	@touch $@
