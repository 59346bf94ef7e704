# make sweep [SPACE=digits] [ARGS="--trials 8"]    search; resumes where an earlier one stopped
# make test                                        unit tests, Ray and browser tests; faults and cluster apart
# make test-faults                                 kills, freezes and fills things; long
# make test-cluster                                three hosts, brought up by `ray up` over SSH; long
# make soak [KILLS=100]                            kills a sweep that often; half an hour or more
# make bench [NAMES="loading stepping"]             ours beside what a user would write instead
# make bench-full                                  the same at full size; long
# make docs                                        the documentation: site/index.html
# Each sets up .venv first if need be.

PYTHON ?= python3
BIN := .venv/bin
SPACE ?= digits
ARGS ?=
NAMES ?=
NAME = $(or $(lastword $(shell echo '$(ARGS)' | sed -n 's/.*--name[= ]\([^ ]*\).*/\1/p')),$(basename $(notdir $(SPACE))))
STORAGE = $(or $(shell echo '$(ARGS)' | sed -n 's/.*--storage[= ]\([^ ]*\).*/\1/p'),results)

.PHONY: setup sweep test unit test-faults test-cluster soak bench bench-full docs lint types clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V). Use make PYTHON=..."; exit 2; }
	@echo "Setting up .venv: about 2 minutes and 7 GB."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

sweep: setup
	@$(BIN)/python -m orchestrator.sweep $(SPACE) $(ARGS) \
		$(if $(wildcard $(STORAGE)/$(NAME)/ledger.sqlite),--resume)

# Two files of tests at a time (of fault tests three groups): most of them wait for processes to start.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: unit
	$(PYTEST) -m "(ray or browser) and not (faults or cluster)"

unit: setup
	$(PYTEST) -m "not (ray or browser or faults or cluster)"

test-faults: setup
	$(PYTEST) -n 3 --dist loadgroup -v --durations 15 -m "faults and not alone" tests/faults
	$(BIN)/python -m pytest -v -m "faults and alone" tests/faults

# Hosts, a network and their sshds, made of Linux namespaces: takes root.
test-cluster: setup
	$(BIN)/python -m pytest -v -m cluster tests/cluster

KILLS ?= 100
soak: setup
	$(BIN)/python -m tests.faults.soak --kills $(KILLS)

bench: setup
	$(BIN)/python -m benchmarks $(NAMES)

bench-full: setup
	$(BIN)/python -m benchmarks $(NAMES) --full

# Strict: a broken link or a page that is missing from the menu fails.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

clean:
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache *.egg-info
