# Everything runs in .venv, which makes itself: with uv if it is there, else with `python3 -m venv`.
#   make install         the command `wamtune` in .venv/bin, without running anything
#   make demo            post-train the built-in model, before -> after in the simulator
#   make demo-pixels     the same from images, in half an hour
#   make test            lint, types and the fast tests
#   make docs            the documentation as a site in site/, readable without a network
#   make test-notebooks  the notebooks, executed from the first cell to the last
#   make test-isaac      the tests of Isaac Lab, in an environment of their own, .venv-isaac
#   make test-lerobot    the tests of LeRobot's policies, in an environment of their own, .venv-lerobot, with Python 3.12
#   make PYTHON=python3.12 PIP_FLAGS="..." ...   another interpreter, other flags for the installation

PYTHON ?= python3
PIP_FLAGS ?=
EXTRAS ?= dev,data
# Workers of pytest. More than cores makes it slower: each imports torch, and mujoco is busy by itself.
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs-installed
ISAAC := .venv-isaac
ISAAC_STAMP := $(ISAAC)/.installed
ISAAC_ASSETS := $(ISAAC)/assets/.laid-out
LEROBOT := .venv-lerobot
LEROBOT_STAMP := $(LEROBOT)/.installed
# A name that starts may still be a stub without an interpreter behind it, so ask each for its version.
PYTHON312 ?= $(shell for p in python3.12 $$HOME/.pyenv/versions/3.12*/bin/python3.12; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help install demo demo-pixels docs test test-slow test-notebooks isaac test-isaac lerobot test-lerobot lint format types clean

help:
	@sed -n '2,10s/^# *//p' Makefile

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/wamtune train demo

demo-pixels: $(STAMP)
	$(BIN)/wamtune train demo-pixels

# Strict: a broken link, an unknown anchor or a wrong docstring ends the build. The tests look at the built pages.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	WAMTUNE_SITE=site $(BIN)/python -m pytest -q tests/docs/test_built_site.py
	@echo "open site/index.html"

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n $(JOBS) --dist loadfile

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

# One thread, because CI runs other lanes beside it.
test-notebooks: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_notebooks.py

isaac: $(ISAAC_ASSETS)

# Kernels are compiled once and kept. One process: Isaac Lab holds one environment.
test-isaac: $(ISAAC_ASSETS)
	OMP_NUM_THREADS=1 WARP_CACHE_PATH=$(ISAAC)/kernels ISAACSIM_ASSET_ROOT=$(CURDIR)/$(ISAAC)/assets \
		$(ISAAC)/bin/python -m pytest -q tests/isaac

lerobot: $(LEROBOT_STAMP)

# LeRobot 0.6 needs Python 3.12; without it the lane is left out.
test-lerobot:
ifeq ($(PYTHON312),)
	@echo "wamtune: no Python 3.12, so the tests of LeRobot's policies are left out; make PYTHON312=..."
else
	@$(MAKE) --no-print-directory $(LEROBOT_STAMP)
	OMP_NUM_THREADS=1 $(LEROBOT)/bin/python -m pytest -q -m "not slow" tests/lerobot
endif

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "wamtune: $(PYTHON) is missing: sudo apt-get install python3, or make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "wamtune: needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V): make PYTHON=python3.12" >&2; exit 2; }
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install $(PIP_FLAGS) --python $(BIN)/python -e '.[$(EXTRAS)]'; \
	else \
		{ $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
			{ echo "wamtune: python3-venv is missing: sudo apt-get install python3-venv" >&2; exit 2; }; } && \
		$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet $(PIP_FLAGS) -e '.[$(EXTRAS)]'; \
	fi
	@touch $@

# What builds the site is pure Python and comes on top of .venv, when it is asked for.
$(DOCS_STAMP): $(STAMP)
	@if command -v uv >/dev/null; then \
		uv pip install $(PIP_FLAGS) --python $(BIN)/python -e '.[$(EXTRAS),docs]'; \
	else \
		$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -e '.[$(EXTRAS),docs]'; \
	fi
	@touch $@

# Isaac Lab without what needs Omniverse Kit. omegaconf comes last: hydra asks for an older one than it runs with.
$(ISAAC_STAMP): tests/isaac/requirements.txt pyproject.toml
	@$(PYTHON) -m venv $(ISAAC)
	@$(ISAAC)/bin/python -m pip install --quiet --upgrade pip
	@$(ISAAC)/bin/python -m pip install --quiet $(PIP_FLAGS) --no-deps --ignore-requires-python isaaclab==3.0.0
	@$(ISAAC)/bin/python -m pip install --quiet $(PIP_FLAGS) -r tests/isaac/requirements.txt
	@$(ISAAC)/bin/python -m pip install --quiet $(PIP_FLAGS) --no-deps 'omegaconf>=2.4,<3' -e .
	@touch $@

# The robots of Isaac-Cartpole, -Ant and -Humanoid, which then need no network.
$(ISAAC_ASSETS): rl/envs/isaac/assets.py $(ISAAC_STAMP)
	@$(ISAAC)/bin/python -m rl.envs.isaac.assets $(ISAAC)/assets
	@touch $@

# Without triton and torchcodec, which are large and not used on a CPU.
$(LEROBOT_STAMP): tests/lerobot/requirements.txt pyproject.toml
	@$(PYTHON312) -m venv $(LEROBOT)
	@$(LEROBOT)/bin/python -m pip install --quiet --upgrade pip
	@$(LEROBOT)/bin/python -m pip install --quiet $(PIP_FLAGS) -r tests/lerobot/requirements.txt -e .
	@$(LEROBOT)/bin/python -m pip uninstall --quiet --yes triton torchcodec
	@touch $@

clean:
	rm -rf $(VENV) $(ISAAC) $(LEROBOT) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find rl world_model rewards tests -name __pycache__ -type d -prune -exec rm -rf {} +
